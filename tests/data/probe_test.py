import fractions
import io
import struct

import av
import fsspec
import numpy as np
import pytest
from data import clips

from fbjax.data import buckets, kept, objects, playback, probe, sources, storage
from fbjax.data import video as video_lib


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FBJAX_CACHE", str(tmp_path / "cache"))


def write(path, *, frames=7, size=(32, 48), codec="libx264", degrees=0, aspect=None, noise=False):
  rng = np.random.default_rng(0)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=10)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    if degrees:
      stream.set_display_rotation(degrees)
    if aspect:
      stream.codec_context.sample_aspect_ratio = aspect
    for i in range(frames):
      pixels = rng.integers(0, 256, (*size, 3), np.uint8) if noise else np.full((*size, 3), 9 * i)
      frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("a.mp4", {}, (7, 32, 48)),
    ("a.mkv", {}, (7, 32, 48)),
    ("a.avi", {"codec": "mpeg4"}, (7, 32, 48)),
    ("a.webm", {"codec": "libvpx"}, (7, 32, 48)),
    ("turned.mp4", {"degrees": 90}, (7, 48, 32)),
    ("turned.mov", {"degrees": 270}, (7, 48, 32)),
    ("upside_down.mp4", {"degrees": 180}, (7, 32, 48)),
    ("narrow_pixels.mp4", {"aspect": fractions.Fraction(1, 2)}, (7, 32, 24)),
  ],
)
def test_a_shape_is_that_of_the_frames_that_are_shown(tmp_path, name, options, expected):
  write(tmp_path / name, **options)
  with open(tmp_path / name, "rb") as file:
    assert probe.shape(name, file) == expected
  shown = list(playback.from_start(tmp_path / name, None, range(20)))
  height, width = shown[0].image.shape[:2]
  assert (len(shown), height, round(width * shown[0].aspect)) == expected


def test_a_length_that_no_video_has_is_the_longest_that_is_kept(tmp_path):
  write(tmp_path / "a.mkv")
  data = bytearray((tmp_path / "a.mkv").read_bytes())
  at = data.index(b"\x44\x89\x88") + 3  # its duration, in milliseconds
  data[at : at + 8] = struct.pack(">d", 1e15)
  look = lambda index: probe.shape("a.mkv", io.BytesIO(data))  # noqa: E731
  assert probe.shapes(1, "long", look, buckets.Hosts()).tolist() == [[2**31 - 1, 32, 48]]


def test_no_frame_is_decoded(tmp_path, monkeypatch):
  write(tmp_path / "a.mp4")

  def decode(*args):
    raise AssertionError("a frame was decoded")

  monkeypatch.setattr(playback, "_frames", decode)
  monkeypatch.setattr(playback, "_packets", decode)
  with open(tmp_path / "a.mp4", "rb") as file:
    assert probe.shape("a.mp4", file) == (7, 32, 48)


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\1moov" + b"\xff" * 40])
def test_what_says_nothing_is_named(content):
  with pytest.raises(video_lib.BrokenClip, match=r"^cat\.mp4 cannot be decoded: .*\.$"):
    probe.shape("cat.mp4", io.BytesIO(content))


def test_of_a_large_file_far_away_or_in_a_tar_little_is_read(tmp_path, monkeypatch):
  write(tmp_path / "a.mp4", frames=40, size=(128, 128), noise=True)
  data = (tmp_path / "a.mp4").read_bytes()
  assert len(data) > 2**18
  monkeypatch.setattr(objects, "BLOCK", 4096)
  read = []
  whole = objects.Address.read_bytes

  def read_bytes(self, start=None, end=None):
    found = whole(self, start, end)
    read.append(len(found))
    return found

  monkeypatch.setattr(objects.Address, "read_bytes", read_bytes)
  system = fsspec.filesystem("memory")
  system.pipe("/probe/a.mp4", data)
  clips.write_tar(tmp_path / "b.tar", [("a.mp4", data), ("a.txt", b"cat")])
  system.pipe("/probe/b.tar", (tmp_path / "b.tar").read_bytes())
  root = storage.place("memory://probe")
  for name in ("a.mp4", "b.tar/a.mp4"):
    with storage.opened(root, name) as file:
      read.clear()
      assert probe.shape(name, file) == (40, 128, 128)
      assert sum(read) < len(data) / 2
  with storage.opened(tmp_path, "b.tar/a.mp4") as file:
    assert probe.shape("a.mp4", file) == (40, 128, 128)
    file.seek(0)
    assert file.read() == data
  with pytest.raises(video_lib.BrokenClip, match=r"gone\.mp4 does not exist"):
    storage.opened(tmp_path, "gone.mp4")


class Looks:
  """Clips whose shape is a function of their index; counts how often it is asked."""

  def __init__(self, broken=()):
    self.broken, self.asked = set(broken), []

  def __call__(self, index):
    self.asked.append(index)
    if index in self.broken:
      raise video_lib.BrokenClip(f"clip {index} is broken.")
    return index + 1, 10, 20


def expected(count):
  return np.stack([np.arange(count) + 1, np.full(count, 10), np.full(count, 20)], 1)


def test_shapes_are_looked_at_once_but_for_what_could_not_be_read(monkeypatch, caplog):
  monkeypatch.setattr(probe, "CHUNK", 4)
  look = Looks(broken={3, 9})
  found = probe.shapes(11, "set", look, buckets.Hosts())
  assert found[[3, 9]].tolist() == [[0, 0, 0]] * 2 and sorted(look.asked) == list(range(11))
  assert "2 clips cannot be read; the first: clip 3 is broken." in caplog.text
  look.asked.clear()
  look.broken.clear()
  np.testing.assert_array_equal(probe.shapes(11, "set", look, buckets.Hosts()), expected(11))
  assert sorted(look.asked) == [3, 9]
  look.asked.clear()
  probe.shapes(11, "set", look, buckets.Hosts())
  assert not look.asked
  probe.shapes(11, "another set", look, buckets.Hosts())
  assert len(look.asked) == 11


def test_what_is_damaged_or_lost_of_what_was_kept_is_looked_at_again(monkeypatch):
  look = Looks()
  probe.shapes(5, "set", look, buckets.Hosts())
  kept.file("shapes", "set 0 5").write_bytes(b"something else")
  np.testing.assert_array_equal(probe.shapes(5, "set", look, buckets.Hosts()), expected(5))
  assert len(look.asked) == 10


def test_a_run_that_is_killed_meanwhile_goes_on_where_it_was(monkeypatch):
  monkeypatch.setattr(probe, "CHUNK", 4)

  def look(index):
    if index == 9:
      raise KeyboardInterrupt
    return index + 1, 10, 20

  with pytest.raises(KeyboardInterrupt):
    probe.shapes(11, "set", look, buckets.Hosts())
  looks = Looks()
  np.testing.assert_array_equal(probe.shapes(11, "set", looks, buckets.Hosts()), expected(11))
  assert sorted(looks.asked) == [8, 9, 10]


def test_hosts_share_the_work_and_learn_of_all(monkeypatch, tmp_path):
  """Also when what one of them has kept is not what the others have."""
  monkeypatch.setattr(probe, "CHUNK", 4)
  monkeypatch.setattr(buckets, "BLOCK", 8)
  said: list[list[np.ndarray]] = []
  looks = []
  for index in range(3):
    monkeypatch.setenv("FBJAX_CACHE", str(tmp_path / str(index)))
    if index == 1:
      probe.shapes(30, "set", Looks(), buckets.Hosts())
    own, look = [], Looks()
    probe.shapes(30, "set", look, buckets.Hosts(index, 3, lambda x, own=own: own.append(x) or x))
    said.append(own)
    looks.append(look.asked)
  asked = [index for asked in looks for index in asked]
  assert len(set(asked)) == len(asked) < 30 and not looks[1]
  assert [len(own) for own in said] == [4, 4, 4]
  total = np.concatenate([np.sum(parts, 0) for parts in zip(*said, strict=True)])
  np.testing.assert_array_equal(total, expected(30))


def test_progress_is_told(monkeypatch, caplog):
  monkeypatch.setattr(probe, "TOLD", -1.0)
  with caplog.at_level("INFO", "fbjax"):
    probe.shapes(3, "set", Looks(), buckets.Hosts())
  assert "Looked at the length and size of 2 of 3 clips" in caplog.text


def test_two_sets_of_files_with_the_same_names_are_told_apart(tmp_path):
  entries = [sources.Entry("a.mp4", "a cat")]
  found = []
  for name, size in (("small", (16, 16)), ("large", (32, 48))):
    (tmp_path / name).mkdir()
    write(tmp_path / name / "a.mp4", size=size)
    source = sources.Videos(tmp_path / name, entries)
    found.append(source.placed(buckets.parse(((2, 16, 16), (2, 32, 48))), buckets.Hosts()).tolist())
  assert found == [[0], [1]]
