"""Low-rank additions in the names and shapes of other programs; modes/export_lora_test applies them."""

import numpy as np
import pytest

from fbjax import errors, port
from fbjax.port import lora, table

RANK = 3
SIZES = {"c_in": 2, "c_out": 2, "depth": 2, "heads": 1, "head_dim": 8, "text_dim": 3, "time_dim": 4}


def factors(*shape: int) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  *stack, c_in, c_out = shape
  sizes = ((*stack, c_in, RANK), (*stack, RANK, c_out))
  return tuple(rng.standard_normal(size, np.float32) for size in sizes)


def test_the_product_is_what_is_added_to_the_kernel():
  a, b = factors(2, 8, 32)
  found = lora.tensors("cogvideox", {"blocks/up/kernel": (a, b)}, SIZES, "diffusers")
  whole = port.unfill("cogvideox", {"blocks": {"up": {"kernel": a @ b}}}, SIZES, partial=True)
  assert len(found) == 2 * len(whole) == 4
  for key, expected in whole.items():
    down, up = (found[f"transformer.{key.removesuffix('weight')}lora_{x}.weight"] for x in "AB")
    assert down.shape == (RANK, 8) and up.shape == (32, RANK)
    np.testing.assert_allclose(up @ down, expected, atol=1e-5)


def test_the_additions_to_a_convolution_are_two():
  """Of the patch embedding, whose kernel is a matrix here."""
  a, b = factors(8, 8)
  found = lora.tensors("cogvideox", {"patches/kernel": (a, b)}, SIZES, "diffusers")
  down, up = (found[f"transformer.patch_embed.proj.lora_{x}.weight"] for x in "AB")
  assert down.shape == (RANK, 2, 2, 2) and up.shape == (8, RANK, 1, 1)
  whole = port.unfill("cogvideox", {"patches": {"kernel": a @ b}}, SIZES, partial=True)
  product = np.einsum("or,rcyx->ocyx", up[..., 0, 0], down)
  np.testing.assert_allclose(product, whole["patch_embed.proj.weight"], atol=1e-5)


@pytest.mark.parametrize(
  ("path", "module"),
  [
    ("blocks/attn/q/kernel", "blocks.1.q"),
    ("blocks/attn/out/kernel", "blocks.1.attn_out"),
    ("blocks/up/kernel", "blocks.1.ff_proj"),
    ("blocks/down/kernel", "blocks.1.ff_out"),
    ("blocks/norm1/emb/kernel", "blocks.1.norm1.linear"),
    ("time/up/kernel", "time_embedding_linear_1"),
    ("patches/kernel", "patch_embed.proj"),
    ("out/kernel", "proj_out"),
  ],
)
def test_modules_are_called_as_in_comfyui(path, module):
  leaves = [x for x in table.layout("cogvideox", SIZES).leaves(SIZES)]
  leaf = next(x for x in leaves if x.path.replace("[0]", "") == path)
  stack = (2,) if "[" in leaf.path else ()
  found = lora.tensors("cogvideox", {path: factors(*stack, *leaf.target)}, SIZES, "comfyui")
  keys = {f"diffusion_model.{module}.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha")}
  assert keys <= set(found) and len(found) == 3 * max(sum(stack), 1)
  assert found[f"diffusion_model.{module}.alpha"] == RANK  # nothing is left to scale


def test_another_network_has_no_names_there():
  with pytest.raises(errors.UserError, match="written for cogvideox alone, and these are of latte"):
    lora.tensors("latte", {}, {}, "diffusers")
