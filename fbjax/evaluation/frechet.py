"""The Fréchet distance of two sets of features, with error bars and without the bias of few samples.

A set is kept as its mean and a triangular root of its scatter, never as a covariance: squaring would
lose half the digits. So the distance of a set to itself is zero to rounding, also of fewer samples than
dimensions, where matrix square roots are off. All of it is float64, on the host: features are small.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fbjax import errors


class Statistics(NamedTuple):
  """Count and mean of a set of features, and a triangular root r of its scatter matrix.

  r^T r is the sum of (x - mean)(x - mean)^T over the set, so r / sqrt(count - 1) is a root of its
  unbiased covariance.
  """

  count: int
  mean: Float[np.ndarray, " d"]
  root: Float[np.ndarray, "k d"]


def statistics(features: Float[np.ndarray, "n *k d"]) -> Statistics:
  """Statistics of a set of features; axes between the first and the last count as further samples.

  Raises:
    UserError: for fewer than two, or any that is not finite.
  """
  x = np.asarray(features, np.float64).reshape(-1, features.shape[-1])
  if len(x) < 2:
    raise errors.UserError(f"a Fréchet distance needs two samples at least, and there are {len(x)}")
  if not np.isfinite(x).all():
    raise errors.UserError("a Fréchet distance needs finite features, and some are not")
  mean = x.mean(0)
  return Statistics(len(x), mean, np.linalg.qr(x - mean, mode="r"))


def merge(a: Statistics, b: Statistics) -> Statistics:
  """Statistics of two sets together."""
  count = a.count + b.count
  between = np.sqrt(a.count * b.count / count) * (b.mean - a.mean)
  root = np.linalg.qr(np.concatenate([a.root, b.root, between[None]]), mode="r")
  return Statistics(count, a.mean + (b.mean - a.mean) * (b.count / count), root)


def distance(a: Statistics, b: Statistics, *, unbiased: bool = True) -> float:
  """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B; never negative.

  The trace of the root of A B is the sum of the singular values of the product of their roots.

  Args:
    a, b: two sets.
    unbiased: divides by count - 1; otherwise by count.
  """
  x, y = (s.root / np.sqrt(s.count - unbiased) for s in (a, b))
  common = np.linalg.svd(x @ y.T, compute_uv=False).sum()
  apart = np.square(a.mean - b.mean).sum() + np.square(x).sum() + np.square(y).sum()
  return max(float(apart - 2 * common), 0.0)


def error_bar(
  real: Float[np.ndarray, "n *k d"],
  made: Float[np.ndarray, "m *k d"],
  *,
  draws: int = 20,
  seed: int = 0,
  unbiased: bool = True,
) -> float:
  """Bootstrap standard deviation of the distance, over `draws` resamples of `made`.

  `real` is not resampled.
  """
  rng, there = np.random.default_rng(seed), statistics(real)
  found = [
    distance(there, statistics(made[rng.integers(0, len(made), len(made))]), unbiased=unbiased)
    for _ in range(draws)
  ]
  return float(np.std(found, ddof=1))


def of_infinite_samples(
  real: Float[np.ndarray, "n *k d"],
  made: Float[np.ndarray, "m *k d"],
  *,
  sizes: Sequence[float] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
  draws: int = 5,
  seed: int = 0,
  unbiased: bool = True,
) -> float:
  """The distance extrapolated linearly in 1 / samples to infinitely many (arXiv:1911.07023).

  Args:
    real, made: features; subsets of both are drawn without replacement.
    sizes: of the subsets, as shares of the whole.
    draws: of each size.
    seed: of the draws.
    unbiased: as `distance`.
  """
  rng = np.random.default_rng(seed)
  inverse, found = [], []
  for share in sizes:
    for _ in range(draws if share < 1 else 1):
      some = [x[rng.permutation(len(x))[: max(2, round(share * len(x)))]] for x in (real, made)]
      inverse.append(np.mean([1 / len(x) for x in some]))
      found.append(distance(*map(statistics, some), unbiased=unbiased))
  _, end = np.polyfit(inverse, found, 1)
  return float(end)
