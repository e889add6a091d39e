import collections
import subprocess
import sys

import numpy as np
import pytest

from fbjax.data import synthetic


def test_a_clip_depends_on_seed_split_and_index_alone():
  a, b = synthetic.Shapes(seed=3), synthetic.Shapes(seed=3, clips=10)
  for i in (7, 2, 7):
    np.testing.assert_array_equal(a[i].video, b[i].video)
    assert a[i].caption == b.read(i, np.random.default_rng(i)).caption == b.caption(i)
  assert not np.array_equal(a[7].video, a[8].video)
  assert not np.array_equal(a[7].video, synthetic.Shapes(seed=4)[7].video)
  assert not np.array_equal(a[7].video, synthetic.Shapes(seed=3, split="val")[7].video)


def test_a_clip_is_the_same_in_another_process():
  code = "from fbjax.data import synthetic as s; print(int(s.Shapes(seed=3)[7].video.sum()))"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert int(out.stdout) == int(synthetic.Shapes(seed=3)[7].video.sum())


@pytest.mark.parametrize("frames, size", [(1, 32), (8, 32), (16, (24, 40)), (3, 64)])
def test_clips_have_any_length_and_size(frames, size):
  clip = synthetic.Shapes(frames, size)[0]
  h, w = (size, size) if isinstance(size, int) else size
  assert clip.video.shape == (frames, h, w, 3) and clip.video.dtype == np.uint8


def test_true_clips_move_where_their_captions_say():
  source = synthetic.Shapes(split="val", motions=tuple(synthetic.DIRECTIONS))
  seen = collections.Counter()
  for i in range(300):
    clip, truth = source[i], source.truth(i)
    assert synthetic.direction_agrees(clip.video, truth)
    words = clip.caption.replace("to the ", "")
    assert truth.direction in words
    assert clip.label == list(synthetic.MOTIONS).index(truth.direction)
    assert ("slowly" in words, "quickly" in words) == (
      truth.speed == "slow",
      truth.speed == "quick",
    )
    length = np.hypot(*(truth.path[-1] - truth.path[0]))
    assert length == pytest.approx(synthetic.SPEEDS[truth.speed].travel, abs=0.01)
    seen[truth.direction] += 1
  assert len(seen) == 8 and max(seen.values()) < 80


def test_measured_paths_follow_the_truth():
  source = synthetic.Shapes()
  errors = []
  for i in range(200):
    truth = source.truth(i)
    errors.append(synthetic.centroids(source[i].video, truth.background) - truth.path)
  assert np.abs(errors).mean() < 0.005 and np.abs(errors).max() < 0.06


def test_still_reversed_and_empty_videos_do_not_agree():
  source = synthetic.Shapes(motions=tuple(synthetic.DIRECTIONS))
  for i in range(20):
    clip, truth = source[i], source.truth(i)
    assert not synthetic.direction_agrees(np.repeat(clip.video[:1], 8, 0), truth)
    assert not synthetic.direction_agrees(clip.video[::-1], truth)
    empty = np.repeat(truth.background[None], 8, 0)
    assert not synthetic.direction_agrees(empty, truth)
  noisy = np.random.default_rng(0).normal(clip.video, 12).clip(0, 255).astype(np.uint8)
  assert synthetic.direction_agrees(noisy, truth)


def test_what_is_left_behind_is_all_of_a_still_image_and_nothing_of_the_clip():
  source = synthetic.Shapes(motions=("left",), speeds=("quick",), split="val")
  for i in range(4):
    true, truth = source[i].video, source.truth(i)
    still = np.repeat(true[:1], len(true), axis=0)
    made, there = synthetic.error_left_behind(still, true, truth)
    assert made == there > 0
    assert synthetic.error_left_behind(true, true, truth) == (0, there)
    erased = still.copy()
    erased[-1] = truth.background  # no object at all leaves nothing behind either
    assert synthetic.error_left_behind(erased, true, truth)[0] < 0.01 * there


def test_objects_stay_in_the_frame_and_the_background_stands_still():
  source = synthetic.Shapes(size=64, speeds=("quick",))
  for i in range(200):
    truth = source.truth(i)
    moved = np.abs(source[i].video.astype(int) - truth.background).max((0, 3)) > 0
    edge = np.concatenate([moved[0], moved[-1], moved[:, 0], moved[:, -1]])
    assert moved.any() and not edge.any(), source.caption(i)


def test_every_motion_does_what_it_is_called():
  for motion in synthetic.MOTIONS:
    source = synthetic.Shapes(9, 64, motions=(motion,), shapes=("triangle",), textures=("plain",))
    for i in range(6):
      truth, clip = source.truth(i), source[i]
      area = (np.abs(clip.video.astype(int) - truth.background).sum(-1) > 60).sum((1, 2))
      offset = truth.path - truth.path[0]
      if motion == "grow":
        assert (np.diff(area) > 0).all() and area[-1] > 1.5 * area[0]
      elif motion == "shrink":
        assert (np.diff(area) < 0).all() and area[0] > 1.5 * area[-1]
      elif motion == "bounce":
        assert offset[:, 1].min() < -0.15 and offset[:, 1].max() < 0.01
        assert np.abs(offset[:, 0]).max() < 0.01
      elif motion.startswith("orbit"):
        assert (offset[1, 0] > 0.01) == (motion == "orbit clockwise") and offset[:, 1].max() > 0.1
      elif motion.startswith("spin"):
        assert np.abs(offset).max() < 0.02
        assert np.abs(clip.video[0].astype(int) - clip.video[-1]).max() > 60
      else:
        assert truth.direction == motion


def test_spins_turn_the_way_they_are_called():
  source = synthetic.Shapes(5, 64, motions=("spin clockwise", "spin counter-clockwise"))
  source.shapes = ("bar",)
  for i in range(20):
    truth, angles = source.truth(i), []
    for frame in source[i].video:
      y, x = np.nonzero(np.abs(frame.astype(int) - truth.background).sum(-1) > 60)
      angles.append(0.5 * np.arctan2(2 * np.cov(x, y)[0, 1], np.var(x) - np.var(y)))
    steps = (np.diff(angles) + np.pi / 2) % np.pi - np.pi / 2
    # y points down, so a growing angle is clockwise on the screen.
    assert (steps > 0).all() if truth.motion == "spin clockwise" else (steps < 0).all()


def test_first_frames_say_nothing_about_the_motion():
  """Whatever motions and speeds are asked for, clip i begins with the same frame."""
  left = synthetic.Shapes(motions=("left",), speeds=("quick",))
  grow = synthetic.Shapes(motions=("grow", "orbit clockwise"), speeds=("slow",))
  for i in range(20):
    np.testing.assert_array_equal(left[i].video[0], grow[i].video[0])


def test_captions_determine_the_motion():
  """Same scene, same caption, same clip."""
  a = synthetic.Shapes(motions=("left",), speeds=("quick",))
  b = synthetic.Shapes(motions=("left", "left"), speeds=("quick", "quick"))
  for i in range(10):
    assert a.caption(i) == b.caption(i)
    np.testing.assert_array_equal(a[i].video, b[i].video)


def test_unknown_names_are_refused_in_one_sentence():
  with pytest.raises(ValueError, match="data.motions has no 'fly'; there are right, "):
    synthetic.Shapes(motions=("fly",))
  with pytest.raises(ValueError, match="data.split has no 'test'"):
    synthetic.Shapes(split="test")
  assert synthetic.Shapes(motions="right").motions == ("right",)
  with pytest.raises(ValueError, match="show no rotation"):
    synthetic.Shapes(motions=("spin clockwise",), shapes=("circle",))
  with pytest.raises(IndexError):
    synthetic.Shapes(clips=3)[3]
