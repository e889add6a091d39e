"""How long and how large video files are, as their containers say: no frame is decoded.

  shapes/   frames, height and width of `CHUNK` clips of a source, below what is kept of earlier runs

Each host looks at its share, and all learn what the others found. What a container says may be wrong:
a clip with fewer frames than it claims is then replaced by another one when it is read.
"""

import concurrent.futures
import io
import logging
import os
import time
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int32

from fbjax.data import buckets, kept, playback, text
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)

CHUNK = (
  4096  # clips that are kept together: as many are lost at most when a run is killed meanwhile
)
READERS = 32  # files at a time
TOLD = 10.0  # seconds between two lines of progress

Shape = tuple[int, int, int]


def shape(name: video_lib.Path, file: io.BufferedIOBase) -> Shape:
  """Frames, height and width of a video as it is shown; BrokenClip where the file does not say."""
  try:
    with playback.opened(name, file) as video:
      found = playback.promised(video)
    turned = playback.is_turned(file)
  except playback.Unplayable as e:
    raise video_lib.BrokenClip(f"{name} {e}.") from None
  except OSError as e:
    raise video_lib.BrokenClip(f"{name} cannot be read: {e.strerror or e}.") from None
  except video_lib.BrokenData as e:  # of a network
    raise video_lib.BrokenClip(str(e)) from None
  frames, height, width = (min(x, np.iinfo(np.int32).max) for x in found)
  return (frames, width, height) if turned else (frames, height, width)


def shapes(
  count: int, key: str, look: Callable[[int], Shape], hosts: buckets.Hosts
) -> Int32[np.ndarray, "n 3"]:
  """The shape of each of `count` clips, (0, 0, 0) for those that cannot be read.

  Args:
    count: of clips.
    key: of the data set: what is kept under it is not looked at again, but for what could not be read.
    look: index -> shape; raises BrokenClip.
    hosts: that share the work.
  """
  chunks = range(-(-count // CHUNK))
  found = np.zeros((count, 3), np.int32)
  progress = _Progress(count, hosts.count)
  pool = concurrent.futures.ThreadPoolExecutor(READERS)
  try:
    for chunk in chunks[hosts.index :: hosts.count]:
      rows = found[chunk * CHUNK : (chunk + 1) * CHUNK]
      path = kept.file("shapes", f"{key} {chunk} {count}")
      rows[:] = _kept(path, len(rows))
      before = rows.copy()
      unknown = np.flatnonzero(rows[:, 0] == 0)
      looked = pool.map(lambda i, first=chunk * CHUNK: _try(look, first + int(i)), unknown)
      for i, (one, error) in zip(unknown, progress(looked), strict=True):
        rows[i] = one
        if error:
          progress.failed(error)
      if not np.array_equal(rows, before):
        kept.write(path, rows.tobytes())
  finally:
    pool.shutdown(cancel_futures=True)
  progress.close()
  blocks = range(0, count, buckets.BLOCK)
  return np.concatenate([hosts.summed(found[i : i + buckets.BLOCK]) for i in blocks])


def _try(look: Callable[[int], Shape], index: int) -> tuple[Shape, str]:
  try:
    return look(index), ""
  except video_lib.BrokenClip as error:
    return (0, 0, 0), text.printable(str(error))


def _kept(path: os.PathLike, rows: int) -> Int32[np.ndarray, "n 3"]:
  try:
    with open(path, "rb") as file:
      return np.frombuffer(file.read(), np.int32).reshape(rows, 3)
  except (OSError, ValueError):  # or something else has been written there
    return np.zeros((rows, 3), np.int32)


class _Progress:
  """Says now and then how many clips were looked at, and at last what could not be read."""

  def __init__(self, count: int, hosts: int):
    self._count, self._hosts = count, hosts
    self._began = self._told = time.monotonic()
    self._done, self._failed, self._first = 0, 0, ""

  def __call__(self, looked: Iterator) -> Iterator:
    for one in looked:
      self._done += 1
      yield one
      now = time.monotonic()
      if now - self._told > TOLD:
        self._told, rate = now, self._done / (now - self._began)
        own = -(-self._count // self._hosts)
        logger.info(
          "Looked at the length and size of %d of %d clips, %.0f a second: at most %.0f min to go.",
          *(self._done, own, rate, (own - self._done) / rate / 60),
        )

  def failed(self, error: str) -> None:
    self._failed, self._first = self._failed + 1, self._first or error

  def close(self) -> None:
    if self._failed:
      logger.warning("%d clips cannot be read; the first: %s", self._failed, self._first)
