"""Buckets: the lengths and sizes of clips that a training takes, and which clip goes into which.

A clip goes to the bucket of which it fills the picture best: where the least of it is cut off, and of
those that are about alike the one that it need not be enlarged for, then the largest, then the longest.
It must have a bucket's frames; one for which its stride need not be shortened goes first among those
that are alike.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from fbjax import checks, errors
from fbjax.data import text, transforms
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)

KEY = "config.data.buckets"
NEAR = 0.05  # of a picture: nobody sees from which of two buckets so little more is cut off
NONE = -1  # in place of a bucket: the clip fits none
BLOCK = 1 << 18  # clips that are looked at together, to bound the memory


class Bucket(NamedTuple):
  """Length and size of clips, in frames and pixels."""

  frames: int
  height: int
  width: int

  def __str__(self) -> str:
    return f"{self.frames}x{self.height}x{self.width}"


class Hosts(NamedTuple):
  """Which of the run's hosts this is, how many there are, and what sums an array over all of them."""

  index: int = 0
  count: int = 1
  summed: Callable[[np.ndarray], np.ndarray] = lambda x: x


@runtime_checkable
class Sizable(transforms.Source, Protocol):
  """A source that reads its clips at any length and size, and knows which bucket suits each."""

  def resized(self, frames: int, size: tuple[int, int]) -> transforms.Source:
    """The same clips at another length and (height, width)."""
    ...

  def placed(self, buckets: Sequence[Bucket], hosts: Hosts) -> Int[np.ndarray, "n"]:
    """The index into `buckets` of each clip's bucket, or `NONE`.

    Collective: every host calls it, and all get the same.
    """
    ...


class Part(NamedTuple):
  """Clips of one length and size: those of `source` at `indices`."""

  source: transforms.Source
  indices: Sequence[int] | Int[np.ndarray, "n"]


def parse(value: Any) -> tuple[Bucket, ...]:
  """The buckets of a config's key.

  Raises:
    UserError: unless these are triples of whole numbers, each another one.
  """
  listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value)
  if not listed or not all(isinstance(x, list | tuple) and len(x) == 3 for x in value):
    raise errors.UserError(
      f"{KEY} is {value!r}; expected a list of (frames, height, width), such as ((16, 256, 256), "
      "(16, 256, 448)), or None for clips of one size"
    )
  found = tuple(Bucket(*checks.wholes(KEY, x)) for x in value)
  for i, bucket in enumerate(found):
    try:
      checks.clip(bucket.frames, bucket[1:])
    except errors.UserError as error:
      raise wrong(bucket, error) from None
    if bucket in found[:i]:
      raise errors.UserError(f"{KEY} has {tuple(bucket)} twice; leave one out")
  return found


def wrong(bucket: Bucket, error: errors.UserError) -> errors.UserError:
  """Rewords an error about a clip's length or size to name the bucket in place of config keys."""
  return errors.UserError(f"{KEY} has {tuple(bucket)}: {str(error).partition(' (--')[0]}")


def fitting(
  shapes: Int[np.ndarray, "n 3"], buckets: Sequence[Bucket], stride: int
) -> Int[np.ndarray, "n"]:
  """The index of the bucket that fits each clip best, `NONE` where it has too few frames for any.

  Args:
    shapes: frames, height and width (pixels) of each clip, 0 where they are not known.
    buckets: to choose from.
    stride: the smallest stride of the training, in frames of the file.
  """
  # What comes first is taken where the rest is equal.
  order = sorted(
    range(len(buckets)),
    key=lambda i: (-buckets[i].height * buckets[i].width, -buckets[i].frames),
  )
  taken, height, width = np.array(buckets)[order].T
  found = [
    _best(shapes[first : first + BLOCK, :, None], taken, height, width, stride)
    for first in range(0, len(shapes), BLOCK)
  ]
  best = np.concatenate(found)
  return np.where(best == NONE, NONE, np.array(order)[best]).astype(np.int16)


def _best(
  shapes: np.ndarray, taken: np.ndarray, height: np.ndarray, width: np.ndarray, stride: int
) -> Int[np.ndarray, "n"]:
  there, rows, columns = shapes[:, 0], *np.maximum(shapes[:, 1:], 1).swapaxes(0, 1)
  fits = taken <= there
  wider = columns / rows * height / width
  cut = np.where(fits, 1 - np.minimum(wider, 1 / wider), np.inf)
  alike = fits & (cut <= cut.min(1, keepdims=True) + NEAR)
  roomy = alike & ((taken - 1) * stride < there)
  alike = np.where(roomy.any(1, keepdims=True), roomy, alike)
  enlarged = np.maximum(1.0, np.maximum(height / rows, width / columns))
  best = np.where(alike, enlarged, np.inf).argmin(1)
  return np.where(fits.any(1), best, NONE)


def parts(source: Sizable, buckets: Sequence[Bucket], hosts: Hosts) -> list[Part]:
  """The clips of a source by bucket, those without clips left out; says how many each has.

  Raises:
    BrokenData: when no clip fits any.
  """
  placed = source.placed(buckets, hosts)
  counts = [int(np.sum(placed == i)) for i in range(len(buckets))]
  told = ", ".join(f"{n} of {bucket}" for n, bucket in zip(counts, buckets, strict=True))
  if not sum(counts):
    raise video_lib.BrokenData(
      f"none of the {len(source)} clips fits one of {KEY}, {source.name(0)} among them: each has too "
      "few frames for all of these, or cannot be read."
    )
  logger.info("Clips by bucket (frames x height x width): %s.", told)
  if left := np.flatnonzero(placed == NONE).tolist():
    logger.warning(
      "%d of %d clips fit no bucket and are left out, such as %s: they have too few frames for all of "
      "%s, or cannot be read.",
      len(left),
      len(source),
      text.printable(source.name(left[0])),
      KEY,
    )
  return [
    Part(source.resized(bucket.frames, bucket[1:]), np.flatnonzero(placed == i).astype(np.int32))
    for i, bucket in enumerate(buckets)
    if counts[i]
  ]
