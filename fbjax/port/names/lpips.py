"""LPIPS 0.1 of an AlexNet: torchvision's file and the few weights of lpips, or lpips' own state dict."""

from typing import Any

from fbjax.port.leaf import Leaf, Table, at, conv

ALIASES = ((r"^net\.slice\d\.", "features."),)
LEFT_OVER = (r"classifier\..*", r"lins\..*", r"scaling_layer\..*")
CONVS = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """`models.lpips.LPIPS` takes no arguments, and nobody publishes a config."""
  del config
  return {}


def table(**_: Any) -> Table:
  leaves = []
  for i, (place, (c_in, c_out, size)) in enumerate(CONVS.items()):
    leaves += at(f"convs/{i}", f"features.{place}", conv(c_in, c_out, size, size))
    shape = (1, c_out, 1, 1)
    leaves.append(Leaf(f"weights/{i}", f"lin{i}.model.1.weight", shape, (0, 1, 2, 3), (c_out,)))
  return leaves
