"""The order in which batches of several streams of clips follow each other."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


class Schedule:
  """Maps a global batch position to (stream, batch of that stream), by seed and position alone.

  Each stream repeats its own clips forever. In an epoch it gives as many full batches as its clips
  fill, randomly interleaved with those of the other streams; the clips left over begin its first
  batch of the next epoch. So after n epochs a stream has given all of its clips n times, but for
  less than one batch.
  """

  def __init__(self, counts: Sequence[int], batch: int, seed: int):
    """
    Args:
      counts: clips of each stream.
      batch: clips of a batch.
      seed: of the order.
    """
    self._counts, self._batch, self._seed = tuple(counts), batch, seed
    self._drawn = functools.lru_cache(2)(self._draw)

  def __getstate__(self) -> tuple:
    return self._counts, self._batch, self._seed

  def __setstate__(self, state: tuple) -> None:
    self.__init__(*state)

  def __call__(self, position: int) -> tuple[int, int]:
    """The stream, and the number of its batch."""
    if len(self._counts) == 1:
      return 0, position
    epoch = position * self._batch // sum(self._counts)  # this one, or an earlier one
    while self._before(epoch + 1) <= position:
      epoch += 1
    streams, numbers = self._drawn(epoch)
    place = position - self._before(epoch)
    return int(streams[place]), int(numbers[place])

  def _before(self, epoch: int) -> int:
    """How many batches come before an epoch."""
    return sum(self._of(count, epoch) for count in self._counts)

  def _of(self, count: int, epochs: int) -> int:
    return epochs * count // self._batch

  def _draw(self, epoch: int) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The streams of an epoch's batches, and their numbers in these."""
    firsts = [self._of(count, epoch) for count in self._counts]
    ends = [self._of(count, epoch + 1) for count in self._counts]
    streams = np.repeat(np.arange(len(ends), dtype=np.int16), np.subtract(ends, firsts))
    streams = np.random.default_rng((self._seed, epoch)).permutation(streams)
    numbers = np.empty(len(streams), np.int64)
    for i, (first, end) in enumerate(zip(firsts, ends, strict=True)):
      numbers[streams == i] = np.arange(first, end)
    return streams, numbers
