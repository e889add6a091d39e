"""Arrays that are computed when they are read."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Place = tuple[slice, ...]


class Lazy:
  """An array of known shape and dtype; np.asarray, or indexing with slices, computes its values.

  Nothing is cached: each read computes them again.
  """

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
  """Caches the last result of `make`, and frees it before the next one is computed.

  For successive tensors that are slices of the same array.
  """
  last: list[Any] = []

  def kept(key: Any) -> np.ndarray:
    if not last or last[0] != key:
      last.clear()
      last.extend((key, make(key)))
    return last[1]

  return kept
