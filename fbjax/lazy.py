"""Arrays that are made when somebody asks for their values."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Place = tuple[slice, ...]


class Lazy:
  """Has shape and dtype at once, values by np.asarray or, of a part, by slices: each time anew."""

  def __init__(
    self,
    shape: Sequence[int],
    dtype: Any,
    make: Callable[[], np.ndarray],
    part: Callable[[Place], np.ndarray] | None = None,
  ):
    """
    Args:
      shape, dtype: of what `make` returns.
      make: all values.
      part: the values in a tuple of slices, where that is cheaper than all of them.
    """
    self.shape, self.dtype = tuple(shape), np.dtype(dtype)
    self._make, self._part = make, part

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self._make(), dtype)

  def __getitem__(self, place: Place) -> np.ndarray:
    return np.asarray(self._make()[place] if self._part is None else self._part(place))


def keep_last(make: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
  """`make` that remembers its last result, and lets go of it before it makes another.

  For tensors that follow each other and are cut from the same array.
  """
  last: list[Any] = []

  def kept(key: Any) -> np.ndarray:
    if not last or last[0] != key:
      last.clear()
      last.extend((key, make(key)))
    return last[1]

  return kept
