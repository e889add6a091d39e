"""The seal of a checkpoint: what was saved, at which step, with a digest of every array.

It is written along with the arrays. It carries a checksum of itself: a damaged seal is refused, and
an intact one tells whether the arrays are.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from fbjax import digest, errors, trees


class Damaged(Exception):
  """What is on disk is incomplete or not what was saved; says how."""


class Saved(NamedTuple):
  """One array, as it was saved."""

  dtype: str
  shape: tuple[int, ...]
  digest: str


class Seal(NamedTuple):
  """What a checkpoint holds."""

  step: int
  position: int  # in the data
  arrays: dict[str, Saved]  # by path


def make(step: int, position: int, state: Any) -> Seal:
  """The seal of a state that is about to be saved."""
  digests = digest.of_tree(state, kept=True)
  return Seal(
    step,
    position,
    {
      path: Saved(x.dtype.name, tuple(x.shape), digests[path])
      for path, x in trees.paths(state).items()
    },
  )


def to_json(seal: Seal) -> dict[str, Any]:
  """A seal and its checksum."""
  content = {"step": seal.step, "position": seal.position, "arrays": seal.arrays}
  return {"content": content, "checksum": _checksum(content)}


def from_json(found: Any) -> Seal:
  """The inverse of `to_json`.

  Raises:
    Damaged: when this is not what `to_json` wrote.
  """
  try:
    content = found["content"]
    if _checksum(content) != found["checksum"]:
      raise Damaged("its seal is not as saved")
    arrays = {
      path: Saved(dtype, tuple(shape), digits)
      for path, (dtype, shape, digits) in content["arrays"].items()
    }
    return Seal(content["step"], content["position"], arrays)
  except (TypeError, KeyError, ValueError) as error:
    raise Damaged("its seal is not a seal") from error


def _checksum(content: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def check_wanted(wanted: Mapping[str, Any], seal: Seal, whole: bool, where: str) -> None:
  """Checks that a checkpoint has the arrays that are to be read, in their shapes.

  Args:
    wanted: arrays or their shapes, by path.
    seal: of the checkpoint.
    whole: whether it may have no others.
    where: the checkpoint, for the message.

  Raises:
    UserError: when it has not; the arrays are named.
  """
  told = [f"no {path}" for path in sorted(set(wanted) - set(seal.arrays))]
  if whole:
    told += [
      f"a {path}, which nothing here takes" for path in sorted(set(seal.arrays) - set(wanted))
    ]
  told += [
    f"a {path} of shape {seal.arrays[path].shape} instead of {tuple(x.shape)}"
    for path, x in wanted.items()
    if path in seal.arrays and seal.arrays[path].shape != tuple(x.shape)
  ]
  if told:
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    raise errors.UserError(
      f"{where} is of another network or optimizer: it has {', '.join(told[:3])}{more}; give the "
      "config that it was trained with"
    )


def check_read(tree: Any, seal: Seal) -> None:
  """Checks the digests of arrays that were read, over all processes.

  Raises:
    Damaged: when one of them is not; it is named.
  """
  wrong = digest.differing(tree, {path: x.digest for path, x in seal.arrays.items()})
  if wrong:
    more = f" and {len(wrong) - 1} more arrays are" if len(wrong) > 1 else " is"
    raise Damaged(f"{wrong[0]}{more} not what was saved")
