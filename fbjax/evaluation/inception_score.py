"""Inception score of videos, by the class probabilities of C3D on UCF-101 (TGAN v2).

As in Latte and StyleGAN-V (isv2048_ucf is of 2,048 clips): clips are shuffled with a fixed seed and
split into ten; the score of a split is exp(mean KL(p(class | clip) || p(class))), where p(class) is
the mean over the split.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fbjax.evaluation.numbers import Number
from fbjax.models import c3d

SEED, SPLITS = 42, 10
LEAST = 2 * SPLITS  # clips: that of a single one is 1 whatever it shows
FRAMES = c3d.FRAMES


def logits(
  network: Callable[[Array], Array], clips: UInt8[Array, "n t h w 3"]
) -> Float[Array, "n classes"]:
  """Class logits of clips; `network` is a `models.c3d.C3D`."""
  return network(clips.astype(jnp.float32) / 127.5 - 1)


def score(logits: Float[np.ndarray, "n classes"]) -> Number:
  """The mean of the ten splits and its standard error.

  Published tables give the standard deviation of the splits, which is sqrt(10) times as large.
  """
  x = np.asarray(logits, np.float64)
  x = x[np.random.RandomState(SEED).permutation(len(x))]
  log = x - x.max(1, keepdims=True)
  log -= np.log(np.exp(log).sum(1, keepdims=True))
  scores = [_of_part(part) for part in np.array_split(log, np.arange(1, SPLITS) * len(x) // SPLITS)]
  return Number(float(np.mean(scores)), float(np.std(scores, ddof=1) / SPLITS**0.5))


def _of_part(log: Float[np.ndarray, "n classes"]) -> float:
  p = np.exp(log)
  # A class that no clip may be of adds nothing, and has no logarithm.
  log_of_all = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))
  return float(np.exp((p * (log - log_of_all)).sum(1).mean()))
