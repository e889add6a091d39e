"""DreamSim's ensemble, its adapters merged: three vision transformers in the names of DINO."""

from typing import Any

from fbjax.port.leaf import Leaf, Table, at, conv, linear, norm, same

BRANCHES = ("dino", "clip", "open_clip")
# The head of DINO and its last norm.
LEFT_OVER = (
  r"extractor_list\.0\.proj\..*",
  r"extractor_list\.0\.model\.norm\..*",
)


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """`models.dreamsim.DreamSim` is of one size, and nobody publishes a config."""
  del config
  return {}


def table(
  size: int = 224,
  patch: int = 16,
  width: int = 768,
  depth: int = 12,
  c_out: int = 512,
  **_: Any,
) -> Table:
  leaves = []
  for i, name in enumerate(BRANCHES):
    own = branch((size // patch) ** 2, patch, width, depth, joint=i > 0)
    leaves += at(name, f"extractor_list.{i}.model", own)
    if i > 0:
      leaves += same(f"{name}/projection", f"extractor_list.{i}.proj", width, c_out)
  return leaves


def branch(places: int, patch: int, c: int, depth: int, *, joint: bool) -> Table:
  leaves = at("patches", "patch_embed.proj", conv(3, c, patch, patch))
  leaves.append(Leaf("start", "cls_token", (1, 1, c), (0, 1, 2), (c,)))
  shape = (1, places + 1, c)
  leaves.append(Leaf("position", "pos_embed", shape, (0, 1, 2), shape[1:]))
  block = at("norm1", "norm1", norm(c)) + at("norm2", "norm2", norm(c))
  block += at("attn/qkv", "attn.qkv", linear(c, 3 * c)) + at("attn/out", "attn.proj", linear(c, c))
  block += at("up", "mlp.fc1", linear(c, 4 * c)) + at("down", "mlp.fc2", linear(4 * c, c))
  for i in range(depth):
    leaves += at(f"transformer/blocks[{i}]", f"blocks.{i}", block)
  if joint:
    leaves += at("in_norm", "pos_drop", norm(c)) + at("out_norm", "norm", norm(c))
  return leaves
