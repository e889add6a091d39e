"""Samplers, each a table of coefficients, and the one scan that runs them all (reference §3).

Every sampler of a linear bridge asks a denoiser for z0 at some time and then moves to a fixed
linear combination of what it knows. So a sampler is a table with a row per evaluation,

  zt <- zt_coef zt + base_coef base + z1_coef z1
        + pred_coef z0_hat + pred1_coef z0_hat_before + pred2_coef z0_hat_two_before
        + noise_coef noise,

made on the host in float64, and sampling is `jax.lax.scan` over its rows. `base` is the state a
two-stage step began with. The last row returns z0_hat. Each function below writes one table and
is, by the decorator, a sampler of the signature

  sampler(process, denoise, z1, times, keys, *, start="noise", **its options) -> z0

  denoise  (zt, time of shape "b") -> z0_hat; guidance and alignment are inside (`denoiser`)
  times    decreasing numpy array in (0, 1), see `grids`
  keys     one PRNG key per clip: a clip's noise depends on its key alone, not on its batch; or
           the noise itself, "n b ...", row by row, to repeat a recorded run
  start    "noise": z1 plus the noise of the first time (§3.3 B; with a first time next to 1 and
           one more evaluation, C); "published": z1 itself; or the state at the first time

First-order tables ask of a process only its marginal and posterior, so a `diffusion.Diffusion` is
sampled by the same rows: they are then DDIM and DDPM.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fbjax.bridge import process as process_lib

Process = process_lib.Process
Denoise = Callable[[Array, Array], Array]
Grid = Float[np.ndarray, "n"]
Column = Float[np.ndarray | Array, "rows"]


class Table(NamedTuple):
  """One row per evaluation of the network; NFE is the number of rows."""

  time: Column
  zt: Column
  base: Column
  z1: Column
  pred: Column
  pred1: Column
  pred2: Column
  noise: Column
  keep: Column  # 1 where the state before the move becomes the base


def row(time, zt=0.0, base=0.0, z1=0.0, pred=0.0, pred1=0.0, pred2=0.0, noise=0.0, keep=0.0):
  """One row of a table; what is not named is 0."""
  return Table(time, zt, base, z1, pred, pred1, pred2, noise, keep)


def stack(rows: list[Table]) -> Table:
  """A table of rows."""
  return Table(*(np.array([float(x) for x in column]) for column in zip(*rows, strict=True)))


def run(
  table: Table,
  denoise: Denoise,
  zt: Float[Array, "b *d"],
  z1: Float[Array, "b *d"],
  keys: Key[Array, "b"] | Float[Array, "n b *d"],
) -> Float[Array, "b *d"]:
  """Runs a table from the state zt: one scan, one evaluation of `denoise` per row."""
  # A table known on the host tells whether noise is drawn at all.
  stochastic = not isinstance(table.noise, np.ndarray) or np.any(table.noise)
  table = jax.tree.map(lambda column: jnp.asarray(column, zt.dtype), table)

  def body(carry, indexed):
    zt, base, pred1, pred2 = carry
    index, row = indexed
    pred = denoise(zt, jnp.full(zt.shape[:1], row.time))
    moved = row.zt * zt + row.base * base + row.z1 * z1
    moved += row.pred * pred + row.pred1 * pred1 + row.pred2 * pred2
    if stochastic:
      moved += row.noise * draw(keys, index, zt)
    base = jnp.where(row.keep > 0, zt, base)
    return (moved, base, pred, pred1), None

  zeros = jnp.zeros_like(zt)
  indices = jnp.arange(table.time.shape[0])
  (z0, *_), _ = jax.lax.scan(body, (zt, zt, zeros, zeros), (indices, table))
  return z0


def draw(
  keys: Key[Array, "b"] | Float[Array, "n b *d"], index: Array | int, like: Float[Array, "b *d"]
) -> Float[Array, "b *d"]:
  """The standard normal noise of row `index`, clip by clip."""
  if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
    return jnp.asarray(keys, like.dtype)[index]
  shape = like.shape[1:]
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, like.dtype))(
    keys
  )


def start_state(
  process: Process,
  z1: Float[Array, "b *d"],
  time: float,
  keys: Key[Array, "b"] | Float[Array, "n b *d"],
  start: Literal["noise", "published"] | Float[Array, "b *d"],
) -> Float[Array, "b *d"]:
  """The state at the first time (§3.3)."""
  if not isinstance(start, str):
    return start
  if start == "published":
    return z1
  if start != "noise":
    raise ValueError(f"no start named {start!r}; use noise, published or give the state")
  if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
    raise ValueError("recorded noise covers the steps only; give the starting state as `start`")
  # Rows count from 0; the start takes a number that no row has.
  noise = draw(keys, 2**31 - 1, z1)
  return process.start(z1, jnp.full(z1.shape[:1], time, z1.dtype), noise)


def sampler(table_of: Callable[..., Table]):
  """Turns (process, times, *, options) -> table into a sampler; `.table` keeps the original."""

  @functools.wraps(table_of)
  def sample(process, denoise, z1, times, keys, *, start="noise", **options):
    # The table is made for the times that the network will be told, rounding included.
    times = np.asarray(times).astype(z1.dtype).astype(np.float64)
    if times.ndim != 1 or np.any(np.diff(times) >= 0):
      raise ValueError("times must be one decreasing row; make them with bridge.grids")
    if isinstance(process, process_lib.Bridge) and not (times[-1] > 0 and times[0] < 1):
      raise ValueError(
        f"times must lie inside (0, 1), not [{times[-1]}, {times[0]}]: at 1 the noise has no scale,"
        " at 0 nothing is left to sample"
      )
    zt = start_state(process, z1, times[0], keys, start)
    return run(table_of(process, times, **options), denoise, zt, z1, keys)

  sample.table = table_of
  return sample


def first_order(process: Process, start: Grid, end: Grid, eta: Grid) -> tuple[Grid, ...]:
  """Coefficients of (zt, z0_hat, z1, noise) of the first-order family from start to end (§3.1).

  noise = eta std, with std the posterior's. The published k = sqrt(c_t^2 - noise^2) / c_s is
  k^2 = (1 - eta^2) (c_t / c_s)^2 + eta^2 k_sde^2, which does not cancel.
  """
  a_s, b_s, c_s = process.marginal(start)
  a_t, b_t, c_t = process.marginal(end)
  posterior = process.posterior(start, end)
  k = np.sqrt((1 - eta**2) * (c_t / c_s) ** 2 + (eta * posterior.zs) ** 2)
  return k, a_t - k * a_s, b_t - k * b_s, eta * posterior.std


@sampler
def eta(process: Process, times: Grid, *, eta: float | Grid = 1.0) -> Table:
  """The first-order family (§3.1): eta 1 is the reverse SDE, eta 0 the probability flow.

  `eta` may differ from step to step. Every eta keeps the marginals. NFE n.
  """
  steps = np.broadcast_to(np.asarray(eta, np.float64), len(times) - 1)
  k, pred, z1, noise = first_order(process, times[:-1], times[1:], steps)
  rows = [
    row(times[i], zt=k[i], pred=pred[i], z1=z1[i], noise=noise[i]) for i in range(len(times) - 1)
  ]
  return stack([*rows, row(times[-1], pred=1)])


@sampler
def sde(process: Process, times: Grid) -> Table:
  """First-order bridge SDE, the sampler of all released models (§3.1, eta = 1). NFE n."""
  return eta.table(process, times, eta=1.0)


@sampler
def ode(process: Process, times: Grid) -> Table:
  """Euler's rule for the probability flow, exact where z0_hat is constant (§3.1, eta = 0). NFE n.

  With y = (zt - b z1) / c and r = a / c the flow is dy / dr = z0_hat; the step is Euler's in r.
  """
  return eta.table(process, times, eta=0.0)
