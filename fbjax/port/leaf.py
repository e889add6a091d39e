"""The words in which `names/` spells out a checkpoint: one Leaf per tensor.

A table is a list of leaves. `linear`, `conv`, `norm` and so on make those of one layer, with names
relative to it; `at` puts a table under a name on both sides.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from fbjax import errors


class Leaf(NamedTuple):
  """One tensor: `key` and `shape` in the checkpoint, `path` in params, and the way between.

  The tensor is transposed by `axes` and then reshaped to `target`, which drops kernel axes of
  length one where params hold a plain matrix.
  """

  path: str
  key: str
  shape: tuple[int, ...]
  axes: tuple[int, ...]
  target: tuple[int, ...]


Table = list[Leaf]


def at(path: str, key: str, table: Iterable[Leaf]) -> Table:
  return [leaf._replace(path=f"{path}/{leaf.path}", key=f"{key}.{leaf.key}") for leaf in table]


def same(path: str, key: str, *shape: int) -> Table:
  """A tensor that lies the same way on both sides."""
  return [Leaf(path, key, shape, tuple(range(len(shape))), shape)]


def linear(c_in: int, c_out: int, *, bias: bool = True, ones: int = 0) -> Table:
  """A matrix, stored by torch as (out, in) with `ones` more axes of length one."""
  shape, axes = (c_out, c_in, *(1,) * ones), (*range(2, 2 + ones), 1, 0)
  kernel = [Leaf("kernel", "weight", shape, axes, (c_in, c_out))]
  return kernel + (same("bias", "bias", c_out) if bias else [])


def conv(c_in: int, c_out: int, *kernel: int, bias: bool = True, drop: int = 0) -> Table:
  """A convolution; params leave out the last `drop` axes of its kernel, which have length one."""
  k = len(kernel)
  target = (*kernel[: k - drop], c_in, c_out)
  if math.prod(kernel[k - drop :]) != 1:
    raise errors.UserError(f"a kernel {kernel} cannot do without its last {drop} axes")
  shape, axes = (c_out, c_in, *kernel), (*range(2, 2 + k), 1, 0)
  kernel_leaf = [Leaf("kernel", "weight", shape, axes, target)]
  return kernel_leaf + (same("bias", "bias", c_out) if bias else [])


def norm(c: int, *, bias: bool = True) -> Table:
  return same("scale", "weight", c) + (same("bias", "bias", c) if bias else [])


def embedding(n: int, c: int) -> Table:
  return same("embedding", "weight", n, c)
