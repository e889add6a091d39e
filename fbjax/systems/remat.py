"""Rematerialisation (gradient checkpointing) of the blocks of a network, by name."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from fbjax import errors, partition

PRODUCTS = ("dot_general", "conv_general_dilated")


@functools.cache
def wrap(remat: str | bool) -> Callable[[Callable], Callable] | None:
  """The wrapper of a block, by what it keeps for the backward pass besides the block's input.

  "none"      everything: nothing is recomputed, and None is returned
  "products"  results of convolutions and of matrix products with weights; the rest is recomputed
  "full"      nothing: all of it is recomputed
  "offload"   nothing, and the input is offloaded to the host's memory

  False and True, as older configs have it, are "none" and "full".

  Raises:
    UserError: for another name.
  """
  match {False: "none", True: "full"}.get(remat, remat):
    case "none":
      return None
    case "full":
      return jax.checkpoint
    case "products":
      return functools.partial(jax.checkpoint, policy=_is_product)
    case "offload":
      policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[partition.BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
      )
      return functools.partial(jax.checkpoint, policy=policy)
  raise errors.UserError(
    f"config.system.remat is {remat!r}; expected 'none', 'products', 'full' or 'offload'"
  )


def _is_product(primitive: Any, *_: Any, **params: Any) -> bool:
  """Of weights: the products of attention, whose results are long, have batch dimensions."""
  if primitive.name == "dot_general":
    return not any(params["dimension_numbers"][1])
  return primitive.name in PRODUCTS
