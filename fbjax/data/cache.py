"""A cache of what frozen encoders make of clips: ArrayRecord files, read at random.

  cache.json            what made it, and how many clips there are: see `fbjax.caches`
  train-00003.records   the clips of one shard, every window of each, in the source's order
  val-00000.records     the first held-out clips
  nulls.record          what is the same for all clips: features of the empty caption and no image

A record is named arrays with a caption, a name and a checksum. A clip that could not be read has one
too, which says why: so a record's place follows from the clip's index alone, and training draws
another clip for it exactly as it does from the source.
"""

import contextlib
import json
import os
import pathlib
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module

from fbjax import errors
from fbjax.data import objects, pipeline, storage, text, transforms
from fbjax.data import video as video_lib

MOST_SHARDS = 512  # Of a split: a reader keeps all open, and 1024 files is what a process may have.
# Latents hardly compress, and a compressed record is read at a quarter of the speed.
WRITING = "group_size:1,uncompressed"
READING = "readahead_buffer_size:0,max_parallelism:0"
NULLS = "nulls.record"
SUFFIXES = (".records", ".record")
WHOLE = 4 + 8  # bytes of a record before its head: the checksum, the head's length


class Record(NamedTuple):
  """What is known of one window of a clip.

  arrays: features, and stride and label, by name. about: plain values: caption, name, index, window;
  `error` where the clip could not be read, and then there are no arrays.
  """

  arrays: dict[str, np.ndarray]
  about: dict[str, Any]


def pack(record: Record) -> bytes:
  """Serializes a record.

  CRC-32 of the rest (4 bytes), length of the header (8 bytes, both little-endian), the header as
  JSON (name, dtype and shape of each array; `about`), then the raw arrays in that order.
  """
  arrays = {name: np.asarray(x) for name, x in record.arrays.items()}
  told = [(name, x.dtype.name, x.shape) for name, x in arrays.items()]
  head = json.dumps({"arrays": told, "about": record.about}).encode()
  body = b"".join([len(head).to_bytes(8, "little"), head, *(x.tobytes() for x in arrays.values())])
  return zlib.crc32(body).to_bytes(4, "little") + body


def unpack(data: bytes) -> Record:
  """The inverse of `pack`.

  Raises:
    ValueError: when the bytes are not what was packed.
  """
  if len(data) < WHOLE or zlib.crc32(memoryview(data)[4:]) != int.from_bytes(data[:4], "little"):
    raise ValueError("its checksum is another")
  place = WHOLE + int.from_bytes(data[4:WHOLE], "little")
  head = json.loads(data[WHOLE:place])
  arrays = {}
  for name, dtype, shape in head["arrays"]:
    arrays[name] = np.frombuffer(data, dtype, int(np.prod(shape)), place).reshape(shape)
    place += arrays[name].nbytes
  return Record(arrays, head["about"])


def shards(clips: int, least: int) -> list[range]:
  """The clips of each shard: a function of their number alone, whoever writes them.

  Args:
    clips: of the split.
    least: clips of a shard, but for the last one; more where there would be too many shards.
  """
  size = max(least, -(-clips // MOST_SHARDS))
  return [range(first, min(first + size, clips)) for first in range(0, clips, size)]


def shard_file(folder: video_lib.Path, split: str, shard: int) -> objects.Place:
  return storage.place(folder) / f"{split}-{shard:05}.records"


def check_whole(folder: video_lib.Path, split: str, clips: int, least: int) -> None:
  """Raises a UserError when shards of a split are missing; `clips` and `least` are as of `shards`."""
  there = storage.listed(storage.place(folder))
  names = [shard_file(folder, split, i).name for i in range(len(shards(clips, least)))]
  if missing := [name for name in names if name not in there]:
    raise errors.UserError(
      f"{folder} lacks {len(missing)} of the {len(names)} shards of {split}, {missing[0]} among them: "
      "run the same --mode=cache again, which makes what is missing"
    )


def write(file: objects.Place, records: Iterable[Record]) -> None:
  """Writes a shard atomically: under a temporary name, renamed or uploaded when complete.

  Raises:
    UserError: when it cannot be written, such as to a full disk.
  """
  with _telling(file), storage.written(file) as aside:
    writer = array_record_module.ArrayRecordWriter(str(aside), WRITING)
    try:
      for record in records:
        writer.write(pack(record))
    finally:
      writer.close()


def write_bytes(file: objects.Place, data: bytes) -> None:
  """Writes a small file all at once; raises as `write`."""
  with _telling(file), storage.written(file) as aside:
    aside.write_bytes(data)


def write_one(file: objects.Place, record: Record) -> None:
  """Writes a file of a single record."""
  write_bytes(file, pack(record))


def read_one(file: objects.Place) -> Record:
  """Reads what `write_one` wrote.

  Raises:
    UserError: when it is not there, or damaged.
  """
  try:
    return unpack(file.read_bytes())
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"{file} is missing or damaged ({error}): remove it and run the same --mode=cache again"
    ) from None


def _telling(file: objects.Place) -> contextlib.AbstractContextManager[None]:
  return errors.of_the_disk(
    f"cannot write {file}", lambda: "make room there, or take another --out"
  )


class Cached:
  """A source of cached features: each read draws one of a clip's windows.

  Its indices are those of the source it was made of, so that a run sees the same clips in the same
  order.
  """

  def __init__(
    self,
    folder: video_lib.Path,
    split: str,
    *,
    clips: int,
    windows: int,
    least: int,
    digest: str,
    fields: Mapping[str, tuple[tuple[int, ...], str]],
    beside: tuple[str, ...] = (),
  ):
    """
    Args:
      folder: of the cache, on this machine.
      split: "train" or "val".
      clips, windows: how many there are, and of each clip.
      least: as of `shards`.
      digest: of the source.
      fields: (shape, dtype) of the arrays of every record.
      beside: prefixes of the names of arrays that `read` leaves out.

    Raises:
      UserError: when shards are missing.
    """
    self.folder, self.split, self.clips, self.windows = pathlib.Path(folder), split, clips, windows
    self._shards, self._digest, self._beside = shards(clips, least), digest, beside
    self._fields = dict(fields)
    check_whole(folder, split, clips, least)
    self._files = [shard_file(folder, split, i) for i in range(len(self._shards))]
    self._begin()

  def _begin(self) -> None:
    self._lock = threading.Lock()
    self._readers: dict[int, Any] = {}

  def __getstate__(self) -> dict[str, Any]:
    """For processes that read: each opens the files itself."""
    return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_readers")}

  def __setstate__(self, state: Mapping[str, Any]) -> None:
    self.__dict__.update(state)
    self._begin()

  def __len__(self) -> int:
    return self.clips

  def digest(self) -> str:
    return self._digest

  def name(self, index: int) -> str:
    return self._about(index).get("name", f"clip {index} of {self.folder}")

  def caption(self, index: int) -> str:
    return self._about(index).get("caption", "")

  def _about(self, index: int) -> dict[str, Any]:
    try:
      return self.record(index, 0).about
    except video_lib.BrokenClip:
      return {}

  def read(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The features of one window, drawn with `rng`; BrokenClip where there are none."""
    window = int(rng.integers(self.windows)) if self.windows > 1 else 0
    record = self.record(index, window)
    if "error" in record.about:
      raise video_lib.BrokenClip(record.about["error"])
    return {k: x for k, x in record.arrays.items() if not k.startswith(self._beside)}

  def record(self, index: int, window: int) -> Record:
    """The record of a window.

    Raises:
      BrokenClip: when it is damaged.
      BrokenData: when its whole shard is.
    """
    shard, place = divmod(index, len(self._shards[0]))
    reader = self._reader(shard)
    try:
      data = reader.read([place * self.windows + window])[0]
      record = unpack(data)
      found = {name: (x.shape, x.dtype.name) for name, x in record.arrays.items()}
      if record.about["index"] != index or record.about["window"] != window:
        raise ValueError("it is another clip's")
      if "error" not in record.about and found != self._fields:
        raise ValueError("it holds other arrays than cache.json says")
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
      with self._lock:  # one that has failed may fail from then on
        self._readers.pop(shard, None)
      raise video_lib.BrokenClip(
        f"clip {index} in {self._files[shard]} is damaged ({str(error).splitlines()[0]})."
      ) from None
    return record

  def _reader(self, shard: int) -> Any:
    with self._lock:
      if shard not in self._readers:
        self._readers[shard] = opened(self._files[shard])
      return self._readers[shard]


def opened(file: pathlib.Path) -> Any:
  """A reader of a shard.

  Raises:
    BrokenData: for one that is damaged as a whole, since all its clips would be lost.
  """
  try:
    reader = array_record_module.ArrayRecordReader(os.fspath(file), READING)
    if reader.ok():  # a file that breaks off is opened all the same
      return reader
    why = "it breaks off"
  except RuntimeError as error:
    why = str(error).splitlines()[0]
  raise video_lib.BrokenData(
    f"{file} is damaged as a whole ({why}): run the same --mode=cache again, which makes it anew."
  )


class Reads:
  """A map-style dataset of batches to encode: batch number -> dict of arrays with leading axis b.

  It holds the `transforms.Fields` of clips, and `index`, `window` and `error` of each row. `error`
  is empty, or says why a clip could not be read, and its pixels are then 0. A batch that is not
  full repeats its last row.
  """

  def __init__(
    self,
    source: transforms.Source,
    tokenizer: transforms.Tokenizer,
    rows: Sequence[Sequence[tuple[int, int]]],
    *,
    batch_size: int,
    seed: int,
    shape: tuple[int, ...],
  ):
    """
    Args:
      source, tokenizer: of the clips and their captions.
      rows: for each batch the (index, window) of its rows, at most `batch_size`.
      batch_size: b.
      seed: of the windows.
      shape: of a clip's pixels, (t, h, w, 3).
    """
    self._source, self._tokenizer, self._rows = source, tokenizer, rows
    self._batch_size, self._seed, self._shape = batch_size, seed, shape

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    rows = [self._read(*row) for row in self._rows[number]]
    rows += [rows[-1]] * (self._batch_size - len(rows))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def _read(self, index: int, window: int) -> dict[str, Any]:
    error = ""
    try:
      clip = self._source.read(index, pipeline.window(self._seed, index, window))
    except video_lib.BrokenClip as e:
      clip, error = video_lib.Clip(np.zeros(self._shape, np.uint8), "", 1, -1), str(e)
    told = {"index": np.uint32(index), "window": np.uint32(window)}
    # Bytes of fixed length, as a batch is stacked of them.
    told["error"] = np.array(text.printable(error).encode(), "S1000")
    return transforms.fields(clip, self._tokenizer) | told
