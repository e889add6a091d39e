"""Nested dicts of leaves, and the same leaves by path: {"a": {0: {"b": x}}} and {"a/0/b": x}."""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
  """Leaves by path: {"a": {0: {"b": x}}} -> {"a/0/b": x}."""
  flat = {}
  for name, x in tree.items():
    flat |= flatten(x, f"{prefix}{name}/") if isinstance(x, Mapping) else {f"{prefix}{name}": x}
  return flat


def nest(flat: Mapping[str, Any]) -> dict[Any, Any]:
  """The inverse of `flatten`; numbers become integers, as the positions of an nnx.List are."""
  tree: dict[Any, Any] = {}
  for path, x in flat.items():
    *parents, name = (int(key) if key.isdigit() else key for key in path.split("/"))
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = x
  return tree
