"""Several sources as one, each with its share of what is read."""

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from fbjax import checks, errors
from fbjax.data import buckets, transforms
from fbjax.data import video as video_lib

GOLDEN = (math.sqrt(5) - 1) / 2


class Mixture:
  """Clips of several sources in given shares; see `transforms.Source`.

  One pass is long enough that each source is read at least once, so that those with fewer clips for
  their share are read more often. Any stretch of indices has about the shares of the whole: previews
  and evaluations, which take the first clips, see all sources.
  """

  def __init__(self, parts: Mapping[str, transforms.Source], weights: Mapping[str, float]):
    """
    Args:
      parts: sources by name.
      weights: of each; only their ratios matter.

    Raises:
      UserError: without parts, or for a weight that is not above 0.
    """
    if not parts:
      raise errors.UserError("config.data.parts names no source to mix")
    for name in parts:
      checks.number(f"config.data.parts.{name}.weight", weights[name], above=0)
    self._names, self._parts = list(parts), list(parts.values())
    self._weights = [weights[name] / sum(weights.values()) for name in parts]
    rounds = max(len(part) / share for part, share in zip(self._parts, self._weights, strict=True))
    counts = [
      max(len(part), round(rounds * w)) for part, w in zip(self._parts, self._weights, strict=True)
    ]
    self._ends = np.cumsum(counts)
    # A stride that has no factor in common with the length visits every place once.
    step = max(1, round(len(self) * GOLDEN))
    while math.gcd(step, len(self)) > 1:
      step += 1
    self._step = step

  def __len__(self) -> int:
    return int(self._ends[-1])

  def _find(self, index: int) -> tuple[int, int]:
    """Which source an index is of, and which of its clips."""
    place = index * self._step % len(self)
    part = int(np.searchsorted(self._ends, place, side="right"))
    first = int(self._ends[part - 1]) if part else 0
    return part, (place - first) % len(self._parts[part])

  def resized(self, frames: int, size: tuple[int, int]) -> "Mixture":
    """The same clips, of all sources at another length and (height, width)."""
    other = copy.copy(self)
    other._parts = [part.resized(frames, size) for part in self._parts]
    return other

  def placed(self, taken: Sequence[buckets.Bucket], hosts: buckets.Hosts) -> Int[np.ndarray, "n"]:
    """The bucket of each clip, as its source says; see `buckets.Sizable`."""
    places = np.arange(len(self)) * self._step % len(self)
    found = np.empty(len(self), np.int16)
    ends = [0, *self._ends]
    for part, first, end in zip(self._parts, ends, ends[1:], strict=False):
      own = (first <= places) & (places < end)
      found[own] = part.placed(taken, hosts)[(places[own] - first) % len(part)]
    return found

  def read(self, index: int, rng: np.random.Generator) -> video_lib.Clip:
    part, clip = self._find(index)
    return self._parts[part].read(clip, rng)

  def name(self, index: int) -> str:
    part, clip = self._find(index)
    return f"{self._names[part]}/{self._parts[part].name(clip)}"

  def caption(self, index: int) -> str:
    part, clip = self._find(index)
    return self._parts[part].caption(clip)

  def digest(self) -> str:
    rows = zip(self._names, (part.digest() for part in self._parts), self._weights, strict=True)
    return transforms.digest(rows)
