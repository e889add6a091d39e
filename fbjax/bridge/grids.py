"""Time grids: decreasing float64 times at which a sampler asks for z0 (§3.2).

Bridge times lie in (0, 1). A network is trained at N = `steps` of them (released models: 1000),
index i = 0..N-1 at time (i + 1) / (N + 1). Training, alignment and sampling must use the same N;
processes are continuous in time and do not depend on it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fbjax.bridge import process as process_lib

Grid = Float[np.ndarray, "n"]
Times = process_lib.Times

STEPS = 1000
# Where continuous grids begin and end unless told otherwise. At LAST the noise of bridge-gmax is
# 0.05, which the last evaluation removes; ending nearer to 0 spends evaluations on what no error
# measures (benchmarks/samplers.py).
FIRST, LAST = 1 - 1e-3, 1e-2


def time_of(index: Times, steps: int = STEPS) -> Times:
  """Bridge time of an index, (i + 1) / (N + 1) (§1.2)."""
  return (index + 1) / (steps + 1)


def index_of(time: Times, steps: int = STEPS) -> Times:
  """Index of a bridge time, a fraction between two of the N (§1.2)."""
  return time * (steps + 1) - 1


def draw(key: Key[Array, ""], batch: int, steps: int = STEPS) -> Float[Array, "b"]:
  """Random training times: indices uniform over 0..N-1 (§1.2)."""
  return time_of(jax.random.randint(key, (batch,), 0, steps).astype(jnp.float32), steps)


def trailing_indices(n: int, steps: int = STEPS) -> Int[np.ndarray, "n"]:
  """uniform_trailing: from N - 1 down in steps of N / n (§3.2); n=50 gives 999, 979, ..., 19."""
  return np.round(steps - np.arange(n) * steps / n).astype(int) - 1


def uniform_indices(n: int, steps: int = STEPS) -> Int[np.ndarray, "n"]:
  """DDIM's uniform: 1 up in steps of N // n, reversed (§3.2); n=50 gives 981, 961, ..., 1.

  More than n where N // n is rounded down: n=48 gives the 50 of n=50.
  """
  indices = np.arange(0, steps, steps // n)[::-1] + 1
  if indices[0] >= steps:
    raise ValueError(f"a uniform grid of {n} in {steps} steps leaves the range; use trailing")
  return indices


def latte_indices(n: int, steps: int = STEPS) -> Int[np.ndarray, "n"]:
  """Latte's respacing: both ends and evenly between (§3.2); n=50 gives 999, 979, ..., 20, 0."""
  if n < 2:
    raise ValueError("latte's indices have both ends: at least 2")
  stride = (steps - 1) / (n - 1)
  # Added up, not multiplied: halves round the way the reference's sum does.
  ups = np.concatenate([[0.0], np.cumsum(np.full(n - 1, stride))])
  return np.round(ups).astype(int)[::-1]


def trailing(n: int, steps: int = STEPS) -> Grid:
  """Times of the published grid of all released models (§3.2)."""
  return time_of(trailing_indices(n, steps).astype(np.float64), steps)


def uniform(n: int, first: float = FIRST, last: float = LAST) -> Grid:
  """Equal steps in time (DBIM, §3.7)."""
  return np.linspace(first, last, n)


def log_snr(process: process_lib.Bridge, n: int, first: float = FIRST, last: float = LAST) -> Grid:
  """Equal steps in log-SNR, in which the high orders of DBIM are polynomial (§3.7)."""
  ends = process.log_snr(np.array([first, last]))
  times = process.time_of_log_snr(np.linspace(*ends, n))
  times[0], times[-1] = first, last
  return times


def karras(n: int, first: float = FIRST, last: float = LAST, rho: float = 7.0) -> Grid:
  """Equal steps in time^(1 / rho) (DDBM, §3.8)."""
  if rho <= 0:
    raise ValueError(f"rho is {rho}; expected a number above 0")
  return np.linspace(first ** (1 / rho), last ** (1 / rho), n) ** rho


def towards_prior(u: Times, shift: float) -> Times:
  """Timestep shift u -> shift u / (1 + (shift - 1) u) (arXiv:2403.03206, eq. 23).

  A shift above 1 moves times towards the prior.
  """
  return shift * u / (1 + (shift - 1) * u)


def shifted(n: int, shift: float, first: float = FIRST, last: float = LAST) -> Grid:
  """Timestep shift (`towards_prior`) of a uniform grid; it begins at `first` and ends at `last`."""
  if shift <= 0:
    raise ValueError(f"shift is {shift}; expected a number above 0")
  u = np.linspace(*(time / (shift - (shift - 1) * time) for time in (first, last)), n)
  return towards_prior(u, shift)


def boot(times: Grid, first: float = 1 - 5e-5) -> Float[np.ndarray, "n+1"]:
  """Prepends the time `first`, next to 1, where z0 has almost no weight in the state (§3.3 C).

  With `start="noise"` the aligned input is then almost pure noise, as at the noisiest time of
  pretraining, and the first z0_hat hardly depends on a guess of z0.
  """
  return np.concatenate([[first], times])
