"""Samples one clip evaluation by evaluation, so that one can look on and stop.

What `sampling.make_sample` compiles into one program is three here: one encodes the conditions,
one does a row of a sampler's table, one decodes. Row and scales are traced arguments, so that the
steps, the sampler and the strength of guidance may change without recompilation; another length,
another size, or guidance where there was none, compiles again.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from fbjax import build, partition, sampling, sharding
from fbjax import pipe as pipes
from fbjax.bridge import guidance, samplers
from fbjax.build import samplers as builders
from fbjax.systems import base, formulation

KINDS = 8  # of settings whose programs are kept
LOOKS = 8  # of one clip: decoding is as dear as several evaluations, where there is a codec


class Look(NamedTuple):
  """A clip while it is made."""

  row: int  # how many evaluations are done
  rows: int  # of how many
  clip: UInt8[np.ndarray, "t h w 3"] | None  # what the network takes it to be; the last one is it
  finite: bool = True


class Programs(NamedTuple):
  """The jitted programs for one length, one size and one set of guidance branches."""

  begin: Callable[..., Any]  # (params, frozen, batch, keys, first time) -> given, state
  move: Callable[..., Any]  # (params, frozen, given, state, row, its number, scales) -> state
  show: Callable[..., Any]  # (frozen, z) -> uint8 video, whether it was finite


class Stepping:
  """Makes clips with the network of a pipe, row by row; programs are compiled when first needed."""

  def __init__(self, pipe: pipes.Pipe):
    self.pipe = pipe
    self._programs: dict[Any, Programs] = {}

  def is_ready(self, settings: pipes.Settings) -> bool:
    """Whether the programs of these settings are compiled already."""
    return _kind(settings) in self._programs

  def clip(
    self, frame: UInt8[np.ndarray, "h w 3"], text: str, settings: pipes.Settings
  ) -> Iterator[Look]:
    """Makes the clip that `pipe.animate` makes of a first frame, one row of the sampler at a time.

    Yields one look after each row, a few of them with a decoded clip; nothing is computed ahead.
    The settings must be of a single chunk.
    """
    pipe, spec = self.pipe, settings.spec
    system, form = pipe.system_for(spec, settings.frames, settings.size)
    bound = builders.make_sampler(spec.sampler)
    options = dict(bound.keywords)
    options.pop("start", None)  # which `begin` does
    times = samplers.told(builders.make_times(spec.grid, spec.steps, form.steps))
    table = bound.func.table(form.process, times, **options)
    table = jax.tree.map(lambda column: np.asarray(column, np.float32), table)
    scales = np.array([spec.guidance, spec.image_guidance or 0], np.float32)
    key = _kind(settings)
    programs = self._programs.pop(key, None) or make_programs(system, form, spec, pipe.mesh)
    params, frozen = pipe.weights
    batch, chunks = pipe.inputs([frame], [text], settings)
    (keys,) = chunks
    given, state = programs.begin(params, frozen, batch, keys, np.float32(times[0]))
    rows = len(table.time)
    shown = set(np.linspace(1, rows, min(rows, LOOKS)).round().astype(int).tolist())
    for done in range(1, rows + 1):
      row = jax.tree.map(lambda column, i=done - 1: column[i], table)
      state = programs.move(params, frozen, given, state, row, np.int32(done - 1), scales)
      if done not in shown:
        jax.block_until_ready(state)
        yield Look(done, rows, None)
        continue
      video, finite = programs.show(frozen, state.zt if done == rows else state.pred)
      self._keep(key, programs)
      yield Look(done, rows, np.asarray(video), bool(finite))

  def _keep(self, key: Any, programs: Programs) -> None:
    """Remembers what is compiled, and forgets what was used longest ago: a compiled program is large."""
    self._programs.pop(key, None)
    self._programs[key] = programs
    while len(self._programs) > KINDS:
      del self._programs[next(iter(self._programs))]


def _kind(settings: pipes.Settings) -> Any:
  """What makes programs differ."""
  spec = settings.spec
  start = spec.sampler.get("start", "noise")
  branches, _ = sampling.guide(spec.guidance, spec.image_guidance, spec.rescale)
  worded = bool(settings.negative_prompt)
  return settings.frames, settings.size, len(branches), spec.rescale, spec.draw, start, worded


def make_programs(
  system: base.System,
  form: formulation.Formulation,
  spec: build.Sampling,
  mesh: jax.sharding.Mesh,
) -> Programs:
  """The programs of one clip at a time."""
  branches, _ = sampling.guide(spec.guidance, spec.image_guidance, spec.rescale)
  start = spec.sampler.get("start", "noise")
  whole = sharding.replicated(mesh)

  def begin(params, frozen, batch, keys, time):
    rows = partition.full_rows(len(keys))
    batch, keys = jax.tree.map(lambda x: partition.clips(x[rows]), (dict(batch), keys))
    weights = system.weights(params, frozen)
    z1, conds, draws = sampling.encoded(system, weights, frozen, batch, keys, branches)
    # The state stays in float32 at least: its steps are small differences.
    from_z1 = jnp.asarray(z1, jnp.promote_types(z1.dtype, jnp.float32))
    zt = samplers.start_state(form.process, from_z1, time, draws, start)
    return (z1, conds, draws), samplers.begin(zt)

  def move(params, frozen, given, state, row, index, scales):
    z1, conds, draws = given
    weights = system.weights(params, frozen)
    combine = mixed(len(branches), scales, spec.rescale)
    denoise = sampling.denoiser_of(system, form, weights, z1, conds, combine)
    return samplers.move(row, index, state, denoise, z1.astype(state.zt.dtype), draws)

  def show(frozen, z):
    video = system.decode(frozen, z)[0]
    return sampling.to_uint8(video), jnp.isfinite(video).all()

  return Programs(
    jax.jit(partition.over(mesh, begin)),
    jax.jit(partition.over(mesh, move), donate_argnames="state"),
    jax.jit(partition.over(mesh, show), out_shardings=whole),
  )


def mixed(branches: int, scales: Float[jax.Array, "2"], rescale: float) -> guidance.Combine:
  """The function that combines the branches of guidance; scales are (text, image), traced."""

  def scale(i: int) -> Callable[[jax.Array], jax.Array]:
    return lambda time: jnp.full_like(time, scales[i])

  if branches == 3:
    return guidance.two_scale(scale(0), scale(1), rescale)
  return guidance.text(scale(0), rescale) if branches == 2 else guidance.none()
