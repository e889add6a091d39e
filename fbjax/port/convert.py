"""Checkpoint tensors to params and back: renamed, transposed, and checked leaf by leaf."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fbjax import errors, lazy, trees
from fbjax.port import dtypes, keys, table
from fbjax.port import leaf as leaf_lib

Params = dict[Any, Any]
Tensors = Mapping[str, Any]


class Report(NamedTuple):
  """What was read of a checkpoint.

  count: parameters read. used: checkpoint key -> path in params. lacks: paths that the checkpoint
  lacks, wholly or some input channels -> what is missing. left: unused keys -> their shapes.
  """

  network: str
  count: int
  used: dict[str, str]
  lacks: dict[str, str]
  left: dict[str, str]

  def __str__(self) -> str:
    lines = [
      f"{self.network}: {self.count:,} parameters in {len(self.used)} leaves from the file, "
      f"{len(self.lacks)} lacking, {len(self.left)} left over"
    ]
    for title, entries in (("used", self.used), ("lacks", self.lacks), ("left", self.left)):
      lines += [
        f"  {title:5} {keys.printable(name)}  {what}".rstrip() for name, what in entries.items()
      ]
    return "\n".join(lines)


def to_flax(network: str, tensors: Tensors, sizes: Mapping[str, Any]) -> Params:
  """The params of a network from its tensors, under their names in the published files.

  `sizes` are the arguments of the model's constructor, or the published config. Dtypes stay as
  they are. Raises one ValueError that lists every key that is missing, unexpected or misshapen,
  and another for values that are not finite.
  """
  params, _ = fill(network, tensors, sizes)
  flat = trees.flatten(params)
  check_finite(network, flat)
  return trees.nest({path: np.asarray(x) for path, x in flat.items()})


def to_torch(
  network: str, params: Params, sizes: Mapping[str, Any], layout: str | None = None
) -> dict[str, np.ndarray]:
  """The inverse of `to_flax`: the tensors of a network by their published names."""
  tensors = unfill(network, params, sizes, layout)
  return {key: np.asarray(x) for key, x in tensors.items()}


def unfill(
  network: str,
  params: Params,
  sizes: Mapping[str, Any],
  layout: str | None = None,
  *,
  partial: bool = False,
) -> dict[str, lazy.Lazy]:
  """As `to_torch`, with lazy tensors; those cut from one stacked leaf are adjacent.

  Leaves of `params` need shape, dtype and np.asarray. With `partial`, leaves may be missing and
  kernels may have fewer input channels, as in the file that they came from.
  """
  leaves = table.layout(network, sizes, name=layout).leaves(sizes)
  flat = trees.flatten(params)
  tensors, expected = {}, {}
  for path, members in groups(leaves).items():
    shape = tuple(flat[path].shape) if path in flat else None
    if partial and shape is None:
      continue
    if partial and not is_stacked(members) and _is_narrow(shape[::-1], members[0].target[::-1]):
      (x,) = members
      members = [_narrowed(x, x.shape[1] * shape[-2] // x.target[-2])]
    expected[path] = _shape(members)
    if shape != expected[path]:
      continue  # told below
    for place, x in enumerate(members):
      make = functools.partial(_tensor, flat[path], place if is_stacked(members) else None, x)
      tensors[x.key] = lazy.Lazy(x.shape, flat[path].dtype, make)
  _raise(f"the params of {network}", _problems(expected, flat))
  return tensors


def _tensor(source: Any, place: int | None, leaf: leaf_lib.Leaf) -> np.ndarray:
  array = np.asarray(source)
  return backward(array if place is None else array[place], leaf)


def fill(
  network: str,
  tensors: Tensors,
  sizes: Mapping[str, Any],
  *,
  optional: Sequence[str] = (),
  narrow: Sequence[str] = (),
  ignore: Sequence[str] = (),
) -> tuple[Params, Report]:
  """Lazy params of a network from its checkpoint tensors, and a report of what was used.

  Args:
    network: one of `table.NETWORKS`.
    tensors: by their names in the file.
    sizes: arguments of the model's constructor, or the published config.
    optional: regexes of paths that may be missing in the file; the params then lack them.
    narrow: regexes of paths of kernels that may have fewer input channels in the file; the params
      then hold the file's.
    ignore: regexes of keys that may be left over.

  Raises:
    UserError: lists every key that is missing, unexpected or misshapen.
  """
  layout = table.layout(network, sizes, tensors)
  leaves = layout.leaves(sizes)
  found = {layout.plain(key): tensors[key] for key in tensors}
  for name, patterns in (("new or zero", optional), ("widen", narrow)):
    for pattern in patterns:
      if not any(re.fullmatch(pattern, x.path) for x in leaves):
        raise errors.UserError(f"{name}: {pattern!r} matches no leaf of {network}")

  lacks = {}
  for i, x in enumerate(leaves):
    shape = tuple(np.shape(found[x.key])) if x.key in found else None
    if shape is None and _matches(optional, x.path):
      lacks[x.path] = "not in the file"
    elif shape is not None and _matches(narrow, x.path) and _is_narrow(shape, x.shape):
      leaves[i] = _narrowed(x, shape[1])
      lacks[x.path] = f"{shape[1]} of {x.shape[1]} input channels"
  held = [x for x in leaves if x.key in found or x.path not in lacks]
  expected = {x.key: x.shape for x in held}
  left = {}
  for key in found.keys() - expected.keys():
    if layout.unneeded(key) or _matches(ignore, key):
      left[key] = str(tuple(np.shape(found.pop(key))))
  _raise(
    f"the checkpoint for {network}",
    _problems(expected, found),
    hint=_hint(network, tensors),
  )
  params = {}
  for path, members in groups(held).items():
    sources = [(found[x.key], x) for x in members]
    params[path] = stack(sources) if is_stacked(members) else single(*sources[0])
  used = {x.key: x.path for x in held}
  count = sum(int(np.prod(x.target)) for x in held)
  return trees.nest(params), Report(network, count, used, lacks, dict(sorted(left.items())))


def single(tensor: Any, leaf: leaf_lib.Leaf) -> lazy.Lazy:
  """A lazy leaf of params: its tensor, transposed and reshaped when it is read."""
  return lazy.Lazy(leaf.target, tensor.dtype, functools.partial(_forward, tensor, leaf))


def stack(sources: Sequence[tuple[Any, leaf_lib.Leaf]]) -> lazy.Lazy:
  """A lazy leaf of params: the tensors of repeated blocks, stacked along a new first axis."""
  tensor, leaf = sources[0]
  shape = (len(sources), *leaf.target)

  def make() -> np.ndarray:
    out = np.empty(shape, tensor.dtype)
    for row, source in zip(out, sources, strict=True):
      row[...] = _forward(*source)
    return out

  def part(place: lazy.Place) -> np.ndarray:
    return np.stack([_forward(*source)[place[1:]] for source in sources[place[0]]])

  return lazy.Lazy(shape, tensor.dtype, make, part)


def _narrowed(leaf: leaf_lib.Leaf, channels: int) -> leaf_lib.Leaf:
  """A kernel's leaf with so many input channels, which lead its next to last axis in params."""
  return leaf._replace(
    shape=(leaf.shape[0], channels, *leaf.shape[2:]),
    target=(*leaf.target[:-2], leaf.target[-2] * channels // leaf.shape[1], leaf.target[-1]),
  )


def check_finite(network: str, flat: Mapping[str, Any]) -> None:
  """Reads every leaf once; raises a UserError that names those with NaN or infinite values."""
  # bfloat16 is no np.floating, and integers have nothing to check.
  bad = [path for path, x in flat.items() if not np.all(np.isfinite(np.asarray(x)))]
  if bad:
    raise errors.UserError(f"{network} has values that are not finite in {', '.join(bad)}")


def _forward(tensor: Any, leaf: leaf_lib.Leaf) -> np.ndarray:
  return np.asarray(tensor).transpose(leaf.axes).reshape(leaf.target)


def backward(array: Any, leaf: leaf_lib.Leaf) -> np.ndarray:
  """Undoes the reshape and transpose of a leaf: from its layout in params to the checkpoint's."""
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


def _hint(network: str, keys: Iterable[str]) -> str:
  others = {name: prefix for prefix, name in table.recognize(keys).items()}
  if network in others:
    return ""
  if not others:
    return "\nIt looks like no network known here."
  return f"\nIt looks like {', '.join(others)}."


def _problems(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> list[str]:
  def shape(name):
    return tuple(found[name].shape)

  shown = keys.printable
  problems = [f"  missing    {name} {expected[name]}" for name in expected.keys() - found.keys()]
  problems += [
    f"  unexpected {shown(name)} {shape(name)}" for name in found.keys() - expected.keys()
  ]
  problems += [
    f"  misshapen  {name}: {shape(name)}, expected {wanted}"
    for name, wanted in expected.items()
    if name in found and shape(name) != wanted
  ]
  problems += [
    f"  unreadable {shown(name)}: {found[name].problem}"
    for name in expected.keys() & found.keys()
    if isinstance(found[name], dtypes.Unread)
  ]
  problems += [
    f"  no weights {shown(name)}: whole numbers ({found[name].dtype})"
    for name in expected.keys() & found.keys()
    if np.dtype(found[name].dtype).kind in "iub"
  ]
  return sorted(problems)


def _raise(what: str, problems: Sequence[str], hint: str = "") -> None:
  if problems:
    lines = "\n".join(problems)
    raise errors.UserError(
      f"{what} does not fit its sizes in {len(problems)} leaves:\n{lines}{hint}"
    )


def groups(leaves: Iterable[leaf_lib.Leaf]) -> dict[str, list[leaf_lib.Leaf]]:
  """Groups leaves by path without block index, {"a/b": [a[0]/b, a[1]/b]}: params stack a group."""
  groups: dict[str, list[leaf_lib.Leaf]] = {}
  for x in leaves:
    groups.setdefault(re.sub(r"\[\d+\]", "", x.path), []).append(x)
  return groups


def is_stacked(members: Sequence[leaf_lib.Leaf]) -> bool:
  """Whether the leaves of one group are stacked along a first axis in params."""
  return "[" in members[0].path


def _shape(members: Sequence[leaf_lib.Leaf]) -> tuple[int, ...]:
  """Of the leaf that holds them all."""
  target = members[0].target
  return (len(members), *target) if is_stacked(members) else target


def match(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
  """The names that one of the regexes matches as a whole."""
  patterns = list(patterns)
  return [name for name in names if _matches(patterns, name)]
