"""Nested dicts of leaves, and the same leaves by path: {"a": {0: {"b": x}}} and {"a/0/b": x}."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


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


def paths(tree: Any) -> dict[str, Any]:
  """The leaves of any pytree by path; fields, keys and places are written alike."""
  return {_text(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def map_paths(fn: Callable[[str, Any], Any], tree: Any) -> Any:
  """The pytree of fn(path, leaf); paths as in `paths`."""
  return jax.tree.map_with_path(lambda path, leaf: fn(_text(path), leaf), tree)


def _text(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
