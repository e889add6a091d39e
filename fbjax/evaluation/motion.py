"""Whether clips move, and whether they fall apart: what FVD hardly sees. No network is needed.

All is in grey levels of 255 and one number a clip. Frames are first averaged over squares, and small
changes of these are left out, so that grain, which is no motion, does not count as one.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from fbjax.evaluation import images

BLOCKS = 16  # squares along the shorter side of a frame
STILL = 0.5  # grey levels below which nobody sees anything move
FALL = 0.2  # of the motion, that is worth a warning
GRAIN = 2.0  # grey levels that a square changes by from frame to frame though nothing moves

Clips = UInt8[np.ndarray, "n t h w 3"]
PerClip = Float[np.ndarray, " n"]


def coarse(clips: Clips) -> Float[np.ndarray, "n t a b 3"]:
  """Frames averaged over squares, `BLOCKS` along the shorter side; float32."""
  n, t, h, w, _ = clips.shape
  side = max(1, min(h, w) // BLOCKS)
  a, b = h // side, w // side
  squares = clips[:, :, : a * side, : b * side].reshape(n, t, a, side, b, side, 3)
  return squares.mean((3, 5), dtype=np.float32)


def motion(clips: Clips) -> PerClip:
  """Mean change from one frame to the next beyond `GRAIN`; 0 for a clip of one frame."""
  x = coarse(clips)
  if x.shape[1] == 1:
    return np.zeros(len(x))
  return np.maximum(np.abs(np.diff(x, axis=1)) - GRAIN, 0).mean((1, 2, 3, 4))


def travel(clips: Clips) -> PerClip:
  """Largest change of any square from the first frame to any other."""
  x = coarse(clips)
  change = np.abs(x - x[:, :1]).mean(-1)
  return change.reshape(*change.shape[:2], -1).max((1, 2))


def is_static(clips: Clips) -> np.ndarray:
  """Whether nothing anywhere in a clip differs visibly from its first frame."""
  return travel(clips) < STILL


def colour_drift(clips: Clips) -> PerClip:
  """How far the mean colour of the last frame is from that of the first."""
  mean = clips.mean((2, 3), dtype=np.float64)
  return np.abs(mean[:, -1] - mean[:, 0]).mean(-1)


def flicker(clips: Clips) -> PerClip:
  """Mean change of the mean brightness that the next frame takes back; 0 below three frames."""
  step = np.diff(clips.mean((2, 3, 4), dtype=np.float64), axis=1)
  if step.shape[1] < 2:
    return np.zeros(len(clips))
  back = np.sign(step[:, 1:]) != np.sign(step[:, :-1])
  return (np.minimum(np.abs(step[:, 1:]), np.abs(step[:, :-1])) * back).mean(1)


def goes_static(ratio: float, most: float) -> bool:
  """Whether a motion ratio is below (1 - `FALL`) min(`most`, 1), `most` being its best so far."""
  return bool(ratio < (1 - FALL) * min(most, 1.0))


def report(made: Clips, truth: Clips) -> dict[str, float]:
  """Metrics that monitor a training, of generated clips against the true ones, pair by pair.

  motion_ratio       total motion of the clips / that of the true ones; 1 where that is 0
  static_share       share of clips in which nothing moves, among those whose truth moves
  first_frame_psnr   dB, of the first frame against the truth's
  colour_drift, flicker   mean difference to the true clips' in grey levels, negative if less
  """
  moves = ~is_static(truth)
  there = motion(truth).sum()
  return {
    "motion_ratio": float(motion(made).sum() / there) if there else 1.0,
    "static_share": float(is_static(made)[moves].mean()) if moves.any() else 0.0,
    "first_frame_psnr": float(images.psnr(*(jnp.asarray(x[:, 0]) for x in (made, truth))).mean()),
    "colour_drift": float((colour_drift(made) - colour_drift(truth)).mean()),
    "flicker": float((flicker(made) - flicker(truth)).mean()),
  }
