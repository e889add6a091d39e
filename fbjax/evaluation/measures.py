"""Metrics of sets of clips, each with an error bar, accumulated over batches.

Of each clip only its values and features are kept. Besides the generated clips, all is measured for
the still image, the first frame of the true clip repeated: a baseline without which a table
flatters every model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from fbjax import processes
from fbjax.evaluation import images, motion
from fbjax.evaluation.numbers import Number, mean, ratio

Clips = UInt8[np.ndarray, "n t h w 3"]

OF_CLIPS = {
  "motion": motion.motion,
  "static": lambda clips: motion.is_static(clips).astype(np.float64),
  "colour_drift": motion.colour_drift,
  "flicker": motion.flicker,
}


class Batch(NamedTuple):
  """Clips of one set, and what goes with each; None where there is none.

  given: the image that the clip goes on from. truth: the clip that it should have become. captions: what
  it should show.
  """

  clips: Clips
  given: UInt8[np.ndarray, "n h w 3"] | None = None
  truth: Clips | None = None
  captions: Sequence[str] | None = None


class Metric(NamedTuple):
  """A metric that is computed with a network.

  of: values or features of each clip, of any shape; None where the batch lacks what it compares
  with. numbers: metrics by name, from these of a set and those of the truth, which may be None.
  """

  of: Callable[[Batch], Float[np.ndarray, "n *rest"] | None]
  numbers: Callable[
    [Float[np.ndarray, "n *rest"], Float[np.ndarray, "m *rest"] | None], dict[str, Number]
  ]


class Measures:
  """Accumulates metrics of generated clips, the still image and true clips, batch by batch.

  motion             mean change from frame to frame beyond that of grain, in grey levels of 255
  motion_ratio       mean motion of the clips / mean motion of the truth
  static             share of clips in which nothing moves
  colour_drift       change of the mean colour from first to last frame, in grey levels
  flicker            changes of brightness that the next frame takes back, in grey levels
  first_frame_psnr   dB, of the first frame against the truth's
  psnr, ssim         of the frames after the first, which was given, against the truth's

  and those of networks, see `metrics`.
  """

  def __init__(self, *, paired: bool, metrics: Mapping[str, Metric] | None = None):
    """
    Args:
      paired: whether made clip i continues the first frame of true clip i: psnr and ssim compare
        the two.
      metrics: those computed with networks, by name; names of the table above are taken.
    """
    self._paired, self._metrics = paired, dict(metrics or {})
    self._found: dict[str, dict[str, list[np.ndarray]]] = {"made": {}, "still": {}, "truth": {}}

  def add(
    self,
    made: Clips | None,
    truth: UInt8[np.ndarray, "m t h w 3"] | None,
    captions: Sequence[str] | None = None,
    true_captions: Sequence[str] | None = None,
  ) -> None:
    """Measures a batch; if not paired, `made` and `truth` may differ in n, or one may be None."""
    if truth is not None:
      first = truth[:, 0]
      still = np.repeat(truth[:, :1], truth.shape[1], axis=1)
      self._add("truth", Batch(truth, first, None, true_captions))
      self._add("still", Batch(still, first, truth, true_captions))
    if made is not None:
      pair = (truth[:, 0], truth) if self._paired and truth is not None else (None, None)
      self._add("made", Batch(made, *pair, captions))

  def gather(self) -> None:
    """Gathers the values of all processes on each of them, in the order of the processes."""
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

  def _add(self, name: str, batch: Batch) -> None:
    found = {key: of(batch.clips) for key, of in OF_CLIPS.items()}
    if batch.truth is not None:
      found |= _of_pairs(batch.clips, batch.truth)
    found = {key: np.asarray(values, np.float64) for key, values in found.items()}
    found |= {key: metric.of(batch) for key, metric in self._metrics.items()}
    for key, values in found.items():
      if values is not None:
        self._found[name].setdefault(key, []).append(values)

  def _of(self, sets: dict[str, dict[str, np.ndarray]], name: str) -> dict[str, Number]:
    own, truth = sets[name], sets.get("truth", {})
    numbers = {key: mean(values) for key, values in own.items() if key not in self._metrics}
    if name != "truth" and truth:
      numbers["motion_ratio"] = ratio(own["motion"], truth["motion"], paired=self._are_pairs(name))
    for key, metric in self._metrics.items():
      if key in own:
        numbers |= metric.numbers(own[key], None if name == "truth" else truth.get(key))
    return numbers

  def _are_pairs(self, name: str) -> bool:
    return self._paired or name == "still"


_psnr, _ssim = jax.jit(images.psnr), jax.jit(images.ssim)


def _of_pairs(clips: Clips, truth: Clips) -> dict[str, np.ndarray]:
  """Values of each clip against its truth."""
  psnr = np.asarray(_psnr(clips, truth))
  found = {"first_frame_psnr": psnr[:, 0]}
  if clips.shape[1] > 1:
    found["psnr"] = psnr[:, 1:].mean(1)
  if clips.shape[1] > 1 and min(clips.shape[2:4]) >= images.WINDOW:
    found["ssim"] = np.asarray(_ssim(clips[:, 1:], truth[:, 1:])).mean(1)
  return found


def _joined(values: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
  return {key: np.concatenate(parts) for key, parts in values.items()}
