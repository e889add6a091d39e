"""Numbers of a config's groups: each mistake is one sentence that names the key."""

import operator
from collections.abc import Sequence
from typing import Any

from fbjax import errors


def whole(key: str, value: Any, least: int = 1) -> int:
  """`value` as an int.

  Raises:
    UserError: unless it is a whole number from `least` up.
  """
  number = _whole(value)
  if number is None or number < least:
    raise errors.UserError(f"{key} is {value!r}; expected a whole number from {least} up.")
  return number


def pair(key: str, value: Any, of: str, least: int = 1) -> tuple[int, int]:
  """The two numbers of `value`: one for both, or two such as "height and width".

  Raises:
    UserError: unless they are whole numbers from `least` up.
  """
  values = (value, value) if _whole(value) is not None else value
  if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 2:
    first, second = map(_whole, values)
    if None not in (first, second) and min(first, second) >= least:
      return first, second
  raise errors.UserError(
    f"{key} is {value!r}; expected a whole number from {least} up, or two of them ({of})."
  )


def _whole(value: Any) -> int | None:
  try:
    return None if isinstance(value, bool) else operator.index(value)
  except TypeError:
    return None
