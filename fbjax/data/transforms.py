"""Index of a source -> one example of a batch: read, replaced where broken, tokenized."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, Shaped, UInt8

from fbjax.data import text
from fbjax.data import video as video_lib


@runtime_checkable
class Source(Protocol):
  """Clips by index. `read` may draw (where to start, which stride); `name` is for people.

  `digest` is a short hash of what there is to train on, the names, captions and labels in their
  order, and not of how it is read or where it lies (size, frames, strides; the folder's path, the
  files' content). Two that differ tell that a run goes on with other data than before.
  """

  def __len__(self) -> int: ...

  def read(self, index: int, rng: np.random.Generator) -> video_lib.Clip: ...

  def name(self, index: int) -> str: ...

  def caption(self, index: int) -> str: ...

  def digest(self) -> str: ...


def digest(rows: Iterable) -> str:
  """16 hexadecimal digits that stand for some rows of text and numbers in their order."""
  rows, found = iter(rows), hashlib.sha256()
  # json, since it tells fields apart and escapes what is no UTF-8; many rows at once, for speed.
  while some := list(itertools.islice(rows, 4096)):
    found.update(json.dumps(some).encode())
  return found.hexdigest()[:16]


@runtime_checkable
class Tokenizer(Protocol):
  length: int
  vocab: int

  def __call__(self, captions: list[str]) -> Int32[np.ndarray, "b n"]: ...


class Fields(NamedTuple):
  """A clip as the networks want it, or a batch of them with a leading axis on each field."""

  video: UInt8[np.ndarray, "*b t h w 3"]
  tokens: Int32[np.ndarray, "*b n"]
  stride: Int32[np.ndarray, "*b"]
  label: Int32[np.ndarray, "*b"]


class Record(NamedTuple):
  """One example and where it came from, or a batch of them with a leading axis on each array."""

  fields: dict[str, Any]  # those of `Fields`, or features
  index: Int64[np.ndarray, "*b"]  # where in the source it came from
  replaced: Bool[np.ndarray, "*b"]  # it stands in for a clip that could not be read
  errors: Shaped[np.ndarray, "*b"]  # why not: a sentence for each that was tried, UTF-8


def fields(clip: video_lib.Clip, tokenizer: Tokenizer) -> dict[str, Any]:
  """The `Fields` of a clip, by name."""
  tokens = tokenizer([clip.caption])[0]
  return Fields(clip.video, tokens, np.int32(clip.stride), np.int32(clip.label))._asdict()


class Read:
  """Reads a clip; a broken one is replaced by another, chosen by the record's own generator.

  So the stream does not depend on who reads it: threads, processes, hosts, before or after a
  restart. After `tries` broken clips in a row it gives up.
  """

  def __init__(
    self,
    source: Source,
    tokenizer: Tokenizer | None,
    tries: int = 20,
    indices: Sequence[int] | Int[np.ndarray, "n"] | None = None,
  ):
    """
    Args:
      source: of the clips.
      tokenizer: None for a source whose reads are features, as those of a cache.
      tries: broken clips in a row after which it gives up.
      indices: of the clips that there are to read; None for all.
    """
    self._source, self._tokenizer, self._tries = source, tokenizer, tries
    self._indices = range(len(source)) if indices is None else indices

  def __call__(self, place: int, rng: np.random.Generator) -> Record:
    """The clip at a place of the indices."""
    index, errors = int(self._indices[int(place)]), []
    while len(errors) < self._tries:
      try:
        read = self._source.read(index, rng)
      except video_lib.BrokenClip as e:
        errors.append(text.printable(str(e)))
        index = int(self._indices[int(rng.integers(len(self._indices)))])
        continue
      return Record(
        fields=read if self._tokenizer is None else fields(read, self._tokenizer),
        index=np.int64(index),
        replaced=np.bool_(bool(errors)),
        # Bytes of fixed length, as a batch is stacked of them.
        errors=np.array("\n".join(errors).encode(), "S4000"),
      )
    raise video_lib.BrokenData(
      f"the data cannot be read: {self._tries} clips in a row are broken; the last: {errors[-1]}"
    )
