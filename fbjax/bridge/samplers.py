"""Samplers, each a table of coefficients, and the one scan that runs them all (§3).

Every sampler of a linear bridge evaluates a denoiser for z0_hat at some time and then moves to a
fixed linear combination of states and evaluations. So a sampler is a table, a row per evaluation,

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
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fbjax.bridge import diffusion, grids
from fbjax.bridge import process as process_lib

Process = process_lib.Process
Denoise = Callable[[Array, Array], Array]
Grid = Float[np.ndarray, "n"]
PerStep = Float[np.ndarray, "steps"]
Column = Float[np.ndarray | Array, "rows"]


class Table(NamedTuple):
  """Coefficients of a sampler, one row per function evaluation: NFE is the number of rows."""

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
  """One row of a table; coefficients that are not given are 0."""
  return Table(time, zt, base, z1, pred, pred1, pred2, noise, keep)


def stack(rows: list[Table]) -> Table:
  """Stacks rows into a float64 table."""
  return Table(*(np.array([float(x) for x in column]) for column in zip(*rows, strict=True)))


class State(NamedTuple):
  """Carry of the scan over the rows of a table."""

  zt: Float[Array, "b *d"]
  base: Float[Array, "b *d"]
  pred: Float[Array, "b *d"]  # z0_hat of the row before
  pred1: Float[Array, "b *d"]  # and of the one before that


def begin(zt: Float[Array, "b *d"]) -> State:
  """The carry before the first row: `zt` is the base too, and earlier evaluations are zero."""
  zeros = jnp.zeros_like(zt)
  return State(zt, zt, zeros, zeros)


def move(
  row: Table,
  index: Array | int,
  state: State,
  denoise: Denoise,
  z1: Float[Array, "b *d"],
  keys: Key[Array, "b"] | Float[Array, "n b *d"],
  *,
  stochastic: bool = True,
) -> State:
  """Performs one row of a table, its columns scalars: evaluates `denoise` once and moves the state.

  `index` is the number of the row, folded into the keys of its noise. Without `stochastic` no noise
  is drawn.
  """
  zt, base, pred1, pred2 = state
  pred = denoise(zt, jnp.full(zt.shape[:1], row.time)).astype(zt.dtype)
  moved = row.zt * zt + row.base * base + row.z1 * z1
  moved += row.pred * pred + row.pred1 * pred1 + row.pred2 * pred2
  if stochastic:
    moved += row.noise * draw(keys, index, zt)
  return State(moved, jnp.where(row.keep > 0, zt, base), pred, pred1)


def run(
  table: Table,
  denoise: Denoise,
  zt: Float[Array, "b *d"],
  z1: Float[Array, "b *d"],
  keys: Key[Array, "b"] | Float[Array, "n b *d"],
) -> Float[Array, "b *d"]:
  """Runs a table from the state zt: one scan, one evaluation of `denoise` per row."""
  # A table known on the host tells whether noise is drawn at all.
  stochastic = not isinstance(table.noise, np.ndarray) or bool(np.any(table.noise))
  table = jax.tree.map(lambda column: jnp.asarray(column, zt.dtype), table)

  def body(state, indexed):
    index, row = indexed
    return move(row, index, state, denoise, z1, keys, stochastic=stochastic), None

  indices = jnp.arange(table.time.shape[0])
  return jax.lax.scan(body, begin(zt), (indices, table))[0].zt


def draw(
  keys: Key[Array, "b"] | Float[Array, "n b *d"], index: Array | int, like: Float[Array, "b *d"]
) -> Float[Array, "b *d"]:
  """Standard normal noise of row `index`: drawn with each clip's own key, or the recorded one.

  Raises:
    ValueError: for PRNG keys that are not one per clip.
  """
  if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
    return jnp.asarray(keys, like.dtype)[index]
  if keys.shape != like.shape[:1]:
    raise ValueError(f"{len(like)} clips need one key each, not keys of shape {keys.shape}")
  shape = like.shape[1:]
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, like.dtype))(
    keys
  )


def start_state(
  process: Process,
  z1: Float[Array, "b *d"],
  time: float | Float[Array, ""],
  keys: Key[Array, "b"] | Float[Array, "n b *d"],
  start: Literal["noise", "published"] | Float[Array, "b *d"],
) -> Float[Array, "b *d"]:
  """The state at the first time (§3.3); `start` is that of the samplers.

  Raises:
    ValueError: for another name, and for "noise" with recorded noise in place of keys.
  """
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


def told(times: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
  """Times rounded to `dtype`, as the network sees them, back in float64 for making the table."""
  return np.asarray(times).astype(dtype).astype(np.float64)


def sampler(table_of: Callable[..., Table]):
  """Decorator: makes a sampler of a function (process, times, *, options) -> table.

  The sampler keeps that function as `.table`. It raises a ValueError for times that do not decrease
  or, of a bridge, lie outside (0, 1).
  """

  @functools.wraps(table_of)
  def sample(process, denoise, z1, times, keys, *, start="noise", **options):
    # The state stays in float32 at least: its steps are small differences.
    z1 = jnp.asarray(z1, jnp.promote_types(z1.dtype, jnp.float32))
    times = told(times, z1.dtype)
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


def first_order_rows(process: Process, times: Grid, eta: float | PerStep) -> list[Table]:
  """Rows of the first-order family for the steps between consecutive times (§3.1).

  noise = eta std, with std the posterior's. The published k = sqrt(c_t^2 - noise^2) / c_s equals
  k^2 = (1 - eta^2) (c_t / c_s)^2 + eta^2 k_posterior^2, computed here: it has no cancellation.
  """
  eta = np.asarray(eta, np.float64)
  if not np.all((eta >= 0) & (eta <= 1)):
    raise ValueError(f"eta is {eta}; expected a number from 0 to 1")
  start, end = times[:-1], times[1:]
  a_s, b_s, c_s = process.marginal(start)
  a_t, b_t, c_t = process.marginal(end)
  posterior = process.posterior(start, end)
  k = np.sqrt((1 - eta**2) * (c_t / c_s) ** 2 + (eta * posterior.zs) ** 2)
  columns = start, k, a_t - k * a_s, b_t - k * b_s, eta * posterior.std
  return [
    row(time, zt=zt, pred=pred, z1=z1, noise=noise)
    for time, zt, pred, z1, noise in zip(*columns, strict=True)
  ]


@sampler
def first_order(process: Process, times: Grid, *, eta: float | PerStep = 1.0) -> Table:
  """The first-order family (§3.1): eta 1 is the reverse SDE, eta 0 the probability flow. NFE n.

  `eta` may differ from step to step. Every eta in [0, 1] keeps the marginals.
  """
  return stack([*first_order_rows(process, times, eta), row(times[-1], pred=1)])


@sampler
def sde(process: Process, times: Grid) -> Table:
  """First-order bridge SDE, the sampler of all released models (§3.1, eta = 1). NFE n."""
  return first_order.table(process, times, eta=1.0)


@sampler
def ode(process: Process, times: Grid) -> Table:
  """Euler's rule for the probability flow, exact for a constant z0_hat (§3.1, eta = 0). NFE n.

  With y = (zt - b z1) / c and r = a / c the flow is dy / dr = z0_hat; the step is Euler's in r.
  """
  return first_order.table(process, times, eta=0.0)


@sampler
def euler_maruyama(process: process_lib.Bridge, times: Grid) -> Table:
  """Euler-Maruyama for the reverse SDE, its noise corrected to the bridge's variance. NFE n.

  The plain noise g sqrt(dt) overshoots where the bridge narrows; here noise^2 = c_t^2 - k^2 c_s^2.
  For a Brownian bridge this is the corrected step of ViBT (arXiv:2511.23199), and equals `sde`.
  """
  start, end = times[:-1], times[1:]
  drift = process.reverse_drift(start)
  k, pred = 1 + (end - start) * drift.zt, (end - start) * drift.z0
  c_s, c_t = process.marginal(start).c, process.marginal(end).c
  # A step too long for Euler contracts by more than the bridge: nothing is left to correct.
  noise = np.sqrt(np.maximum(c_t**2 - (k * c_s) ** 2, 0))
  rows = [row(start[i], zt=k[i], pred=pred[i], noise=noise[i]) for i in range(len(start))]
  return stack([*rows, row(times[-1], pred=1)])


def flow(process: Process, start: Grid, end: Grid) -> tuple[Grid, ...]:
  """Coefficients (k, d, a, h) of the exact step zt <- k zt + d z1 + a J of the flow ODE (§3.7).

  J is the integral of z0_hat exp(lambda - lambda_end) over lambda = ln(a / c), half the log-SNR,
  which grows by h over the step. Samplers differ in how they interpolate z0_hat along it.
  """
  _, b_s, c_s = process.marginal(start)
  a_t, b_t, c_t = process.marginal(end)
  k = c_t / c_s
  return k, b_t - k * b_s, a_t, 0.5 * (process.log_snr(end) - process.log_snr(start))


def phis(h: Grid) -> tuple[Grid, Grid, Grid]:
  """(phi_1, phi_2, phi_3): J of `flow` for z0_hat = 1, u and u^2 / 2, u from 0 to h (§3.7)."""
  phi1 = -np.expm1(-h)
  phi2 = h - phi1
  return phi1, phi2, 0.5 * h**2 - phi2


@sampler
def heun(process: Process, times: Grid) -> Table:
  """Heun's rule for the probability flow: z0_hat a line over each step (§3.7). NFE 2 n - 1.

  Second order. Predicted with the z0_hat at the start, corrected with the one at the end.
  """
  k, z1, a, h = flow(process, times[:-1], times[1:])
  phi1, phi2, _ = phis(h)
  rows = []
  for i in range(len(h)):
    ahead = a[i] * phi2[i] / h[i]
    rows.append(row(times[i], zt=k[i], z1=z1[i], pred=a[i] * phi1[i], keep=1))
    rows.append(row(times[i + 1], base=k[i], z1=z1[i], pred=ahead, pred1=a[i] * phi1[i] - ahead))
  return stack([*rows, row(times[-1], pred=1)])


@sampler
def dbim(process: Process, times: Grid, *, order: int = 2) -> Table:
  """DBIM (arXiv:2405.15885): multistep flow of order 1, 2 or 3 in log-SNR (§3.7). NFE n.

  z0_hat is the polynomial through the last `order` evaluations; the first steps have fewer.
  """
  if order not in (1, 2, 3):
    raise ValueError(f"dbim has orders 1, 2 and 3, not {order}")
  k, z1, a, h = flow(process, times[:-1], times[1:])
  phi1, phi2, phi3 = phis(h)
  rows = []
  for i in range(len(h)):
    pred, pred1, pred2 = phi1[i], 0.0, 0.0
    if order >= 2 and i >= 1:  # slope, by the divided difference over the step before
      pred, pred1 = pred + phi2[i] / h[i - 1], pred1 - phi2[i] / h[i - 1]
    if order >= 3 and i >= 2:  # curvature, by the divided difference of two slopes
      bend = (phi2[i] * h[i - 1] + 2 * phi3[i]) / (h[i - 1] + h[i - 2])
      pred, pred1 = pred + bend / h[i - 1], pred1 - bend / h[i - 1] - bend / h[i - 2]
      pred2 = bend / h[i - 2]
    preds = {"pred": a[i] * pred, "pred1": a[i] * pred1, "pred2": a[i] * pred2}
    rows.append(row(times[i], zt=k[i], z1=z1[i], **preds))
  return stack([*rows, row(times[-1], pred=1)])


@sampler
def ddbm(process: process_lib.Bridge, times: Grid, *, churn: float = 0.33) -> Table:
  """Hybrid of DDBM (arXiv:2309.16948): noise, then Heun in time (§3.8). NFE 3 n - 2.

  Over a fraction `churn` of each step the reverse SDE, by Euler-Maruyama; over the rest the
  probability flow, by Heun's rule in time. Without churn a plain Heun of NFE 2 n - 1.
  """
  if not 0 <= churn <= 1:
    raise ValueError(f"churn is {churn}; expected a number from 0 to 1")
  start, end = times[:-1], times[1:]
  middle = start + churn * (end - start)
  sde, here, there = process.reverse_drift(start), process.flow(middle), process.flow(end)
  noise = np.sqrt((start - middle) * process.diffusion(start))
  rows = []
  for i in range(len(start)):
    if churn:
      dt = middle[i] - start[i]
      rows.append(row(start[i], zt=1 + dt * sde.zt[i], pred=dt * sde.z0[i], noise=noise[i]))
    dt = end[i] - middle[i]
    slope = [dt * x[i] for x in here]
    half, half_there = [x / 2 for x in slope], [dt / 2 * x[i] for x in there]
    rows.append(row(middle[i], zt=1 + slope[0], pred=slope[1], z1=slope[2], keep=1))
    rows.append(
      row(
        end[i],
        zt=half_there[0],
        base=1 + half[0],
        pred=half_there[1],
        pred1=half[1],
        z1=half[2] + half_there[2],
      )
    )
  return stack([*rows, row(times[-1], pred=1)])


@sampler
def ddim(process: Process, times: Grid, *, eta: float = 0.0, last: float | None = None) -> Table:
  """DDIM (arXiv:2010.02502) of a diffusion at network times: the same family (§3.6). NFE n.

  The last evaluation returns z0_hat (CogVideoX), or with `last` steps once more, to that time
  (VideoCrafter ends at 0, where a little noise is left).
  """
  if last is None:
    return first_order.table(process, times, eta=eta)
  if not 0 <= last < times[-1]:
    raise ValueError(f"last is {last}; expected a time below the grid's last one, {times[-1]:g}")
  return stack(first_order_rows(process, np.append(times, last), eta))


@sampler
def ddpm(
  process: diffusion.Diffusion, times: Grid, *, variance: Literal["small", "large"] = "large"
) -> Table:
  """DDPM (arXiv:2006.11239) of a diffusion: posterior mean, variance beta or beta_tilde. NFE n."""
  rows = first_order_rows(process, times, 1.0)
  if variance == "large":
    a = process.marginal(times).a
    beta = -np.expm1(2 * (np.log(a[:-1]) - np.log(a[1:])))
    rows = [r._replace(noise=noise) for r, noise in zip(rows, np.sqrt(beta), strict=True)]
  elif variance != "small":
    raise ValueError(f"no variance named {variance!r}; use small or large")
  return stack([*rows, row(times[-1], pred=1)])


def default(nfe: int) -> tuple[Callable[..., Array], Grid]:
  """Recommended (sampler, times) for `nfe` evaluations: least error in benchmarks/samplers.py.

  DBIM of order 3 on the Karras grid; of order 2 below 8 evaluations, where the third order
  overshoots under guidance.
  """
  return functools.partial(dbim, order=2 if nfe < 8 else 3), grids.karras(nfe)
