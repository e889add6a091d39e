"""Checkpoint tensors to params and back: renamed, transposed, and checked leaf by leaf."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fbjax import errors
from fbjax.port import leaf as leaf_lib
from fbjax.port import table

Params = dict[Any, Any]
Tensors = Mapping[str, Any]


class Lazy:
  """A leaf of params that is read from its tensors by np.asarray, each time anew."""

  def __init__(self, sources: Sequence[tuple[Any, leaf_lib.Leaf]], stacked: bool):
    tensor, leaf = sources[0]
    self.sources = sources
    self.stacked = stacked
    self.shape = (len(sources), *leaf.target) if stacked else leaf.target
    self.dtype = np.dtype(tensor.dtype)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if not self.stacked:
      return np.asarray(_forward(*self.sources[0]), dtype)
    out = np.empty(self.shape, self.dtype if dtype is None else dtype)
    for row, source in zip(out, self.sources, strict=True):
      row[...] = _forward(*source)
    return out

  def __getitem__(self, place: tuple[slice, ...]) -> np.ndarray | np.generic:
    """A part of it; of a stack, only these tensors are read."""
    if not self.stacked:
      return _forward(*self.sources[0])[place]
    return np.stack([_forward(*source)[place[1:]] for source in self.sources[place[0]]])


class Report(NamedTuple):
  """What became of a checkpoint: keys used, leaves made new and how, keys left over."""

  network: str
  count: int
  used: dict[str, str]
  new: dict[str, str]
  left: dict[str, str]

  def __str__(self) -> str:
    head = f"{self.network}: {self.count:,} parameters in {len(self.used) + len(self.new)} leaves"
    lines = [f"{head}, {len(self.used)} from the file, {len(self.new)} new, {len(self.left)} left"]
    for title, entries in (("used", self.used), ("new", self.new), ("left", self.left)):
      lines += [f"  {title:4} {name}  {what}".rstrip() for name, what in entries.items()]
    return "\n".join(lines)


def to_flax(network: str, tensors: Tensors, sizes: Mapping[str, Any]) -> Params:
  """The params of a network from its tensors, under their names in the published files.

  `sizes` are the arguments of the model's constructor, or the published config. Dtypes stay as
  they are. Raises one ValueError that lists every key that is missing, unexpected or misshapen,
  and another for values that are not finite.
  """
  lazy, _ = fill(network, tensors, sizes)
  flat = flatten(lazy)
  check_finite(network, flat)
  return nest({path: np.asarray(x) for path, x in flat.items()})


def to_torch(
  network: str, params: Params, sizes: Mapping[str, Any], layout: str | None = None
) -> dict[str, np.ndarray]:
  """The inverse of `to_flax`: the tensors of a network by their published names."""
  lazy = unfill(network, params, sizes, layout)
  return {key: np.asarray(x) for key, x in lazy.items()}


class LazyTensor:
  """A tensor that is made of its leaf by np.asarray, each time anew."""

  def __init__(self, source: Any, place: int | None, leaf: leaf_lib.Leaf):
    self.source = source
    self.place = place
    self.leaf = leaf
    self.shape = leaf.shape
    self.dtype = np.dtype(source.dtype)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    array = np.asarray(self.source)
    array = array if self.place is None else array[self.place]
    return np.asarray(_backward(array, self.leaf), dtype)


def unfill(
  network: str, params: Params, sizes: Mapping[str, Any], layout: str | None = None
) -> dict[str, LazyTensor]:
  """`to_torch`, whose tensors are made only when asked for; those of one leaf follow each other.

  Leaves of `params` need shape, dtype and np.asarray.
  """
  leaves = table.layout(network, sizes, name=layout).leaves(sizes)
  flat = flatten(params)
  lazy = {x.leaf.key: x for x in _members(flat, leaves).values()}
  expected = {path: _shape(members) for path, members in _groups(leaves).items()}
  shapes = {path: np.broadcast_to(0, x.shape) for path, x in flat.items()}
  _raise(f"the params of {network}", _problems(expected, shapes))
  return lazy


def fill(
  network: str,
  tensors: Tensors,
  sizes: Mapping[str, Any],
  *,
  fresh: Params | None = None,
  new: Sequence[str] = (),
  widen: Sequence[str] = (),
  ignore: Sequence[str] = (),
) -> tuple[Params, Report]:
  """Params whose leaves are read only when asked for, and the report.

  Args:
    fresh: params as the model initializes them.
    new: regexes of paths that are taken from `fresh` where the checkpoint has nothing that fits.
    widen: regexes of paths of kernels that have more input channels than the checkpoint's: its
      own come first, the others are zero.
    ignore: regexes of keys that may be left over.
  """
  layout = table.layout(network, sizes, tensors)
  leaves = layout.leaves(sizes)
  found = {layout.plain(key): tensors[key] for key in tensors}
  drawn = _members(flatten(fresh or {}), leaves)
  for name, patterns in (("new", new), ("widen", widen)):
    for pattern in patterns:
      if not any(re.fullmatch(pattern, x.path) for x in leaves):
        raise errors.UserError(f"{name}={pattern!r} matches no leaf of {network}")

  made, left = {}, {}
  expected = {x.key: x.shape for x in leaves}
  for x in leaves:
    shape = tuple(np.shape(found[x.key])) if x.key in found else None
    if shape == x.shape:
      continue
    if shape is not None and _matches(widen, x.path) and _is_narrow(shape, x.shape):
      found[x.key] = Widened(found[x.key], x.shape)
      made[x.path] = f"{shape[1]} input channels from the file, {x.shape[1] - shape[1]} zero"
    elif _matches(new, x.path) and x.path in drawn:
      found[x.key] = drawn[x.path]
      made[x.path] = _describe(drawn[x.path])
  for key in found.keys() - expected.keys():
    if layout.unneeded(key) or _matches(ignore, key):
      left[key] = str(tuple(np.shape(found.pop(key))))
  problems = _problems(expected, found)
  if problems:
    _raise(f"the checkpoint for {network}", problems, hint=_hint(network, tensors))

  lazy = {
    path: Lazy([(found[x.key], x) for x in members], _stacked(members))
    for path, members in _groups(leaves).items()
  }
  used = {x.key: x.path for x in leaves if x.path not in made}
  count = sum(int(np.prod(x.target)) for x in leaves)
  return nest(lazy), Report(network, count, used, made, dict(sorted(left.items())))


class Widened:
  """A kernel with zeros for the input channels it lacks; a tensor as far as `Lazy` can see."""

  def __init__(self, tensor: Any, shape: tuple[int, ...]):
    self.tensor = tensor
    self.shape = shape
    self.dtype = np.dtype(tensor.dtype)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    out = np.zeros(self.shape, self.dtype if dtype is None else dtype)
    out[:, : self.tensor.shape[1]] = self.tensor
    return out


def check_finite(network: str, flat: Mapping[str, Any]) -> None:
  """Reads every leaf once; raises if one has a value that is no number."""
  # bfloat16 is no np.floating, and integers have nothing to check.
  bad = [path for path, x in flat.items() if not np.all(np.isfinite(np.asarray(x)))]
  if bad:
    raise errors.UserError(f"{network} has values that are not finite in {', '.join(bad)}")


def _forward(tensor: Any, leaf: leaf_lib.Leaf) -> np.ndarray:
  return np.asarray(tensor).transpose(leaf.axes).reshape(leaf.target)


def _backward(array: Any, leaf: leaf_lib.Leaf) -> np.ndarray:
  transposed = tuple(leaf.shape[axis] for axis in leaf.axes)
  return np.asarray(array).reshape(transposed).transpose(np.argsort(leaf.axes).tolist())


def _matches(patterns: Iterable[str], name: str) -> bool:
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def _is_narrow(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
  """Whether shape is `wanted` but for fewer input channels."""
  return (
    len(shape) == len(wanted) > 1
    and shape[1] < wanted[1]
    and (shape[0], *shape[2:]) == (wanted[0], *wanted[2:])
  )


def _describe(x: Any) -> str:
  x = np.asarray(x, np.float32)
  return f"drawn, deviation {x.std():.3g}" if np.any(x) else "zeros"


def _hint(network: str, keys: Iterable[str]) -> str:
  others = {name: prefix for prefix, name in table.recognize(keys).items()}
  if network in others:
    return ""
  if not others:
    return "\nIt looks like no network known here."
  return f"\nIt looks like {', '.join(others)}."


def _problems(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> list[str]:
  def shape(name):
    return tuple(np.shape(found[name]))

  problems = [f"  missing    {name} {expected[name]}" for name in expected.keys() - found.keys()]
  problems += [f"  unexpected {name} {shape(name)}" for name in found.keys() - expected.keys()]
  problems += [
    f"  misshapen  {name}: {shape(name)}, expected {wanted}"
    for name, wanted in expected.items()
    if name in found and shape(name) != wanted
  ]
  return sorted(problems)


def _raise(what: str, problems: Sequence[str], hint: str = "") -> None:
  if problems:
    lines = "\n".join(problems)
    raise errors.UserError(
      f"{what} does not fit its sizes in {len(problems)} leaves:\n{lines}{hint}"
    )


def _members(flat: Mapping[str, Any], leaves: Iterable[leaf_lib.Leaf]) -> dict[str, LazyTensor]:
  """The tensors of params by the leaves' paths; of a stack, each block's. What does not fit is left."""
  tensors = {}
  for path, members in _groups(leaves).items():
    if path in flat and tuple(flat[path].shape) == _shape(members):
      for place, x in enumerate(members):
        tensors[x.path] = LazyTensor(flat[path], place if _stacked(members) else None, x)
  return tensors


def _groups(leaves: Iterable[leaf_lib.Leaf]) -> dict[str, list[leaf_lib.Leaf]]:
  """{"a/b": [leaf of a[0]/b, leaf of a[1]/b]}: equal blocks share a leaf."""
  groups: dict[str, list[leaf_lib.Leaf]] = {}
  for x in leaves:
    groups.setdefault(re.sub(r"\[\d+\]", "", x.path), []).append(x)
  return groups


def _stacked(members: Sequence[leaf_lib.Leaf]) -> bool:
  return "[" in members[0].path


def _shape(members: Sequence[leaf_lib.Leaf]) -> tuple[int, ...]:
  """Of the leaf that holds them all."""
  target = members[0].target
  return (len(members), *target) if _stacked(members) else target


def match(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
  """The names that one of the regexes matches as a whole."""
  patterns = list(patterns)
  return [name for name in names if _matches(patterns, name)]


def keys(path: str) -> tuple[Any, ...]:
  """ "a/0/b" -> ("a", 0, "b"); numbers are positions of an nnx.List."""
  return tuple(int(p) if re.fullmatch(r"\d+", p) else p for p in path.split("/"))


def nest(flat: Mapping[str, Any]) -> Params:
  """{"a/0/b": x} -> {"a": {0: {"b": x}}}."""
  tree: Params = {}
  for path, x in flat.items():
    *parents, name = keys(path)
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
