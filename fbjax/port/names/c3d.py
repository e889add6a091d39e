"""TGAN v2's C3D of UCF-101: an npz of Chainer, and another one with the mean of the clips."""

from typing import Any

from fbjax.port.leaf import Leaf, Table, at, conv, linear

# Chainer's paths, and its names of weights.
ALIASES = ((r"/W$", ".weight"), (r"/b$", ".bias"))
MEAN = (3, 16, 128, 171)
GROUPS = {"1a": 1, "2a": 2, "3a": 4, "3b": 4, "4a": 8, "4b": 8, "5a": 8, "5b": 8}


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.c3d.C3D`; nobody publishes a config."""
  return {"classes": config["num_classes"]}


def table(width: int = 64, hidden: int = 4096, classes: int = 101, **_: Any) -> Table:
  leaves, c, places = [], 3, {}
  for name, part in GROUPS.items():
    group = int(name[0]) - 1
    place = places[group] = places.get(group, -1) + 1
    layer = conv(c, part * width, 3, 3, 3)
    leaves += at(f"groups/{group}/{place}", f"conv{name}", layer)
    c = part * width
  dims = (16 * c, hidden, hidden, classes)
  for i in range(3):
    leaves += at(f"dense/{i}", f"fc{6 + i}", linear(dims[i], dims[i + 1]))
  axes = (1, 2, 3, 0)
  return [*leaves, Leaf("mean", "mean", MEAN, axes, tuple(MEAN[i] for i in axes))]
