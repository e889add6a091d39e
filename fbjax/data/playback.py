"""What playing a video file shows, frame by frame.

The order and the number of the frames are what a decoder gives that reads the file from its start:
nothing that a container says of them is believed unless the file is of a kind where its packets
are the frames. There are two ways to a frame:

  from_start     decodes all that lies before it; right for every file
  from_keyframe  seeks; the frames obtained are compared with the index of packets, one by one, and
                 where they disagree there are none

Only the local file itself is read: by descriptor, so that its name is never taken for a protocol or
a pattern, and by no format that refers to other files (playlists, lists to concatenate).
"""

import collections
import contextlib
import errno
import hashlib
import io
import itertools
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, TypeVar

import av
import av.sidedata.sidedata
import av.stream
import av.video.reformatter
import numpy as np
from jaxtyping import UInt8

MAX_PIXELS = 8192 * 4320  # 8K of cinema; decoding it takes some 400 MB.

# Containers that hold their content themselves, as FFmpeg names them.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,mpegvideo,m4v,h264,hevc,dv,mxf,nut"

# Where one packet is one frame with its own time stamp. Elsewhere packets are not shown (VP8),
# hold two frames (packed B-frames) or none (AVI), or say nothing of the order (AVI, MPEG).
_INDEXED_FORMATS = ("mov", "matroska")
_INDEXED_CODECS = ("h264", "hevc", "vp9", "av1")

Path = str | os.PathLike
T = TypeVar("T")


class Unplayable(Exception):
  """Why a file cannot be played: the rest of a sentence that begins with its name."""


class Index(NamedTuple):
  """Sorted presentation time stamps, in units of the stream's time base.

  pts: of the frames that are shown. keys: of the keyframes.
  """

  pts: np.ndarray
  keys: np.ndarray


class Video(NamedTuple):
  """A file opened for playing; `identity` is the same as long as its content is, None if unknown."""

  container: av.container.InputContainer
  stream: av.VideoStream
  identity: Hashable


class Picture(NamedTuple):
  """A decoded RGB frame, rotated upright; `aspect` is its pixel aspect ratio, width / height."""

  image: UInt8[np.ndarray, "h w 3"]
  aspect: float


@contextlib.contextmanager
def opened(path: Path, data: bytes | io.BufferedIOBase | None = None) -> Iterator[Video]:
  """Opens a file, or its content in memory, at its best video stream; Unplayable if there is none.

  `data` may be a file that is open already, and stays so.

  Raises Unplayable also for frames of more than `MAX_PIXELS`, before one is decoded.
  """
  with _content(path, data) as file:
    try:
      head, size = file.read(8), file.seek(0, os.SEEK_END)
      file.seek(0)
    except OSError as e:
      raise Unplayable(f"cannot be read: {e.strerror or e}") from None
    if not size and data is None:
      raise Unplayable("is empty")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "fd"}
    if data is None:
      options["fd"] = str(file.fileno())
    with _ffmpeg():
      container = av.open(
        "fd:" if data is None else file,
        container_options=options,
        options={"max_pixels": str(MAX_PIXELS)},
        metadata_errors="replace",
      )
    with container:
      stream = _best_stream(container)
      codec = stream.codec_context
      if codec.width * codec.height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.0f} megapixels"
        raise Unplayable(f"has frames of {codec.width} x {codec.height}, more than {limit}")
      codec.options = {"max_pixels": str(MAX_PIXELS)}
      if container.format.name == "avi":
        _check_avi(head, size)
      if data is None:
        identity = _identity(file)
      else:
        identity = hashlib.blake2b(data).digest() if isinstance(data, bytes) else None
      yield Video(container, stream, identity)


def open_regular(path: Path) -> BinaryIO:
  """Opens a file to read; OSError for what is none, such as a pipe, which might never answer."""
  file = open(  # noqa: SIM115
    path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
  )
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file")
  return file


def promised(video: Video) -> tuple[int, int, int]:
  """Frames, height and width as the container states them, without decoding.

  Before any rotation; the width is in square pixels. Without a count of frames, it follows from
  duration and frame rate, or else packets are counted. Unplayable where one of the three is
  unknown.
  """
  container, stream, _ = video
  codec, rate = stream.codec_context, stream.average_rate
  frames = stream.frames
  if not frames and rate and container.duration:
    frames = round(container.duration / av.time_base * rate)
  if not frames:
    frames = sum(1 for packet in _packets(video) if packet.size)
  width = round(codec.width * float(stream.sample_aspect_ratio or 1))
  if not (frames and codec.height and width):
    raise Unplayable("does not say its length and size")
  return frames, codec.height, width


def is_turned(file: io.BufferedIOBase) -> bool:
  """Whether the track header (tkhd) of a mov or mp4 rotates the video by 90 or 270 degrees.

  Phones write such display matrices (ISO/IEC 14496-12). False for other containers.
  """
  for first, last in _boxes(file, (b"moov", b"trak")):
    kinds = [_read(file, at + 8, 4) for at, _ in _boxes(file, (b"mdia", b"hdlr"), first, last)]
    for at, _ in _boxes(file, (b"tkhd",), first, last):
      # A newer head has times of 64 bits.
      matrix = _read(file, at + (52 if _read(file, at, 1) == b"\1" else 40), 36)
      if kinds == [b"vide"] and len(matrix) == 36:
        a, b, _, c, d = struct.unpack(">5i", matrix[:20])
        return abs(b) + abs(c) > abs(a) + abs(d)
  return False


def _read(file: io.BufferedIOBase, at: int, size: int) -> bytes:
  file.seek(at)
  return file.read(size)


def _boxes(
  file: io.BufferedIOBase, path: Sequence[bytes], first: int = 0, last: int | None = None
) -> Iterator[tuple[int, int]]:
  """Beginning and end of what is in the boxes of a mov or mp4 at a path of kinds, below a place."""
  last = file.seek(0, os.SEEK_END) if last is None else last
  while first + 8 <= last:
    head = _read(file, first, 16)
    size, kind, begins = int.from_bytes(head[:4]), head[4:8], first + 8
    if size == 1:
      size, begins = int.from_bytes(head[8:]), first + 16
    end = first + size if size else last  # 0: to the end of the file
    if not begins <= end <= last:
      return
    if kind == path[0]:
      yield from [(begins, end)] if len(path) == 1 else _boxes(file, path[1:], begins, end)
    first = end


def read_index(video: Video) -> Index | None:
  """The index of a file, read from its packets without decoding; None where they do not tell it.

  They do where each is a frame with a time stamp of its own and the first is a keyframe with
  nothing to show before it, which a decoder would have to leave out. Unplayable where the file
  breaks off. Keeps nothing of a packet but its time stamp and flags.
  """
  kind = video.container.format.name.split(",")[0]
  if kind not in _INDEXED_FORMATS:
    return None
  return _memo(video.identity, "index", lambda: _read_index(video, kind))


def count_frames(path: Path, data: bytes | None, identity: Hashable) -> int:
  """How many frames the video of that identity shows, by decoding all of it."""

  def count():
    with opened(path, data) as video:
      return sum(1 for _ in _frames(video))

  return _memo(identity, "count", count)


def from_keyframe(video: Video, index: Index, wanted: Sequence[int]) -> Iterator[Picture]:
  """Yields the wanted frames, decoded from the last keyframe before the first of them.

  Ends early where the file does not keep what its index promises. Spares decoding what lies before:
  half of a long video on average.
  """
  container, stream, _ = video
  key = index.keys[np.searchsorted(index.keys, index.pts[wanted[0]], "right") - 1]
  screen = _Screen(stream)
  try:
    with _ffmpeg():
      container.seek(int(key), stream=stream)
    packets = _packets(video)
    first = next(packets)
    if first.pts is None or not first.is_keyframe:
      return
    at = int(np.searchsorted(index.pts, first.pts))
    for packet in itertools.chain([first], packets):
      with _ffmpeg():
        frames = packet.decode()
      for frame in frames:
        if frame.pts is not None and frame.pts < first.pts:
          continue  # It refers to frames before the keyframe.
        if at > wanted[-1] or frame.pts != index.pts[at] or frame.is_corrupt:
          return
        if at in wanted:
          yield screen(frame)
        at += 1
  except Unplayable:
    return


def from_start(path: Path, data: bytes | None, wanted: Sequence[int]) -> Iterator[Picture]:
  """Yields the wanted frames, decoded from the start of the file."""
  with opened(path, data) as video:  # Anew: after a seek, some decoders lack their palette.
    screen = _Screen(video.stream)
    for i, frame in enumerate(_frames(video)):
      if i in wanted:
        yield screen(frame)
      if i == wanted[-1]:
        return


class _Screen:
  """Decoded frame -> the picture that a player shows of it."""

  def __init__(self, stream: av.VideoStream):
    self._aspect = float(stream.sample_aspect_ratio or 1)
    self._to_rgb = av.video.reformatter.VideoReformatter()

  def __call__(self, frame: av.VideoFrame) -> Picture:
    with _ffmpeg():
      image = self._to_rgb.reformat(frame, format="rgb24").to_ndarray()
      matrix = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    if matrix is None:
      return Picture(image, self._aspect)
    # (x, y) is shown at (a x + c y, b x + d y), up to an offset: a quarter turn swaps the axes.
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(b) + abs(c) <= abs(a) + abs(d):
      aspect = self._aspect
    else:
      image, aspect, a, d = image.swapaxes(0, 1), 1 / self._aspect, c, b
    return Picture(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], aspect)


class _Memo:
  """What was found out of files, once; forgets what is unused for longest beyond `limit` bytes."""

  def __init__(self, limit: int):
    self._limit, self._size, self._lock = limit, 0, threading.Lock()
    self._kept: collections.OrderedDict[Hashable, tuple[object, int]] = collections.OrderedDict()

  def __call__(self, identity: Hashable | None, name: str, make: Callable[[], T]) -> T:
    """The result of `make`, kept under a name for each identity; nothing is kept for None."""
    if identity is None:
      return make()
    key = identity, name
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key][0]
    result = make()
    size = 500 + (sum(map(sys.getsizeof, result)) if isinstance(result, tuple) else 0)
    with self._lock:
      self._size += size - self._kept.pop(key, (None, 0))[1]
      self._kept[key] = result, size
      while self._size > self._limit:
        self._size -= self._kept.popitem(last=False)[1][1]
    return result


_memo = _Memo(limit=64 * 2**20)


def _read_index(video: Video, kind: str) -> Index | None:
  count, trusted = 0, video.stream.codec_context.codec.canonical_name in _INDEXED_CODECS
  shown, keys = [], []
  for packet in _packets(video):
    if packet.dts is None and not packet.size:
      continue  # PyAV's own, to flush the decoder.
    count += 1
    usable = packet.pts is not None and not packet.is_corrupt and (keys or packet.is_keyframe)
    trusted = trusted and bool(usable)
    if trusted and packet.is_keyframe:
      keys.append(packet.pts)
    if trusted and not packet.is_discard:
      shown.append(packet.pts)
  promised = len(video.stream.index_entries)
  if kind == "mov" and count < 0.9 * promised:
    raise Unplayable(f"breaks off: {count} of its {promised} frames are there")
  if not trusted or not shown or len(set(shown)) < len(shown) or min(shown) < keys[0]:
    return None
  return Index(np.sort(shown), np.sort(keys))


def _content(
  path: Path, data: bytes | io.BufferedIOBase | None
) -> contextlib.AbstractContextManager:
  if data is None:
    return _file(path)
  return io.BytesIO(data) if isinstance(data, bytes) else contextlib.nullcontext(data)


def _file(path: Path) -> BinaryIO:
  try:
    return open_regular(path)
  except FileNotFoundError:
    raise Unplayable("does not exist") from None
  except (OSError, ValueError) as e:  # ValueError: a zero byte in the name.
    raise Unplayable(f"cannot be decoded: {getattr(e, 'strerror', e)}") from None


def _best_stream(container) -> av.VideoStream:
  """FFmpeg's choice among the video streams, but never cover art."""
  streams = [
    s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
  ]
  if not streams:
    raise Unplayable("has no video stream")
  best = container.streams.best("video")
  stream = best if best in streams else max(streams, key=lambda s: s.frames)
  if stream.codec_context is None:
    raise Unplayable("cannot be decoded: its codec is unknown")
  return stream


def _check_avi(head: bytes, size: int) -> None:
  """An AVI says in its head how long it is; its count of frames includes empty ones."""
  promised = int.from_bytes(head[4:8], "little") + 8
  if size < 0.9 * promised < 0.9 * 2**32:
    raise Unplayable(f"breaks off: {size} of its {promised} bytes are there")


def _identity(file: io.BufferedIOBase) -> Hashable | None:
  status = os.fstat(file.fileno())
  if time.time() - status.st_mtime < 2:
    return None  # Written to again, it could look the same.
  return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _ffmpeg() -> Iterator[None]:
  """For calls of PyAV alone: whatever it raises (and it raises nearly anything) the file caused."""
  try:
    yield
  except Exception as e:
    reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
    raise Unplayable(f"cannot be decoded: {reason}") from e


def _packets(video: Video) -> Iterator[av.Packet]:
  with _ffmpeg():
    yield from video.container.demux(video.stream)


def _frames(video: Video) -> Iterator[av.VideoFrame]:
  with _ffmpeg():
    yield from video.container.decode(video.stream)
