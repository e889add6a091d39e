"""What can be said of generated clips, each number with its error.

Clips come in batches and are not kept: of each only its numbers and its features are. Beside the clips
that were made, the same is said of the still image, the truth's first frame repeated, since a table
without that row flatters every model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from fbjax import processes
from fbjax.evaluation import frechet, images, motion

Clips = UInt8[np.ndarray, "n t h w 3"]
Features = Callable[[Clips], Float[np.ndarray, "n d"]]

OF_CLIPS = {
  "motion": motion.motion,
  "static": lambda clips: motion.is_static(clips).astype(np.float64),
  "colour_drift": motion.colour_drift,
  "flicker": motion.flicker,
}
DRAWS = 200  # of the bootstrap of a ratio


class Number(NamedTuple):
  """A measured value; `error` is its standard deviation over other draws of as many clips."""

  value: float
  error: float


class Measures:
  """Numbers of sets of clips, batch by batch.

  motion             mean change from frame to frame beyond that of grain, in grey levels of 255
  motion_ratio       that of the clips, in that of the truth
  static             share of clips of which nothing moves
  colour_drift       change of the mean colour from first to last frame, in grey levels
  flicker            changes of brightness that the next frame takes back, in grey levels
  first_frame_psnr   dB, of the first frame against the truth's
  psnr, ssim         of the frames behind the first, which was given, against the truth's
  fvd                Fréchet distance to the truth of `features`
  fvd_infinite       that of infinitely many clips (arXiv:1911.07023)
  """

  def __init__(self, *, paired: bool, features: Features | None = None, unbiased: bool = False):
    """
    Args:
      paired: whether a made clip has the truth at the same place: it has its first frame, and psnr and
        ssim compare the two.
      features: of clips, for the Fréchet distance; None goes without.
      unbiased: see `frechet.distance`.
    """
    self._paired, self._features, self._unbiased = paired, features, unbiased
    self._found: dict[str, dict[str, list[np.ndarray]]] = {"made": {}, "still": {}, "truth": {}}

  def add(self, made: Clips | None, truth: UInt8[np.ndarray, "m t h w 3"] | None) -> None:
    """Measures clips; without pairs the two may be of other numbers, or only one there."""
    if truth is not None:
      self._add("truth", truth, None)
      self._add("still", np.repeat(truth[:, :1], truth.shape[1], axis=1), truth)
    if made is not None:
      self._add("made", made, truth if self._paired else None)

  def gather(self) -> None:
    """Takes in what all processes have measured: the clips of the first, then those of the second."""
    parts = processes.gather({name: _joined(values) for name, values in self._found.items()})
    for name, found in self._found.items():
      found.clear()
      for part in parts:
        for key, values in part[name].items():
          found.setdefault(key, []).append(values)

  def numbers(self) -> dict[str, dict[str, Number]]:
    """All numbers, by whose clips they are of: "made", "still" and "truth"."""
    sets = {name: _joined(values) for name, values in self._found.items() if values}
    return {name: self._of(sets, name) for name in sets}

  def _add(self, name: str, clips: Clips, truth: Clips | None) -> None:
    found = {key: of(clips) for key, of in OF_CLIPS.items()}
    if truth is not None:
      psnr = np.asarray(_psnr(clips, truth))
      found["first_frame_psnr"] = psnr[:, 0]
      if clips.shape[1] > 1:
        found["psnr"] = psnr[:, 1:].mean(1)
      if clips.shape[1] > 1 and min(clips.shape[2:4]) >= images.WINDOW:
        found["ssim"] = np.asarray(_ssim(clips[:, 1:], truth[:, 1:])).mean(1)
    if self._features is not None:
      found["features"] = self._features(clips)
    for key, values in found.items():
      self._found[name].setdefault(key, []).append(np.asarray(values, np.float64))

  def _of(self, sets: dict[str, dict[str, np.ndarray]], name: str) -> dict[str, Number]:
    own, truth = sets[name], sets.get("truth", {})
    numbers = {key: mean(values) for key, values in own.items() if key != "features"}
    if name == "truth" or not truth:
      return numbers
    numbers["motion_ratio"] = ratio(own["motion"], truth["motion"], paired=self._are_pairs(name))
    if self._features is not None:
      there, here = truth["features"], own["features"]
      value = frechet.distance(*map(frechet.statistics, (there, here)), unbiased=self._unbiased)
      error = frechet.error_bar(there, here, unbiased=self._unbiased)
      numbers["fvd"] = Number(value, error)
      infinite = frechet.of_infinite_samples(there, here, unbiased=self._unbiased)
      numbers["fvd_infinite"] = Number(infinite, error)
    return numbers

  def _are_pairs(self, name: str) -> bool:
    return self._paired or name == "still"


_psnr, _ssim = jax.jit(images.psnr), jax.jit(images.ssim)


def _joined(values: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
  return {key: np.concatenate(parts) for key, parts in values.items()}


def mean(values: Float[np.ndarray, " n"]) -> Number:
  """The mean of clips, and its standard error."""
  n = len(values)
  return Number(float(values.mean()), float(values.std(ddof=1) / n**0.5) if n > 1 else 0.0)


def ratio(
  made: Float[np.ndarray, " n"], truth: Float[np.ndarray, " m"], *, paired: bool, seed: int = 0
) -> Number:
  """Mean over mean, with its deviation over bootstrapped clips; 1 where there is nothing on top either."""

  def of(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() / b.mean()) if b.mean() else 1.0

  rng = np.random.default_rng(seed)
  draws = []
  for _ in range(DRAWS):
    rows = rng.integers(0, len(made), len(made))
    others = rows if paired else rng.integers(0, len(truth), len(truth))
    draws.append(of(made[rows], truth[others]))
  return Number(of(made, truth), float(np.std(draws, ddof=1)))
