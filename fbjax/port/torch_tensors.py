"""Rebuilds the tensors of a torch pickle as views of its memory-mapped storages."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fbjax.port import dtypes, keys, limits, pickles, zips

Tensor = np.ndarray | dtypes.Unread

WRAPPED = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
TYPED = "torch._tensor._rebuild_from_type_v2"
STRIDED = {
  "torch._utils._rebuild_tensor",
  "torch._utils._rebuild_tensor_v2",
  "torch._utils._rebuild_tensor_v3",
}
REBUILT = re.compile(r"torch\._utils\._rebuild_\w+")
UNTYPED = {"torch.storage.UntypedStorage", "torch.storage._UntypedStorage", "torch.UntypedStorage"}
NUMBERS = dtypes.STORAGES | dtypes.TORCH
# What every checkpoint asks for.
KNOWN = {"torch.Size", pickles.ORDERED_DICT, TYPED} | WRAPPED | STRIDED | UNTYPED
KNOWN |= {f"torch.{name}" for name in [*NUMBERS, *dtypes.COMPLEX]}


def as_tensor(node: Any) -> pickles.Call | None:
  """The call that makes a tensor, without those that wrap it; None if it makes something else."""
  for _ in range(4):
    if not isinstance(node, pickles.Call) or not isinstance(node.what, pickles.Global):
      return None
    if node.what.name in WRAPPED:
      node = node.args[0]
    elif node.what.name == TYPED:
      node = pickles.Call(node.args[0], node.args[2])
    else:
      return node if REBUILT.fullmatch(node.what.name) else None
  return None


class Builder:
  """Rebuilds tensors, without copies, from the calls that `pickles.load` found in a pickle."""

  def __init__(self, archive: zips.Archive, root: str, file: Any):
    self.archive = archive
    self.root = root
    self.file = file
    self.total = 0
    self.visited = 0

  def entries(self, node: Any) -> Mapping[str, Any]:
    """What an object holds by name: items of a mapping; parameters, buffers and submodules."""
    if isinstance(node, dict):
      entries = node
    elif not isinstance(node, pickles.Call) or as_tensor(node) is not None:
      return {}
    else:
      state = node.state if isinstance(node.state, dict) else {}
      inside = [state[key] for key in ("_parameters", "_buffers", "_modules") if key in state]
      entries = dict(node.items)
      for part in inside or [state]:
        entries |= part if isinstance(part, dict) else {}
    # Objects may hold each other, and so have no end.
    self.visited += len(entries)
    if self.visited > limits.VISITS:
      raise limits.Refused("holds objects in objects without end: save its state dict alone")
    return entries

  def build(self, named: Iterable[tuple[str, pickles.Call]]) -> dict[str, Tensor]:
    tensors = {}
    for name, call in named:
      tensors[name] = self.tensor(keys.checked(name), call)
      if len(tensors) > limits.TENSORS:
        raise limits.Refused(f"has more than {limits.TENSORS:,} tensors: save its state dict alone")
    return tensors

  def tensor(self, name: str, call: pickles.Call) -> Tensor:
    label = keys.printable(name)
    if call.what.name not in STRIDED:
      kind = call.what.name.removeprefix("torch._utils._rebuild_")
      return dtypes.Unread(name, self.file, kind, ())
    outside, offset, shape, stride, *rest = call.args
    _, storage, key, _, count = outside.id
    shape, stride = _sizes(shape, label), _sizes(stride, label)
    _sizes((offset, count), label)
    dtype = storage.name.removeprefix("torch.")
    if storage.name in UNTYPED:
      dtype = rest[2].name.removeprefix("torch.")
    if dtype not in NUMBERS:
      return dtypes.Unread(name, self.file, dtype, shape)
    entry = self.root + key
    if entry not in self.archive:
      raise limits.Refused(f"lacks the values of {label}: download it again")
    return self.view(label, self.archive.mapped(entry), NUMBERS[dtype], offset, shape, stride)

  def view(
    self,
    label: str,
    storage: np.ndarray,
    dtype: np.dtype,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
  ) -> np.ndarray:
    if len(shape) != len(stride) or len(shape) > limits.RANK:
      raise limits.Refused(f"gives {label} an impossible shape: download it again")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > len(storage):
      raise limits.Refused(
        f"is damaged ({label} reaches beyond its storage, {len(storage)} bytes): download it again"
      )
    size = math.prod(shape) * dtype.itemsize
    self.total += size
    whole = len(self.archive.data)
    if size > whole or self.total > limits.SHARED * whole:
      raise limits.Refused(
        f"spreads {len(storage)} bytes over a tensor {label} of {size}, more than the file has: "
        "save its tensors with contiguous()"
      )
    if 0 in shape:
      return np.empty(shape, dtype)
    steps = [n * dtype.itemsize for n in stride]
    return np.ndarray(shape, dtype, storage, offset * dtype.itemsize, steps)


def _sizes(x: Any, label: str) -> tuple[int, ...]:
  """Numbers that are no less than zero: a tuple, or a torch.Size of one."""
  if isinstance(x, pickles.Call):
    (x,) = x.args
  if not isinstance(x, tuple) or not all(type(n) is int and 0 <= n < 2**63 for n in x):
    raise limits.Refused(f"gives {label} an impossible shape or place: download it again")
  return x
