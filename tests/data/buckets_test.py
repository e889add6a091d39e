import collections
import logging

import numpy as np
import pytest
from data import clips

from fbjax import errors
from fbjax.data import buckets, folder, mixture, synthetic
from fbjax.data import video as video_lib

THREE = buckets.parse(((16, 256, 256), (16, 256, 448), (8, 512, 512)))


@pytest.mark.parametrize(
  ("shape", "expected"),
  [
    ((100, 1080, 1920), 1),  # 16:9
    ((100, 360, 640), 1),
    ((100, 240, 426), 1),  # also if it is enlarged for it
    ((100, 480, 600), 0),  # 5:4; 512 would enlarge it
    ((100, 1080, 1080), 2),  # the larger of two squares, where there are pixels for it
    ((100, 300, 300), 0),
    ((12, 1080, 1080), 2),  # the only one that is short enough
    ((12, 1080, 1920), 2),
    ((100, 1920, 1080), 2),
    ((7, 1080, 1080), buckets.NONE),
    ((0, 0, 0), buckets.NONE),
  ],
)
def test_a_clip_goes_where_least_of_it_is_cut_off_and_it_need_not_be_enlarged(shape, expected):
  assert buckets.fitting(np.array([shape]), THREE, 1).tolist() == [expected]


def test_of_two_that_are_alike_the_one_for_which_the_stride_stays_is_taken():
  long, short = ((16, 256, 256), (8, 256, 256))
  for taken in ((long, short), (short, long)):
    found = [
      taken[int(buckets.fitting(np.array([(50, 512, 512)]), buckets.parse(taken), stride)[0])]
      for stride in (1, 3, 6)
    ]
    assert found == [long, long, short]


def test_many_clips_are_sorted_as_each_by_itself(monkeypatch):
  monkeypatch.setattr(buckets, "BLOCK", 7)
  shapes = np.random.default_rng(0).integers(5, 2000, (40, 3))
  alone = [int(buckets.fitting(shape[None], THREE, 2)[0]) for shape in shapes]
  assert buckets.fitting(shapes, THREE, 2).tolist() == alone and len(set(alone)) > 2


@pytest.mark.parametrize(
  ("value", "words"),
  [
    ((), r"is \(\); expected a list of \(frames, height, width\)"),
    (((16, 256),), "expected a list of"),
    ((16, 256, 256), "expected a list of"),
    ("16x256x256", "expected a list of"),
    (3, "expected a list of"),
    (((16, 256, 0),), r"\(16, 256, 0\); expected a list of whole numbers from 1 up"),
    (((16, 256, 2.5),), "expected a list of whole numbers"),
    (((16, 256, 256), [16, 256, 256]), r"has \(16, 256, 256\) twice"),
    (((10**4, 1024, 1024),), r"has \(10000, 1024, 1024\): .* are 10,486 megapixels"),
  ],
)
def test_buckets_that_make_no_sense_are_refused_by_their_key(value, words):
  with pytest.raises(errors.UserError, match=rf"^config\.data\.buckets .*{words}"):
    buckets.parse(value)


def with_square(height, width, side, frames):
  """Frames with a white square in their middle."""
  video = np.zeros((frames, height, width, 3), np.uint8)
  top, left = (height - side) // 2, (width - side) // 2
  video[:, top : top + side, left : left + side] = 255
  return video


SMALL = buckets.parse(((4, 32, 32), (4, 32, 56), (2, 64, 64)))


@pytest.fixture
def source(tmp_path, monkeypatch):
  """22 wide clips, 10 square ones, one that is too short, and one that cannot be read."""
  monkeypatch.setenv("FBJAX_CACHE", str(tmp_path / "cache"))
  home = tmp_path / "videos"
  home.mkdir()
  video_lib.write_mp4(home / "wide0.mp4", with_square(54, 96, 26, 12))
  video_lib.write_mp4(home / "square0.mp4", with_square(48, 48, 20, 12))
  for name, count in (("wide", 22), ("square", 10)):
    for i in range(1, count):
      (home / f"{name}{i}.mp4").write_bytes((home / f"{name}0.mp4").read_bytes())
  video_lib.write_mp4(home / "short.mp4", with_square(48, 48, 20, 1))
  (home / "broken.mp4").write_bytes(b"no video")
  return folder.Folder(home, frames=4, size=32, strides=1)


def batches(source, parts=None, **options):
  parts = buckets.parts(source, SMALL, buckets.Hosts()) if parts is None else parts
  return clips.batches(source, parts=parts, seed=5, threads=2, **options)


def test_each_batch_is_of_one_bucket_and_no_clip_is_squeezed(source):
  shapes = collections.Counter()
  for batch in clips.take(batches(source), 16):
    shape = batch["video"].shape[1:4]
    shapes[shape] += 1
    names = {source.name(int(i)).rstrip("0123456789.mp") for i in batch["index"]}
    assert names == {"wide" if shape == (4, 32, 56) else "square"}
    for clip in batch["video"]:
      rows, columns = (np.flatnonzero(clip[0, ..., 0].max(axis) > 127) for axis in (1, 0))
      assert abs(len(rows) - len(columns)) <= 1, "the square is none any more"
      assert abs(rows.mean() - (shape[1] - 1) / 2) < 1
      assert abs(columns.mean() - (shape[2] - 1) / 2) < 1
  assert shapes == {(4, 32, 56): 11, (4, 32, 32): 5}


def test_every_clip_comes_once_an_epoch_and_what_fits_nowhere_never(source, caplog):
  with caplog.at_level(logging.INFO, "fbjax"):
    seen = clips.take(batches(source, batch_size=2), 32)
  assert (
    "Clips by bucket (frames x height x width): 10 of 4x32x32, 22 of 4x32x56, 0 of 2" in caplog.text
  )
  assert "2 of 34 clips fit no bucket and are left out, such as broken.mp4" in caplog.text
  assert "1 clips cannot be read; the first:" in caplog.text and "cannot be decoded" in caplog.text
  index = np.concatenate([batch["index"] for batch in seen])
  left = {source.name(i): i for i in range(34)}
  expected = sorted(set(range(34)) - {left["broken.mp4"], left["short.mp4"]})
  first, second = index[:32].tolist(), index[32:].tolist()
  assert sorted(first) == sorted(second) == expected and first != second
  # With more to a batch, all but what is left of each bucket.
  counts = collections.Counter(
    np.concatenate(
      [batch["index"] for batch in clips.take(batches(source, batch_size=4), 7)]
    ).tolist()
  )
  assert set(counts.values()) == {1} and len(counts) == 28


def test_batches_of_buckets_are_those_of_their_position_alone(source):
  parts = buckets.parts(source, SMALL, buckets.Hosts())
  whole = clips.take(batches(source, parts), 9)
  assert len({batch["video"].shape for batch in whole}) == 2
  resumed = batches(source, parts)
  resumed.position = 4
  clips.assert_equal(clips.take(resumed, 5), whole[4:])
  hosts = [
    clips.take(batches(source, parts, process_index=i, process_count=2), 9) for i in range(2)
  ]
  assert [a["video"].shape for a in hosts[0]] == [b["video"].shape for b in hosts[1]]
  joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*hosts, strict=True)]
  clips.assert_equal(joined, whole)
  resumed = batches(source, parts, process_index=1, process_count=2, workers=1)
  resumed.position = 6
  clips.assert_equal(clips.take(resumed, 3), hosts[1][6:])


def test_a_clip_that_breaks_later_is_replaced_by_one_of_its_bucket(source):
  parts = buckets.parts(source, SMALL, buckets.Hosts())
  for i in range(5):
    (source.root / f"square{i}.mp4").write_bytes(b"")
  for batch in clips.take(batches(source, parts), 8):
    if batch["video"].shape[1:4] == (4, 32, 32):
      names = [source.name(int(i)) for i in batch["index"]]
      assert all(name in {f"square{i}.mp4" for i in range(5, 10)} for name in names)


def test_the_digest_tells_which_clips_are_in_which_bucket(source):
  def digest(parts):
    return clips.batches(source, parts=parts).digest()

  parts = buckets.parts(source, SMALL, buckets.Hosts())
  assert digest(parts) == digest(list(parts)) != digest(()) == source.digest()
  moved = [parts[0]._replace(indices=parts[0].indices[1:]), parts[1]]
  assert digest(moved) != digest(parts)


def test_where_nothing_fits_one_sentence_says_so(source):
  with pytest.raises(
    video_lib.BrokenData, match=r"none of the 34 clips fits one of config\.data\.buckets"
  ):
    buckets.parts(source, buckets.parse(((99, 8, 8),)), buckets.Hosts())


def test_moving_shapes_come_in_every_bucket():
  source = synthetic.Shapes(frames=2, size=8, clips=300)
  taken = buckets.parse(((2, 8, 8), (3, 8, 16)))
  parts = buckets.parts(source, taken, buckets.Hosts())
  assert sorted(i for part in parts for i in part.indices.tolist()) == list(range(300))
  assert all(100 < len(part.indices) < 200 for part in parts)
  for part, bucket in zip(parts, taken, strict=True):
    clip = part.source.read(int(part.indices[0]), np.random.default_rng(0))
    assert clip.video.shape == (*bucket, 3)
    assert clip.caption == source.caption(int(part.indices[0]))


def test_clips_of_a_mixture_go_where_their_sources_send_them(source):
  other = synthetic.Shapes(frames=4, size=32, clips=60)
  mixed = mixture.Mixture({"files": source, "shapes": other}, {"files": 1.0, "shapes": 1.0})
  own = {
    "files": source.placed(SMALL, buckets.Hosts()),
    "shapes": other.placed(SMALL, buckets.Hosts()),
  }
  names = {"files": source.name, "shapes": other.name}
  by_name = {
    f"{part}/{names[part](i)}": int(bucket)
    for part, placed in own.items()
    for i, bucket in enumerate(placed)
  }
  placed = mixed.placed(SMALL, buckets.Hosts())
  assert [by_name[mixed.name(i)] for i in range(len(mixed))] == placed.tolist()
  parts = buckets.parts(mixed, SMALL, buckets.Hosts())
  for part, bucket in zip(parts, SMALL, strict=True):
    for index in part.indices[:4].tolist():
      clip = part.source.read(index, np.random.default_rng(0))
      assert clip.video.shape == (*bucket, 3)
