"""Low-rank additions to a network's kernels, in the spellings of other programs.

An addition to a kernel is the product of two matrices, a and b, and of nothing else: what scales it is
in b, so that a reader which knows of no scale reads it rightly.

  diffusers  transformer.transformer_blocks.0.attn1.to_q.lora_A.weight, .lora_B.weight
  comfyui    diffusion_model.blocks.0.q.lora_down.weight, .lora_up.weight, and .alpha, which is the rank
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fbjax import errors
from fbjax.port import convert, table
from fbjax.port import leaf as leaf_lib
from fbjax.port.names import cogvideox

Factors = tuple[Any, Any]  # [*stack, c_in, rank] and [*stack, rank, c_out]


class Spelling(NamedTuple):
  """How a program calls the factors of an addition to a module.

  prefix: before the module's name. module: its name there, from that in diffusers.
  down, up: behind the name. alpha: whether the rank is written too, by which scales are divided.
  """

  prefix: str
  module: Callable[[str], str]
  down: str
  up: str
  alpha: bool = False


SPELLINGS = {
  "diffusers": Spelling("transformer.", lambda name: name, "lora_A.weight", "lora_B.weight"),
  "comfyui": Spelling(
    "diffusion_model.", cogvideox.comfyui, "lora_down.weight", "lora_up.weight", alpha=True
  ),
}
NETWORK = "cogvideox"  # the one whose names there are known


def tensors(
  network: str, additions: Mapping[str, Factors], sizes: Mapping[str, Any], spelling: str
) -> dict[str, np.ndarray]:
  """The tensors of a file of low-rank additions.

  Args:
    network: one of `table.NETWORKS`.
    additions: the factors by the path of their kernel in the network's params.
    sizes: arguments of the model's constructor.
    spelling: one of `SPELLINGS`.

  Raises:
    UserError: for a network that these programs have no names for.
  """
  if network != NETWORK:
    raise errors.UserError(
      f"low-rank additions by themselves are written for {NETWORK} alone, and these are of {network}"
    )
  spelt = SPELLINGS[spelling]
  groups = convert.groups(table.layout(network, sizes).leaves(sizes))
  found = {}
  for path, (a, b) in additions.items():
    stacked = convert.is_stacked(groups[path])
    for place, leaf in enumerate(groups[path]):
      down, up = factors(leaf, *(np.asarray(x[place] if stacked else x) for x in (a, b)))
      name = spelt.prefix + spelt.module(leaf.key.removesuffix(".weight"))
      found |= {f"{name}.{spelt.down}": down, f"{name}.{spelt.up}": up}
      if spelt.alpha:
        found[f"{name}.alpha"] = np.array(len(down), np.float32)
  return found


def factors(leaf: leaf_lib.Leaf, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """As torch has them: a as the layer's own kernel with the rank as its outputs, then b's transpose.

  Behind a convolution the second is one of a single point.
  """
  rank, ones = a.shape[1], (1,) * (len(leaf.shape) - 2)
  like = leaf._replace(shape=(rank, *leaf.shape[1:]), target=a.shape)
  return convert.backward(a, like), b.T.reshape(*b.shape[::-1], *ones)
