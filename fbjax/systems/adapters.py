"""Which weights train: all, those whose path matches a pattern, or low-rank additions (LoRA).

An adapted system trains a small tree of `params`; what stays as it was lies in `frozen["base"]`.
`weights` puts the two together, once a step, and everything behind it works as before.
"""

import re
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fbjax import errors
from fbjax.systems import base

Flat = dict[str, Any]

# Every system's attention, and nothing else that is called out.
ATTENTION = r"(attn\d?|spatial|temporal)/(q|k|v|qkv|out)/kernel$"


@runtime_checkable
class Adapter(Protocol):
  """How some weights train while others stay."""

  def split(self, flat: Flat, key: jax.Array) -> tuple[Flat, Flat]:
    """Trained leaves and the others, of all leaves by path."""
    ...

  def merge(self, trained: Flat, kept: Flat) -> Flat:
    """All leaves again."""
    ...


class Matching(NamedTuple):
  """Only leaves with `pattern` (a regex) in their path, such as unet/in_conv/kernel, train."""

  pattern: str

  def split(self, flat: Flat, key: jax.Array) -> tuple[Flat, Flat]:
    del key
    chosen = _matching(flat, self.pattern)
    return {k: flat[k] for k in chosen}, {k: x for k, x in flat.items() if k not in chosen}

  def merge(self, trained: Flat, kept: Flat) -> Flat:
    return kept | trained


class LoRA(NamedTuple):
  """Kernels with `pattern` in their path get scale / rank * a @ b added (arXiv:2106.09685).

  b starts at zero: training starts from the network as it was. Convolutions and stacked blocks
  are matrices along their last two axes.
  """

  rank: int
  pattern: str = ATTENTION
  scale: float = 1.0

  def split(self, flat: Flat, key: jax.Array) -> tuple[Flat, Flat]:
    trained = {}
    for i, name in enumerate(_matching(flat, self.pattern)):
      *stack, c_in, c_out = flat[name].shape
      a = jax.random.normal(jax.random.fold_in(key, i), (*stack, c_in, self.rank)) * c_in**-0.5
      trained[f"{name}/a"] = a
      trained[f"{name}/b"] = jnp.zeros((*stack, self.rank, c_out))
    return trained, flat

  def merge(self, trained: Flat, kept: Flat) -> Flat:
    def adapted(name: str, x: jax.Array) -> jax.Array:
      if f"{name}/a" not in trained:
        return x
      a, b = trained[f"{name}/a"], trained[f"{name}/b"]
      return x + (self.scale / self.rank) * (a @ b).astype(x.dtype)

    return {name: adapted(name, x) for name, x in kept.items()}


class Adapted:
  """A system of which an adapter trains a part. Implements `base.System`."""

  def __init__(self, system: base.System, adapter: Adapter):
    self.adapter = adapter
    whole = jax.eval_shape(system.init, jax.random.key(0))
    self._structure = jax.tree.structure(whole)
    self._names = list(flatten(whole))
    self.whole = system
    self.networks = system.networks
    self.encode, self.drop, self.embed = system.encode, system.drop, system.embed
    self.denoise, self.decode = system.denoise, system.decode
    self.fixed, self.check_clip = system.fixed, system.check_clip

  def for_clips(self, frames: int, size: tuple[int, int]) -> "Adapted":
    return Adapted(self.whole.for_clips(frames, size), self.adapter)

  def init(self, key: jax.Array) -> base.Params:
    return self.split(self.whole.init(key), key)[0]

  def init_frozen(self, key: jax.Array) -> base.Params:
    base_weights = self.split(self.whole.init(key), key)[1]
    return self.whole.init_frozen(key) | {"base": base_weights}

  def split(self, whole: base.Params, key: jax.Array) -> tuple[base.Params, base.Params]:
    """What trains and what stays, of all weights of the system."""
    return self.adapter.split(flatten(whole), key)

  def weights(self, params: base.Params, frozen: base.Params) -> base.Params:
    flat = self.adapter.merge(params, frozen["base"])
    return jax.tree.unflatten(self._structure, [flat[name] for name in self._names])


def flatten(tree: Any) -> Flat:
  """{"unet/in_conv/kernel": leaf, ...}"""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _matching(flat: Flat, pattern: str) -> list[str]:
  chosen = [name for name in flat if re.search(pattern, name)]
  if not chosen:
    raise errors.UserError(f"config.trainable.pattern={pattern!r} matches no weight of the system")
  return chosen


def whole(system: base.System) -> base.System:
  """Everything trains."""
  return system


def matching(system: base.System, *, pattern: str) -> Adapted:
  """Only the weights with `pattern` in their path train."""
  return Adapted(system, Matching(pattern))


def lora(
  system: base.System, *, rank: int, pattern: str = ATTENTION, scale: float = 1.0
) -> Adapted:
  """Only low-rank additions to the kernels with `pattern` in their path train."""
  return Adapted(system, LoRA(rank, pattern, scale))
