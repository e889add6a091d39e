"""A source -> restartable batches of this host.

Order matters (each stage needs random access to the one before): source, seed, shuffle, repeat,
read with the record's own generator, rows of this host, batch, then threads or worker processes.
A batch is thereby a function of (seed, position) alone: not of hosts, workers or restarts. Clips of
several lengths and sizes are streams of their own (`Part`), and a schedule says whose batch comes when.
"""

import hashlib
import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from fbjax import checks, errors
from fbjax.data import buckets, schedule, transforms
from fbjax.data import workers as workers_lib

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
# Least and most of the numbers of `config.loader`; no host has a use for more processes.
LIMITS = {"workers": (0, 1024), "threads": (1, 1024), "prefetch": (1, 1024), "tries": (1, 1024)}


class Batches:
  """An endless iterator of dict batches, whose state is one integer.

  A batch holds `video` uint8 "b t h w 3", `tokens` int32 "b n", `stride` and `label` int32 "b", or
  features in their place, `index` int64 "b" (of the source) and `replaced` bool "b", with b the rows
  of this process.
  `position` is the number of the next batch; setting it jumps there.
  """

  def __init__(
    self,
    source: transforms.Source,
    tokenizer: transforms.Tokenizer | None,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 4,
    tries: int = 20,
    parts: Sequence[buckets.Part] = (),
  ):
    """
    Args:
      source: of the clips.
      tokenizer: None where the source gives features.
      batch_size: global, over all processes, which it must be a multiple of.
      seed: of order, windows and replacements.
      shuffle: anew in every epoch; otherwise in the source's order.
      process_index, process_count: which block of each batch this process reads.
      workers: processes that read; with 0, threads of this one do.
      threads: that read where there are no workers.
      prefetch: batches read ahead: by each worker, or by all threads together.
      tries: broken clips in a row after which reading fails.
      parts: of the source by length and size, see `buckets.parts`; each batch is of a single part.
    """
    checks.whole("config.train.batch_size", batch_size)
    if batch_size % process_count:
      raise errors.UserError(f"batch_size {batch_size} must divide by {process_count} processes.")
    if not len(source):
      raise errors.UserError("the data set is empty.")
    check_numbers(workers=workers, threads=threads, prefetch=prefetch, tries=tries)
    self._source, self._parts = source, parts
    self._streams = []
    for i, part in enumerate(parts or [buckets.Part(source, range(len(source)))]):
      records = grain.MapDataset.source(range(len(part.indices))).seed((seed + i) % 2**32)
      records = (records.shuffle() if shuffle else records).repeat()
      read = transforms.Read(part.source, tokenizer, tries, part.indices)
      self._streams.append(records.random_map(read))
    counts = [len(part.indices) for part in parts] or [len(source)]
    self._schedule = schedule.Schedule(counts, batch_size, seed)
    self._global, self._local = batch_size, batch_size // process_count
    self._first = process_index * self._local
    self._workers, self._threads, self._prefetch = workers, threads, prefetch
    self._position, self._running = 0, []
    self._named = set()
    self.replaced = 0  # clips of this process replaced since it began
    # At exit, too: worker processes left to the interpreter's last moments leak shared memory.
    weakref.finalize(self, _stop, self._running)

  @property
  def position(self) -> int:
    return self._position

  @position.setter
  def position(self, position: int) -> None:
    self.close()
    self._position = position

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Batch:
    if not self._running:
      self._running.append(self._read_from(self._position))
    try:
      record = following(self._running[0])
    except errors.UserError:
      self.close()
      raise
    self._position += 1
    self.replaced += int(record.replaced.sum())
    for error in record.errors[record.replaced]:
      self._name(error.decode(errors="ignore").split("\n"))
    return record.fields | {"index": record.index, "replaced": record.replaced}

  def digest(self) -> str:
    """That of the source and, where it is read in parts, of which clips are in which."""
    if not self._parts:
      return self._source.digest()
    places = [hashlib.sha256(np.int64(part.indices).tobytes()).hexdigest() for part in self._parts]
    return transforms.digest([self._source.digest(), *places])

  def close(self) -> None:
    """Ends threads and workers; the next batch starts them again."""
    _stop(self._running)

  def _name(self, errors: list[str]) -> None:
    for error in errors:
      if error not in self._named:
        self._named.add(error)
        logger.warning("%s Another clip takes its place.", error)

  def _read_from(self, position: int) -> Iterator[transforms.Record]:
    rows = _Rows(self._streams, self._schedule, self._global, self._first, self._local, position)
    batches = grain.MapDataset.source(rows).batch(self._local, drop_remainder=True)
    return stream(batches, self._workers, self._threads, self._prefetch)


def stream(batches: grain.MapDataset, workers: int, threads: int, prefetch: int) -> Iterator[Any]:
  """The items in their order, read ahead by processes or else by threads; ends by its `close`."""
  if workers:
    return workers_lib.Workers(batches.__getitem__, workers, prefetch)
  return iter(batches.to_iter_dataset(grain.ReadOptions(min(threads, prefetch), prefetch)))


def following(running: Iterator[Any]) -> Any:
  """The next item of a `stream`.

  Raises:
    UserError: when one of its processes was ended.
  """
  try:
    return next(running)
  except workers_lib.Died as e:
    why = "as happens when memory runs out" if e.killed else "and has said why above, if anything"
    raise errors.UserError(
      f"a process that reads the data was ended by {e}, {why}; lower config.loader.workers or "
      "config.loader.prefetch, or read in threads with config.loader.workers=0, and start the run again."
    ) from None


def check_numbers(**options: Any) -> None:
  """Raises a UserError for numbers of `config.loader` that make no sense; others are not looked at."""
  for name, value in options.items():
    if name in LIMITS:
      checks.whole(f"config.loader.{name}", value, *LIMITS[name])


class _Rows:
  """Records of one host, batch after batch from `start`; each host has a block of every batch.

  A block rather than every n-th record, so that the global array, hosts one after another, is in
  the same order for any number of hosts.
  """

  def __init__(
    self,
    streams: Sequence[grain.MapDataset],
    order: schedule.Schedule,
    batch: int,
    first: int,
    rows: int,
    start: int,
  ):
    self._streams, self._order, self._batch, self._start = streams, order, batch, start
    self._first, self._rows = first, rows

  def __len__(self) -> int:
    return (len(self._streams[0]) // self._batch - self._start) * self._rows

  def __getitem__(self, i: int) -> transforms.Record:
    position, row = divmod(int(i), self._rows)
    stream, number = self._order(self._start + position)
    return self._streams[stream][number * self._batch + self._first + row]


def _stop(running: list) -> None:
  while running:
    running.pop().close()


def read(
  source: transforms.Source,
  tokenizer: transforms.Tokenizer | None,
  indices: Sequence[int],
  seed: int = 0,
) -> Batch:
  """The batch of these clips of a source, in this order, the same every time: for evaluation."""
  reader = transforms.Read(source, tokenizer)
  records = [reader(index, window(seed, index)) for index in indices]
  fields = {name: np.stack([r.fields[name] for r in records]) for name in records[0].fields}
  told = {name: np.stack([getattr(r, name) for r in records]) for name in ("index", "replaced")}
  return fields | told


def window(seed: int, index: int, number: int = 0) -> np.random.Generator:
  """A generator, seeded by its arguments alone, that draws window `number` of a clip."""
  return np.random.default_rng((seed, index, number))
