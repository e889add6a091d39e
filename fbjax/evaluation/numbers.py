"""Measured values with their errors."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

DRAWS = 200  # of the bootstrap of a ratio


class Number(NamedTuple):
  """A measured value; `error` is its standard deviation over other draws of as many clips."""

  value: float
  error: float


def mean(values: Float[np.ndarray, " n"]) -> Number:
  """The mean of clips, and its standard error."""
  n = len(values)
  return Number(float(values.mean()), float(values.std(ddof=1) / n**0.5) if n > 1 else 0.0)


def ratio(
  made: Float[np.ndarray, " n"], truth: Float[np.ndarray, " m"], *, paired: bool, seed: int = 0
) -> Number:
  """mean(made) / mean(truth), with its bootstrap standard deviation over clips.

  1 where mean(truth) is 0. `paired` resamples clips of both together.
  """

  def of(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() / b.mean()) if b.mean() else 1.0

  rng = np.random.default_rng(seed)
  draws = []
  for _ in range(DRAWS):
    rows = rng.integers(0, len(made), len(made))
    others = rows if paired else rng.integers(0, len(truth), len(truth))
    draws.append(of(made[rows], truth[others]))
  return Number(of(made, truth), float(np.std(draws, ddof=1)))
