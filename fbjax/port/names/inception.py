"""pytorch-fid's file of TensorFlow's Inception of 2015, in the names of torchvision."""

from typing import Any

from fbjax.port.leaf import Table, at, conv
from fbjax.port.names import i3d

LEFT_OVER = (r"fc\.(weight|bias)", r".*\.num_batches_tracked")
STEM = (
  (("1a_3x3", 32, 3, 3), ("2a_3x3", 32, 3, 3), ("2b_3x3", 64, 3, 3)),
  (("3b_1x1", 80, 1, 1), ("4a_3x3", 192, 3, 3)),
)

# Branches of a block, each a list of (name, channels, height, width); two names that end in a and b
# have the same input.
Branches = tuple[tuple[tuple[str, int, int, int], ...], ...]


def _fine() -> Branches:
  return (
    (("branch1x1", 64, 1, 1),),
    (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5)),
    (
      ("branch3x3dbl_1", 64, 1, 1),
      ("branch3x3dbl_2", 96, 3, 3),
      ("branch3x3dbl_3", 96, 3, 3),
    ),
  )


def _middle(c: int) -> Branches:
  return (
    (("branch1x1", 192, 1, 1),),
    (("branch7x7_1", c, 1, 1), ("branch7x7_2", c, 1, 7), ("branch7x7_3", 192, 7, 1)),
    (
      ("branch7x7dbl_1", c, 1, 1),
      ("branch7x7dbl_2", c, 7, 1),
      ("branch7x7dbl_3", c, 1, 7),
      ("branch7x7dbl_4", c, 7, 1),
      ("branch7x7dbl_5", 192, 1, 7),
    ),
  )


def _coarse() -> Branches:
  return (
    (("branch1x1", 320, 1, 1),),
    (("branch3x3_1", 384, 1, 1), ("branch3x3_2a", 384, 1, 3), ("branch3x3_2b", 384, 3, 1)),
    (
      ("branch3x3dbl_1", 448, 1, 1),
      ("branch3x3dbl_2", 384, 3, 3),
      ("branch3x3dbl_3a", 384, 1, 3),
      ("branch3x3dbl_3b", 384, 3, 1),
    ),
  )


# Name, branches, channels behind the pooling (0 where nothing is behind it).
BLOCKS = (
  ("5b", _fine(), 32),
  ("5c", _fine(), 64),
  ("5d", _fine(), 64),
  (
    "6a",
    (
      (("branch3x3", 384, 3, 3),),
      (
        ("branch3x3dbl_1", 64, 1, 1),
        ("branch3x3dbl_2", 96, 3, 3),
        ("branch3x3dbl_3", 96, 3, 3),
      ),
    ),
    0,
  ),
  ("6b", _middle(128), 192),
  ("6c", _middle(160), 192),
  ("6d", _middle(160), 192),
  ("6e", _middle(192), 192),
  (
    "7a",
    (
      (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3)),
      (
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, 1, 7),
        ("branch7x7x3_3", 192, 7, 1),
        ("branch7x7x3_4", 192, 3, 3),
      ),
    ),
    0,
  ),
  ("7b", _coarse(), 192),
  ("7c", _coarse(), 192),
)


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """`models.inception.Inception` takes no arguments, and nobody publishes a config."""
  del config
  return {}


def table(**_: Any) -> Table:
  leaves, c = [], 3
  for i, group in enumerate(STEM):
    for j, (name, width, h, w) in enumerate(group):
      leaves += at(f"stem/{i}/{j}", f"Conv2d_{name}", unit(c, width, h, w))
      c = width
  for i, (name, branches, pooled) in enumerate(BLOCKS):
    block, out = [], pooled or c
    for j, units in enumerate(branches):
      last = c
      for k, (key, width, h, w) in enumerate(units):
        block += at(f"branches/{j}/{k}", key, unit(last, width, h, w))
        last = last if key.endswith("a") else width
      out += width * (1 + key.endswith("b"))
    if pooled:
      block += at("pooled", "branch_pool", unit(c, pooled, 1, 1))
    leaves += at(f"blocks/{i}", f"Mixed_{name}", block)
    c = out
  return leaves


def unit(c_in: int, c_out: int, h: int, w: int) -> Table:
  """A convolution and batch normalization with running statistics."""
  leaves = at("conv", "conv", conv(c_in, c_out, h, w, bias=False))
  return leaves + at("norm", "bn", i3d.norm(c_out))
