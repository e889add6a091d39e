"""LoRA weights (arXiv:2106.09685) as state dicts that diffusers and ComfyUI load.

The update of a kernel is a @ b. Any scale is folded into b, so that programs which ignore alpha
apply the update unchanged.

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
  """How a program names the two LoRA factors of a module: prefix + module + "." + down or up.

  module: the program's name of a module, from that in diffusers. alpha: whether an alpha is written
  too; it equals the rank, so that the program's scale alpha / rank is 1.
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
  """The state dict of a LoRA file.

  Args:
    network: one of `table.NETWORKS`.
    additions: the factors (a, b) by the path of their kernel in the network's params.
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
  """The down and up factors in torch's layout.

  Down has the shape of the layer's weight with `rank` output channels; up is b transposed,
  (c_out, rank), and of a convolution its kernel axes have length one.
  """
  rank, ones = a.shape[1], (1,) * (len(leaf.shape) - 2)
  like = leaf._replace(shape=(rank, *leaf.shape[1:]), target=a.shape)
  return convert.backward(a, like), b.T.reshape(*b.shape[::-1], *ones)
