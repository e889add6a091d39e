"""Each fault planted in a clip, and clips that only look like it."""

import io

import av
import numpy as np
import PIL.Image
import pytest

from fbjax.data import health, video

RNG = np.random.default_rng(0)


def scene(seed=0, frames=24, height=96, width=160):
  """Blobs that drift over a bright, textured background."""
  rng = np.random.default_rng(seed)
  cells = rng.integers(90, 250, (12, 20 * width * 96 // height // 160, 3)).astype(np.uint8)
  ground = cells.repeat(height // 12, axis=0).repeat(height // 12, axis=1)
  clip = np.repeat(ground[None], frames, axis=0)
  y, x = rng.integers(8, 40, 2)
  for t in range(frames):
    clip[t, y : y + 32, x + 2 * t : x + 2 * t + 32] = rng.integers(0, 60) if t == 0 else 30
  return clip


def written(tmp_path, clip, name="a.mp4", fps=8):
  video.write_mp4(tmp_path / name, clip, fps=fps)
  return tmp_path / name


def faults(path, least=16):
  return set(health.look(path, least).faults)


def test_a_healthy_clip_has_no_fault(tmp_path):
  found = health.look(written(tmp_path, scene()), 16)
  assert not found.faults and found.frames == 24 and found.small.shape == (8, 32, 32)
  assert PIL.Image.open(io.BytesIO(found.picture)).size == (160, 96)
  assert len(found.picture) < 96 * 160 * 3 / 3  # the doctor holds those of all clips


@pytest.mark.parametrize("bar", [8, 16])
def test_bars_at_two_sides_are_letterboxes_and_a_dark_side_is_none(bar, tmp_path):
  rows, columns = scene(), scene()
  rows[:, :bar] = rows[:, -bar:] = 4
  columns[:, :, :bar] = columns[:, :, -bar:] = 4
  assert faults(written(tmp_path, rows)) == faults(written(tmp_path, columns)) == {"letterboxed"}
  one = scene()
  one[:, :bar] = 4  # a night sky
  assert not faults(written(tmp_path, one))
  assert "letterboxed" not in faults(written(tmp_path, scene() // 12))  # all of it is dark
  fades = np.clip(np.minimum(np.arange(160), np.arange(160)[::-1]) / 70, 0, 1)[:, None]
  assert not faults(written(tmp_path, (scene() * fades**2).astype(np.uint8)))  # a spotlight


def test_what_does_not_move_is_static_and_what_hardly_moves_is_not(tmp_path):
  clip = scene()
  noisy = clip[:1].repeat(24, axis=0) // 2 + RNG.integers(0, 8, clip.shape, np.uint8)
  assert faults(written(tmp_path, clip[:1].repeat(24, axis=0))) == {"static"}
  assert faults(written(tmp_path, noisy)) == {"static"}
  small = clip[:1].repeat(24, axis=0)
  for t in range(24):
    small[t, 40:52, 20 + 3 * t : 32 + 3 * t] = 0
  assert not faults(written(tmp_path, small))


def test_a_cut_is_told_by_its_frame_and_fast_motion_is_none(tmp_path):
  two = np.concatenate([scene(0, 12), scene(1, 12)])
  found = health.look(written(tmp_path, two), 16)
  assert found.faults == {"cut": "another scene begins at frame 12"}
  ground = scene(3, 1, 96, 1024)[0]
  pan = np.stack([ground[:, 24 * t : 24 * t + 160] for t in range(24)])
  assert not faults(written(tmp_path, pan))


def test_a_width_may_change_on_the_way(tmp_path):
  file = tmp_path / "a.ts"
  for width in (160, 320):
    with av.open(str(tmp_path / "part.ts"), "w") as container:
      stream = container.add_stream("libx264", rate=25)
      stream.height, stream.width, stream.pix_fmt = 96, width, "yuv420p"
      for frame in scene(width=width):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
      container.mux(stream.encode())
    with file.open("ab") as whole:
      whole.write((tmp_path / "part.ts").read_bytes())
  assert health.look(file, 16).frames == 48


def test_files_that_are_not_whole(tmp_path):
  whole = written(tmp_path, scene(frames=96), "whole.mp4").read_bytes()
  for name, content, fault in (
    ("half.mp4", whole[: len(whole) // 2], {"truncated", "undecodable"}),
    ("text.mp4", b"no video", {"undecodable"}),
    ("empty.mp4", b"", {"undecodable"}),
  ):
    (tmp_path / name).write_bytes(content)
    assert faults(tmp_path / name) & fault, name
  assert faults(tmp_path / "nowhere.mp4") == {"missing"}
  found = health.look(written(tmp_path, scene(frames=5)), 16)
  assert found.faults == {"short": "has 5 frames, fewer than the 16 of a clip"}


def test_a_clip_that_was_encoded_anew_is_a_duplicate_and_a_neighbour_is_none(tmp_path):
  large = {"height": 192, "width": 320}
  clip = scene(0, **large)
  other = scene(0, 48, **large)[24:]  # of the same camera, later
  brighter = np.minimum(clip.astype(int) + 40, 255).astype(np.uint8)
  smaller = np.stack([video.resize_crop(frame, (96, 160)) for frame in clip])
  files = [
    written(tmp_path, x, f"{i}.mp4") for i, x in enumerate((clip, other, brighter, smaller, clip))
  ]
  looks = [health.look(file, 16) for file in files]
  assert health.duplicates(looks) == {3: 0, 4: 0}


def test_of_many_clips_of_one_length_and_brightness_few_are_compared_in_full(monkeypatch):
  small = np.random.default_rng(0).integers(0, 2, (200, 8, 2, 2)) * 60 + 60
  small[:, :, 1] = 180 - small[:, :, 0]
  small = small.astype(np.uint8).repeat(16, 2).repeat(16, 3)
  looks = [health.Look({}, 16, None, x, 0.0) for x in (*small, small[7])]
  compared, alike = [], health._alike
  monkeypatch.setattr(health, "_alike", lambda a, b: compared.append(a) or alike(a, b))
  assert health.duplicates(looks) == {200: 7} and len(compared) == 1
  assert health.duplicates([]) == {}


@pytest.mark.parametrize(
  ("caption", "told"),
  [
    ("", "is empty"),
    ("  \n", "is empty"),
    ("NaN", "placeholder"),
    ("a cafÃ© at night", "wrong encoding"),
    ("it\ufffds raining", "wrong encoding"),
    ("a <b>red</b> car", "markup"),
    ("salt &amp; pepper", "markup"),
    ("a\x00b", "control characters"),
  ],
)
def test_broken_captions_are_told(caption, told):
  assert told in health.of_caption(caption)


@pytest.mark.parametrize(
  "caption",
  ["a cat", "Ein Café — à côté", "猫が走る", "5 < 6 & 7 > 3", "C'est l'été", "Ãrea"],
)
def test_captions_of_any_script_are_healthy(caption):
  assert health.of_caption(caption) is None
