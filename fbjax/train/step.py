"""One training step as a function of arrays."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fbjax import partition, sharding
from fbjax.systems import base
from fbjax.train import optim

Params = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
HOST = "pinned_host"  # memory of the host that devices read by themselves
# (params, frozen, batch, one key a clip) -> (loss, metrics), each a mean over clips.
LossFn = Callable[[Params, Params, Batch, jax.Array], tuple[jax.Array, Metrics]]


class TrainState(NamedTuple):
  """All that a run needs to go on: float32 weights, their moving average, optimizer state."""

  step: jax.Array
  params: Params
  ema: Params
  opt: optax.OptState


def init_state(params: Params, tx: optim.Optimizer) -> TrainState:
  """The state before the first step."""
  return TrainState(
    jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), tx.init(params)
  )


def placement(shapes: TrainState, mesh: jax.sharding.Mesh, offload: bool = False) -> TrainState:
  """The sharding of each leaf of a state between steps.

  With `offload`, the arrays of EMA and optimizer are in the host's memory; scalars are not.
  """
  there = sharding.tree(shapes, mesh)
  if not offload:
    return there
  # A number is not worth the way.
  move = lambda x, s: s.with_memory_kind(HOST) if x.ndim else s  # noqa: E731
  return there._replace(
    ema=jax.tree.map(move, shapes.ema, there.ema), opt=jax.tree.map(move, shapes.opt, there.opt)
  )


def make_train_step(
  loss_fn: LossFn,
  tx: optim.Optimizer,
  *,
  ema_decay: float,
  ema_warmup: bool = True,
  seed: int,
  accumulate: int = 1,
  offload: bool = False,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]:
  """Returns step(state, frozen, batch) -> (state, metrics), ready for jax.jit.

  `frozen` (VAE, CLIP, T5) is an argument and not a closure: a closed-over array is copied into the
  program. Keys come from (seed, step, place in the batch), so a restored run draws the noise it
  would have drawn, whatever the mesh or the accumulation.

  Args:
    loss_fn: mean loss over clips.
    tx: optimizer.
    ema_decay: decay of the moving average; at 0 it is the weights themselves.
    ema_warmup: the decay is at most (1 + step) / (10 + step), so that it soon forgets the start.
    seed: of all randomness in the loss.
    accumulate: number of parts a batch is cut into, run one after the other to save memory.
    offload: whether average and optimizer come from the host's memory, as `placement` has them.
    mesh: that the step is compiled for; None is a single device.
  """

  def gradients(params, frozen, batch, key):
    def of_part(batch, places):
      batch = jax.tree.map(partition.clips, batch)
      return jax.value_and_grad(loss_fn, has_aux=True)(
        params, frozen, batch, base.clip_keys(key, places)
      )

    places = jnp.arange(len(jax.tree.leaves(batch)[0]))
    if accumulate == 1:
      return of_part(batch, places)
    # Clip i goes to part i % accumulate: every part stays spread over all devices.
    parts = jax.tree.map(
      lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), (dict(batch), places)
    )
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_part, *first))
    add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(*part)), None)  # noqa: E731
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / accumulate, total)

  def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    (loss, metrics), grads = gradients(state.params, frozen, batch, key)
    if offload:
      near = functools.partial(jax.device_put, device=jax.memory.Space.Device)
      state = state._replace(ema=jax.tree.map(near, state.ema), opt=jax.tree.map(near, state.opt))
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    warm = (1 + state.step) / (10 + state.step)
    decay = jnp.minimum(ema_decay, warm) if ema_warmup else ema_decay
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    # Of what trains alone: the other gradients are then never computed.
    trains = optim.by_path(tx.trains)(grads)
    norm = optax.tree.norm(jax.tree.map(lambda g, t: g if t else jnp.zeros(()), grads, trains))
    metrics = metrics | {
      "loss": loss,
      "grad_norm": norm,
      "update_norm": optax.tree.norm(updates),
      "lr": jnp.asarray(tx.rate(state.step)),
    }
    return TrainState(state.step + 1, params, ema, opt), metrics

  return partition.over(mesh, step)
