import numpy as np
import pytest

from fbjax.data import synthetic
from fbjax.evaluation import motion


@pytest.fixture(scope="module")
def clips():
  source = synthetic.Shapes(
    split="val", frames=8, size=48, motions=("right", "down", "spin clockwise")
  )
  return np.stack([source[i].video for i in range(6)])


def still(clips):
  return np.repeat(clips[:, :1], clips.shape[1], axis=1)


def half(clips):
  """Half as fast: every frame twice."""
  return np.repeat(clips[:, : clips.shape[1] // 2], 2, axis=1)


def noisy(clips, level=3):
  rng = np.random.default_rng(0)
  return np.clip(clips + rng.normal(0, level, clips.shape), 0, 255).astype(np.uint8)


def test_the_truth_is_as_the_truth(clips):
  found = motion.report(clips, clips)
  assert found["motion_ratio"] == 1 and found["static_share"] == 0
  assert found["first_frame_psnr"] == 100 and found["colour_drift"] == found["flicker"] == 0


def test_what_stands_still_is_seen_whatever_grain_there_is(clips):
  for made in (still(clips), np.repeat(noisy(clips[:, :1], 1), 8, axis=1)):
    found = motion.report(made, clips)
    assert found["static_share"] == 1 and found["motion_ratio"] < 0.02
  assert motion.report(noisy(still(clips)), clips)["motion_ratio"] < 0.1
  assert motion.report(noisy(clips), clips)["motion_ratio"] == pytest.approx(1, abs=0.1)


def test_half_the_speed_is_half_the_motion(clips):
  assert motion.report(half(clips), clips)["motion_ratio"] == pytest.approx(0.5, abs=0.12)
  assert motion.report(half(clips), clips)["static_share"] == 0


def test_drift_is_of_the_colour_and_flicker_of_what_goes_back(clips):
  ramp = np.linspace(0, 40, 8).reshape(1, 8, 1, 1, 1)
  drifting = np.clip(clips * 0.7 + ramp, 0, 255).astype(np.uint8)
  calm = (clips * 0.7).astype(np.uint8)
  assert motion.report(drifting, calm)["colour_drift"] == pytest.approx(40, abs=2)
  assert abs(motion.report(drifting, calm)["flicker"]) < 0.3
  blinking = np.clip(calm + 10 * (np.arange(8) % 2).reshape(1, 8, 1, 1, 1), 0, 255).astype(np.uint8)
  assert motion.report(blinking, calm)["flicker"] == pytest.approx(10, abs=1)
  assert motion.report(clips[:, :1], clips[:, :1])["flicker"] == 0
