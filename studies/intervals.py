"""Means over seeds and ratios of two arms, with intervals that few seeds allow."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
  """A value and the ends of its interval of 95 %; these are nan for a single seed."""

  value: float
  low: float
  high: float

  def __str__(self) -> str:
    ends = "" if np.isnan(self.low) else f" ({figure(self.low)} to {figure(self.high)})"
    return f"{figure(self.value)}{ends}"


def mean(values: Sequence[float]) -> Interval:
  """The mean over seeds, Student's interval."""
  x = np.asarray(values, np.float64)
  half = _half(x)
  return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def ratio(over: Sequence[float], under: Sequence[float]) -> Interval:
  """The geometric mean of over / under, seed by seed, with Student's interval of the logarithm."""
  logs = np.log(np.asarray(over, np.float64)) - np.log(np.asarray(under, np.float64))
  half = _half(logs)
  return Interval(*(float(np.exp(logs.mean() + x)) for x in (0.0, -half, half)))


def _half(x: np.ndarray) -> float:
  """Half the width of Student's interval of the mean."""
  if len(x) < 2:
    return float("nan")
  return float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)


def figure(x: float) -> str:
  """Three digits that count."""
  return f"{x:.3g}" if abs(x) < 1000 else f"{x:.0f}"
