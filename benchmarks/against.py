"""What the synthetic set knows of generated clips: errors against the truth, direction, what is left behind."""

import collections

import numpy as np

from fbjax.data import synthetic


def of_shapes(videos, truth, truths) -> dict[str, float | dict[str, float]]:
  """What the synthetic set knows of its clips."""
  agree = [synthetic.direction_agrees(*x) for x in zip(videos, truths, strict=True)]
  agree = [x for x in agree if x is not None]
  each = zip(videos, truth, truths, strict=True)
  made, there = np.sum([synthetic.error_left_behind(*x) for x in each], axis=0)
  of_motion, rests = collections.defaultdict(list), []
  for video, true, known in zip(videos, truth, truths, strict=True):
    rests.append(squares(video, true)[:, ~np.any(true != true[:1], axis=(0, -1))].ravel())
    kind = "straight" if known.direction else known.motion.split()[0]
    of_motion[kind].append((squares(video, true).mean(), squares(true[:1], true).mean()))
  ratios = {kind: float(np.divide(*np.sum(x, axis=0))) for kind, x in sorted(of_motion.items())}
  grain = float(np.concatenate(rests).mean() ** 0.5 * 127.5)
  found = {"left_behind": float(made / there), "grain": grain, "ratios": ratios}
  return found | ({"agree": float(np.mean(agree))} if agree else {})


def mean_error(videos: np.ndarray, truth: np.ndarray) -> np.floating:
  """Clip by clip, since a thousand clips in floats are too much at once."""
  return np.mean([squares(*x).mean() for x in zip(videos, truth, strict=True)])


def squares(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Squared errors of pixels in [-1, 1]."""
  return np.square((video.astype(np.float32) - truth) / 127.5)
