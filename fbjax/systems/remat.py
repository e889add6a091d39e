"""What the blocks of a network keep for the backward pass, by name: memory against work."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from fbjax import errors, partition

PRODUCTS = ("dot_general", "conv_general_dilated")


@functools.cache
def wrap(remat: str | bool) -> Callable[[Callable], Callable] | None:
  """Makes of a block one that keeps, of all that lies between its inputs and outputs, only

  "none"      everything, so that no work is done twice; this is no wrapping at all
  "products"  the results of matrix products and convolutions; what is cheap is done again
  "full"      nothing: all of it is done again
  "offload"   nothing, and its input waits in the memory of the host

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
