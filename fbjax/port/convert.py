"""Checkpoint tensors to params and back: renamed, transposed, and checked leaf by leaf."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fbjax.port import leaf as leaf_lib
from fbjax.port import table

Params = dict[Any, Any]
Tensors = Mapping[str, np.ndarray]


def to_flax(network: str, tensors: Tensors, sizes: Mapping[str, Any]) -> Params:
  """The params of a network from its tensors, under their names in the published files.

  Dtypes stay as they are, and nothing is read before it is asked for: `tensors` may be mapped
  from disk. Raises one ValueError that lists every key that is missing, unexpected or misshapen.
  """
  entry = table.find(network)
  tensors = {entry.plain(key): tensor for key, tensor in _items(tensors)}
  leaves = entry.leaves(sizes)
  _check(f"the checkpoint of {network}", {x.key: x.shape for x in leaves}, tensors)
  return nest(_stack({x.path: _forward(tensors[x.key], x) for x in leaves}))


def to_torch(network: str, params: Params, sizes: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse of `to_flax`: the tensors of a network by their published names."""
  leaves = table.find(network).leaves(sizes)
  flat = _unstack(flatten(params), [x.path for x in leaves])
  _check(f"the params of {network}", {x.path: x.target for x in leaves}, flat)
  return {x.key: _backward(flat[x.path], x) for x in leaves}


def _items(tensors: Tensors):
  return ((key, tensors[key]) for key in tensors)


def _forward(tensor: Any, leaf: leaf_lib.Leaf) -> np.ndarray:
  return np.asarray(tensor).transpose(leaf.axes).reshape(leaf.target)


def _backward(array: Any, leaf: leaf_lib.Leaf) -> np.ndarray:
  transposed = tuple(leaf.shape[axis] for axis in leaf.axes)
  return np.asarray(array).reshape(transposed).transpose(np.argsort(leaf.axes).tolist())


def _check(what: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> None:
  problems = [f"  missing    {key} {expected[key]}" for key in expected.keys() - found.keys()]
  problems += [
    f"  unexpected {key} {tuple(np.shape(found[key]))}" for key in found.keys() - expected.keys()
  ]
  problems += [
    f"  misshapen  {key}: {tuple(np.shape(found[key]))}, expected {shape}"
    for key, shape in expected.items()
    if key in found and tuple(np.shape(found[key])) != shape
  ]
  if problems:
    lines = "\n".join(sorted(problems))
    raise ValueError(f"{what} does not fit its sizes in {len(problems)} leaves:\n{lines}")


def _stack(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """{"a[0]/b": x, "a[1]/b": y} -> {"a/b": [x, y]}: equal blocks share a leaf."""
  return {
    path: flat[path] if members == [path] else np.stack([flat[p] for p in members])
    for path, members in _groups(flat).items()
  }


def _unstack(flat: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
  """The inverse of `_stack`; a stack of another height than `paths` tell of stays as it is."""
  flat = dict(flat)
  for path, members in _groups(paths).items():
    if members != [path] and path in flat and len(flat[path]) == len(members):
      flat |= zip(members, flat.pop(path), strict=True)
  return flat


def _groups(paths: Iterable[str]) -> dict[str, list[str]]:
  groups: dict[str, list[str]] = {}
  for path in paths:
    groups.setdefault(re.sub(r"\[\d+\]", "", path), []).append(path)
  return groups


def nest(flat: Mapping[str, Any]) -> Params:
  """{"a/0/b": x} -> {"a": {0: {"b": x}}}; numbers are positions of an nnx.List."""
  tree: Params = {}
  for path, x in flat.items():
    *parents, name = [int(p) if re.fullmatch(r"\d+", p) else p for p in path.split("/")]
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = x
  return tree


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
  """{"a": {0: {"b": x}}} -> {"a/0/b": x}."""
  flat = {}
  for name, x in params.items():
    flat |= flatten(x, f"{prefix}{name}/") if isinstance(x, Mapping) else {f"{prefix}{name}": x}
  return flat
