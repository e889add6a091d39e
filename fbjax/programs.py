"""The training step and the sampler of a config, traced for a mesh from shapes alone.

For ahead-of-time compilation and analysis: neither weights nor clips are read.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from fbjax import build, loading, sharding
from fbjax.systems import base, cached
from fbjax.train import step

Spec = Mapping[str, Any]


class UnreadTokenizer:
  """Stands in for a tokenizer without its files: a program depends on its sizes alone."""

  VOCABS: ClassVar = {"clip": 49408, "t5": 32128}
  LENGTHS: ClassVar = {"clip": 77, "t5": 226}

  def __init__(self, name: str, length: int | None = None):
    self.vocab = self.VOCABS[name]
    self.length = self.LENGTHS[name] if length is None else length

  def __call__(self, captions: list[str]) -> Int32[np.ndarray, "b n"]:
    return np.zeros((len(captions), self.length), np.int32)


def make_tokenizer(config: Spec) -> Any:
  """The tokenizer of a config, or what stands in for one that has files."""
  spec = config["tokenizer"]
  if spec["name"] in UnreadTokenizer.VOCABS:
    return UnreadTokenizer(spec["name"], spec.get("length"))
  return build.make_tokenizer(config)


def make_system(config: Spec) -> base.System:
  """The system of a config without its files: the `system` that the other functions take."""
  # What is not in a pretrained folder, config.start names.
  return build.make_system({**config, "weights": ""}, make_tokenizer(config))


def trace_step(config: Spec, system: base.System, mesh: jax.sharding.Mesh) -> jax.stages.Traced:
  """The training step of a config, optimizer included; encoders too, unless it trains from a cache."""
  tx = build.make_optimizer(config, system)
  names = ("ema_decay", "ema_warmup", "accumulate", "offload")
  options = {name: config["train"][name] for name in names if name in config["train"]}
  frozen = frozen_shapes(config, system)
  clips = batch(config, config["train"]["batch_size"], mesh)
  if build.cache_options(config).path:
    frozen, clips = fed(config, system, frozen, clips)
    system = cached.fed(system)
  loss = build.make_loss(config, system, build.make_formulation(config))
  program = step.make_train_step(loss, tx, seed=config["seed"], mesh=mesh, **options)
  state = placed_state(config, system, mesh)
  out = jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)
  return jax.jit(program, donate_argnums=0, out_shardings=out).trace(
    state, placed(frozen, mesh), clips
  )


def placed_state(config: Spec, system: base.System, mesh: jax.sharding.Mesh) -> step.TrainState:
  """Shapes and shardings of a training's state: weights, their EMA and the optimizer's."""
  tx = build.make_optimizer(config, system)
  shapes = jax.eval_shape(lambda key: step.init_state(system.init(key), tx), jax.random.key(0))
  places = step.placement(shapes, mesh, config["train"].get("offload", False))
  return sharding.placed(shapes, places)


def held_bytes(
  config: Spec, system: base.System, mesh: jax.sharding.Mesh, *, training: bool
) -> int:
  """Bytes on a device of frozen networks and weights; of EMA and optimizer state too if `training`.

  Arrays that are offloaded to the host's memory do not count.
  """
  frozen = frozen_shapes(config, system)
  if training:
    held = placed_state(config, system, mesh)
    if build.cache_options(config).path:
      frozen = {name: x for name, x in frozen.items() if name not in system.encoders}
  else:
    held = placed(jax.eval_shape(system.init, jax.random.key(0)), mesh)
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves((held, placed(frozen, mesh)))
    if x.sharding.memory_kind != step.HOST
  )


def fed(
  config: Spec, system: base.System, frozen: base.Params, clips: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[base.Params, dict[str, jax.ShapeDtypeStruct]]:
  """Shapes of frozen weights and batch of a training from a latent cache, which need not exist."""
  n = config["train"]["batch_size"]
  dtype = build.cache_options(config).dtype
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (n, 1)))
  features = jax.eval_shape(
    lambda frozen, clips, keys: cached.narrowed(system.features(frozen, clips, keys), dtype),
    frozen, clips, keys,
  )  # fmt: skip
  nulls = jax.eval_shape(lambda frozen: system.nulls(frozen, {}), frozen)
  place = clips["video"].sharding
  features = {
    path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for path, x in features.items()
  }
  kept = {name: x for name, x in frozen.items() if name not in system.encoders}
  return kept | {cached.NULLS: nulls}, features


def trace_sampler(config: Spec, system: base.System, mesh: jax.sharding.Mesh) -> jax.stages.Traced:
  """The sampler of a config, from images to clips."""
  sample = build.make_sample(config, system, build.make_formulation(config), mesh)
  n = config["sampling"]["batch_size"]
  clips = batch(config, n, None)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), n))
  params = placed(jax.eval_shape(system.init, jax.random.key(0)), mesh)
  return sample.trace(params, placed(frozen_shapes(config, system), mesh), clips, keys)


def parameters(system: base.System) -> dict[str, int]:
  """Numbers of parameters: `trained` and `frozen`."""
  trees = {"trained": system.init, "frozen": system.init_frozen}
  shapes = {name: jax.eval_shape(init, jax.random.key(0)) for name, init in trees.items()}
  return {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in shapes.items()}


def frozen_shapes(config: Spec, system: base.System) -> base.Params:
  """The frozen networks as a run has them, kernels in the dtype it computes in."""
  shapes = jax.eval_shape(system.init_frozen, jax.random.key(0))
  return loading.halved(shapes, build.DTYPES[config["system"]["dtype"]])


def placed(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
  return sharding.placed(shapes, sharding.tree(shapes, mesh))


def batch(config: Spec, n: int, mesh: jax.sharding.Mesh | None) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch of n clips of a config's data, split over the mesh, if there is one."""
  frames, size = build.clip_size(config)
  shapes = {
    "video": ((n, frames, *size, 3), jnp.uint8),
    "tokens": ((n, make_tokenizer(config).length), jnp.int32),
    "stride": ((n,), jnp.int32),
    "label": ((n,), jnp.int32),
  }
  place = None if mesh is None else sharding.batch(mesh)
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    for name, (shape, dtype) in shapes.items()
  }
