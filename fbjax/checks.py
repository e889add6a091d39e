"""Values of a config's keys and of flags: each mistake is one sentence that names the key."""

import math
import numbers
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fbjax import errors

INT32 = 2**31 - 1
SEED = 2**32 - 1
# Of the frames of a clip together, such as 120 of 1920x1080: nobody means more.
MAX_CLIP_PIXELS = 256 * 10**6


def whole(key: str, value: Any, least: int = 1, most: int = INT32) -> int:
  """`value` as an int.

  Raises:
    UserError: unless it is a whole number from `least` to `most`.
  """
  number = _whole(value)
  if number is None or not least <= number <= most:
    end = "up" if most == INT32 and (number or 0) <= most else f"to {most}"
    raise errors.UserError(f"{key} is {value!r}; expected a whole number from {least} {end}.")
  return number


def wholes(key: str, value: Any, least: int = 1, empty: bool = False) -> tuple[int, ...]:
  """The numbers of a list.

  Raises:
    UserError: unless they are whole numbers from `least` up, and at least one if not `empty`.
  """
  listed = isinstance(value, Sequence) and not isinstance(value, str)
  found = tuple(map(_whole, value)) if listed else ()
  if not listed or not (found or empty) or any(x is None or not least <= x <= INT32 for x in found):
    raise errors.UserError(f"{key} is {value!r}; expected a list of whole numbers from {least} up.")
  return found


def number(
  key: str,
  value: Any,
  least: float | None = None,
  *,
  above: float | None = None,
  most: float | None = None,
  below: float | None = None,
) -> float:
  """`value` as a float.

  Raises:
    UserError: unless it is a finite number, and within the bounds that are given.
  """
  real = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
  bounds = {
    "from {} up": (least, operator.ge),
    "above {}": (above, operator.gt),
    "at most {}": (most, operator.le),
    "below {}": (below, operator.lt),
  }
  given = {words: (end, fits) for words, (end, fits) in bounds.items() if end is not None}
  if not real or not all(fits(value, end) for end, fits in given.values()):
    told = ", ".join(words.format(end) for words, (end, _) in given.items())
    raise errors.UserError(
      f"{key} is {value!r}; expected {f'a number {told}' if told else 'a finite number'}."
    )
  return float(value)


def pair(key: str, value: Any, of: str, least: int = 1) -> tuple[int, int]:
  """The two numbers of `value`: one for both, or two such as "height and width".

  Raises:
    UserError: unless they are whole numbers from `least` up.
  """
  # On the command line, a number in place of a pair comes as a pair of one.
  values = (value, value) if _whole(value) is not None else value
  values = (*values, *values) if isinstance(values, list | tuple) and len(values) == 1 else values
  if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 2:
    first, second = map(_whole, values)
    if None not in (first, second) and min(first, second) >= least:
      return first, second
  raise errors.UserError(
    f"{key} is {value!r}; expected a whole number from {least} up, or two of them ({of})."
  )


def clip(frames: int, size: tuple[int, int]) -> None:
  """Raises a UserError for clips of more than `MAX_CLIP_PIXELS` pixels, all frames together."""
  pixels = frames * size[0] * size[1]
  if pixels > MAX_CLIP_PIXELS:
    raise errors.UserError(
      f"{frames} frames of {size[0]}x{size[1]} pixels are {pixels / 1e6:,.0f} megapixels; a clip has at "
      f"most {MAX_CLIP_PIXELS / 1e6:,.0f} (--frames, --size, --chunks, config.data)"
    )


def strings(key: str, value: Any) -> tuple[str, ...]:
  """The strings of a list; one by itself is a list of one, as it is on the command line.

  Raises:
    UserError: for anything else.
  """
  if isinstance(value, str):
    return (value,)
  if not isinstance(value, Sequence) or not all(isinstance(x, str) for x in value):
    raise errors.UserError(f"{key} is {value!r}; expected a list of strings.")
  return tuple(value)


def patterns(key: str, value: Any) -> tuple[str, ...]:
  """The regular expressions of a list, or one by itself.

  Raises:
    UserError: for anything else.
  """
  found = strings(key, value)
  for pattern in found:
    try:
      re.compile(pattern)
    except re.error as error:
      raise errors.UserError(
        f"{key} has {pattern!r}, which is no regular expression: {error}"
      ) from None
  return found


def finite(group: Mapping[str, Any], key: str = "config") -> None:
  """Raises a UserError if any float of a group, nested groups included, is NaN or infinite."""
  for name, value in group.items():
    if isinstance(value, Mapping):
      finite(value, f"{key}.{name}")
    elif isinstance(value, float):
      number(f"{key}.{name}", value)


def _whole(value: Any) -> int | None:
  try:
    return None if isinstance(value, bool) else operator.index(value)
  except TypeError:
    return None
