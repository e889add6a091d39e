"""LoRA (arXiv:2106.09685): a system that trains low-rank updates of its kernels.

  params          {leaf: x} of leaves that train in full, and {leaf: {a, b}} of low-rank updates
  frozen["base"]  all other leaves, in the dtype that the networks compute in

`weights` merges the two, once a step, and everything behind it works as before. Without LoRA,
leaves that do not train stay in `params`, and the optimizer skips them (`train.optim`); here they
are frozen weights, which the optimizer never sees.
"""

import copy
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from fbjax import errors, trees
from fbjax.systems import base

# Every system's attention, and nothing else that is called out.
ATTENTION = r"(attn\d?|spatial|temporal)/(q|k|v|qkv|out)/kernel$"
BASE = "base/"  # before the paths of frozen leaves
NEW = "new"  # among patterns: every leaf that starts anew


def chosen(
  names: Iterable[str], patterns: Iterable[str], anew: set[str], key: str = "whole"
) -> list[str]:
  """The leaves that patterns name: regexes searched in `network/leaf`, or "new".

  Raises:
    UserError: for a regex that names none.
  """
  names = list(names)
  found: set[str] = set()
  for pattern in patterns:
    own = anew if pattern == NEW else {name for name in names if re.search(pattern, name)}
    if not own and pattern != NEW:
      raise errors.UserError(
        f"config.trainable.{key} has {pattern!r}, which matches no weight of the system"
      )
    found |= own
  return [name for name in names if name in found]


def check_anew(trained: Iterable[str], anew: set[str]) -> None:
  """Raises a UserError if a newly initialised leaf would not train."""
  if frozen := sorted(anew - set(trained)):
    raise errors.UserError(
      f"{len(frozen)} weights start anew and would never train, {frozen[0]} among them: put 'new' "
      "into config.trainable.whole"
    )


class LoRA:
  """A system with scale / rank a @ b added to some kernels. Implements `base.System`.

  b starts at zero: training starts from the network as it was. Convolutions and stacked blocks
  are matrices along their last two axes.
  """

  def __init__(
    self,
    system: base.System,
    *,
    added: Iterable[str],
    whole: Iterable[str],
    rank: int,
    scale: float = 1.0,
  ):
    """
    Args:
      system: the pretrained one.
      added: kernels that get low-rank updates, by `network/leaf`.
      whole: leaves that train in full.
      rank: columns of a.
      scale: LoRA's alpha, which the update is multiplied by over the rank.

    Raises:
      UserError: for a rank below 1, or a leaf of `added` that is no kernel.
    """
    if rank < 1:
      raise errors.UserError(f"config.trainable.rank is {rank}; expected at least 1")
    shapes = trees.flatten(jax.eval_shape(system.init, jax.random.key(0)))
    self._whole_names = set(whole)
    self._added = {name: shapes[name] for name in added if name not in self._whole_names}
    # By the name: the biases of stacked blocks have two axes as well.
    if others := [name for name in self._added if not name.endswith("kernel")]:
      raise errors.UserError(f"config.trainable.lora names {others[0]}, which is no kernel")
    self.rank, self.scale = rank, scale
    self._wrap(system)

  def _wrap(self, system: base.System) -> None:
    self.whole = system
    self.networks, self.fixed, self.conditions = system.networks, system.fixed, system.conditions
    self.encoders, self.decoders = system.encoders, system.decoders
    self.encode, self.features = system.encode, system.features
    self.nulls, self.draw = system.nulls, system.draw
    self.drop, self.embed = system.drop, system.embed
    self.denoise, self.decode = system.denoise, system.decode
    self.check_clip = system.check_clip

  def for_clips(self, frames: int, size: tuple[int, int]) -> "LoRA":
    other = copy.copy(self)
    other._wrap(self.whole.for_clips(frames, size))
    return other

  def init(self, key: jax.Array) -> base.Params:
    flat = trees.flatten(self.whole.init(key))
    trained = {name: x for name, x in flat.items() if name in self._whole_names}
    for i, (name, like) in enumerate(self._added.items()):
      *stack, c_in, c_out = like.shape
      a = jax.random.normal(jax.random.fold_in(key, i), (*stack, c_in, self.rank)) * c_in**-0.5
      trained |= {f"{name}/a": a, f"{name}/b": jnp.zeros((*stack, self.rank, c_out))}
    return trees.nest(trained)

  def init_frozen(self, key: jax.Array) -> base.Params:
    flat = trees.flatten(self.whole.init(key))
    kept = {name: x for name, x in flat.items() if name not in self._whole_names}
    return self.whole.init_frozen(key) | {"base": trees.nest(kept)}

  @property
  def added(self) -> list[str]:
    """The kernels that get low-rank updates, by `network/leaf`."""
    return list(self._added)

  @property
  def trained_whole(self) -> list[str]:
    """The leaves that train in full, by `network/leaf`."""
    return sorted(self._whole_names)

  def additions(self, params: base.Params) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The factors (a, scale / rank b) of each kernel's low-rank update a @ b, by `network/leaf`."""
    flat = trees.flatten(params)
    scale = self.scale / self.rank
    return {name: (flat[f"{name}/a"], scale * flat[f"{name}/b"]) for name in self._added}

  def weights(self, params: base.Params, frozen: base.Params) -> base.Params:
    flat, trained = trees.flatten(frozen["base"]), trees.flatten(params)
    for name in self._added:
      # In float32: a small addition to a bf16 kernel would be rounded away.
      addition = (self.scale / self.rank) * (trained.pop(f"{name}/a") @ trained.pop(f"{name}/b"))
      flat[name] = flat[name].astype(jnp.float32) + addition
    return trees.nest(flat | trained)
