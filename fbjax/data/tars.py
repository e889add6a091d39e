"""Clips in tar files, read at random places without unpacking: an index of each, made once.

An index lists the clips of a tar with offset, size and caption, by WebDataset's rules: members whose
paths agree up to the first dot of the file name are one sample. It is kept (see `kept`) for as long
as size and time of the tar stay what they were.
"""

import collections
import functools
import io
import json
import os
import pathlib
import tarfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from fbjax import errors
from fbjax.data import kept, objects, playback, text
from fbjax.data import video as video_lib

CAPTIONS = ("caption", "text", "prompt")  # keys of a sample's json, the first that is there
MOST_CAPTION = 1 << 24  # bytes of a json or txt; what is longer is something else
FORMAT = 2  # of an index that is kept
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
  """A clip in a tar: its content lies `size` bytes long at `offset`."""

  name: str
  offset: int
  size: int
  caption: str


class Index(NamedTuple):
  """The clips of a tar, in its order.

  left_out: by reason, how many members were left out, and the name of the first.
  fault: how the tar itself is damaged, to follow its name in a sentence; "" if it is not.
  others: videos that are left out, as those without a caption, which a table may name all the same.
  """

  clips: list[Member]
  left_out: dict[str, tuple[int, str]]
  fault: str
  others: list[Member]


def index(place: objects.Place) -> Index:
  """The index of a tar, made or as it was kept.

  Raises:
    BrokenData: when there is no such file, it cannot be reached, or it is compressed.
  """
  return _index(place, _version(place))[0]


def read(place: objects.Place, name: str) -> bytes:
  """The content of a clip of a tar; BrokenClip where it cannot be had."""
  try:
    member = find(place, name)
    if member.size > objects.MOST_BYTES:
      raise video_lib.BrokenClip(
        f"{place}/{name} is {member.size / 1e9:.1f} GB, more than a clip in a tar may have; cut it."
      )
    if isinstance(place, objects.Address):
      return objects.read(place, member.offset, member.size)
    with playback.open_regular(place) as file:
      file.seek(member.offset)
      data = file.read(member.size)
  except video_lib.BrokenData as error:
    raise video_lib.BrokenClip(str(error)) from None
  except OSError as error:
    raise video_lib.BrokenClip(f"{place} cannot be read: {error.strerror or error}.") from None
  if len(data) < member.size:
    raise video_lib.BrokenClip(f"{place} breaks off in {name}.")
  return data


def opened(place: objects.Place, name: str) -> io.BufferedReader:
  """A clip of a tar as a file of its own; raises as `read`, and OSError."""
  member = find(place, name)
  tar = place.open() if isinstance(place, objects.Address) else playback.open_regular(place)
  return io.BufferedReader(_Inside(tar, member))


class _Inside(io.RawIOBase):
  """A member of an open tar, which is closed with it."""

  def __init__(self, tar: io.BufferedIOBase, member: Member):
    self._tar, self._member, self._at = tar, member, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    ends = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._member.size}
    self._at = offset + ends[whence]
    return self._at

  def readinto(self, buffer: bytearray | memoryview) -> int:
    self._tar.seek(self._member.offset + self._at)
    data = self._tar.read(max(min(len(buffer), self._member.size - self._at), 0))
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)

  def close(self) -> None:
    self._tar.close()
    super().close()


def find(place: objects.Place, name: str) -> Member:
  """A clip of a tar by its name; BrokenClip where it has none, or is none itself."""
  try:
    member = _index(place, _version(place))[1].get(name)
  except video_lib.BrokenData as error:
    raise video_lib.BrokenClip(str(error)) from None
  if member is None:
    raise video_lib.BrokenClip(f"{place} has no clip {name}.")
  return member


def _version(place: objects.Place) -> str:
  """What changes when the tar does; a stat for one on disk."""
  if isinstance(place, objects.Address):
    return objects.version(place)[1]
  try:
    status = os.stat(place)
  except FileNotFoundError:
    raise video_lib.BrokenData(
      f"no file {place}; set config.data.path to tars that exist."
    ) from None
  except (OSError, ValueError) as error:
    told = getattr(error, "strerror", None) or error
    raise video_lib.BrokenData(f"{place} cannot be read: {told}.") from None
  return f"{status.st_size} {status.st_mtime_ns}"


# Of as many tars, some 100 MB, the places are in memory; those of the others are read when needed.
@functools.lru_cache(256)
def _index(place: objects.Place, version: str) -> tuple[Index, Mapping[str, Member]]:
  where = str(place) if isinstance(place, objects.Address) else os.path.abspath(place)
  path = kept.file("tars", where)
  found = _kept(path, version)
  if found is None:
    found = _made(place)
    kept.write(path, json.dumps([FORMAT, version, *found]).encode())
  return found, {member.name: member for member in (*found.clips, *found.others)}


def _kept(path: pathlib.Path, version: str) -> Index | None:
  try:
    form, made_of, clips, left_out, fault, others = json.loads(path.read_bytes())
    if (form, made_of) != (FORMAT, version):
      return None
    left_out = {reason: (int(count), str(name)) for reason, (count, name) in left_out.items()}
    clips, others = ([Member(*member) for member in of] for of in (clips, others))
    return Index(clips, left_out, fault, others)
  except (OSError, ValueError, TypeError, AttributeError):
    return None  # It is not there, of another form, or damaged: made anew.


def _made(place: objects.Place) -> Index:
  if isinstance(place, objects.Address):
    size = objects.version(place)[0]
    with place.open() as file:
      return scan(place, file, size)
  try:
    with playback.open_regular(place) as file:
      return scan(place, file, os.fstat(file.fileno()).st_size)
  except OSError as error:
    raise video_lib.BrokenData(f"{place} cannot be read: {error.strerror or error}.") from None


def scan(place: objects.Place, file: io.BufferedIOBase, size: int) -> Index:
  """Makes the index of an open tar of `size` bytes, reading headers and captions.

  Where a tar is damaged or breaks off, what lies before is indexed, and `fault` says so.
  """
  head = file.read(6)
  for magic, kind in COMPRESSED.items():
    if head.startswith(magic):
      raise video_lib.BrokenData(
        f"{place} is compressed ({kind}), so that no clip of it can be read by itself; unpack it to "
        "a .tar."
      )
  file.seek(0)
  left_out = _LeftOut()
  samples: dict[str, dict[str, tuple[str, int, int]]] = {}
  captions: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
  others: list[Member] = []
  members = _Members(file, size)
  for member in members:
    name = member.name.removeprefix("./")
    key, extension = split(name)
    if not key:
      if name.rpartition("/")[2].lower() in video_lib.EXTENSIONS:
        left_out.add("videos with no name before their ending", name)
      continue
    if not _is_safe(name):
      left_out.add("names that lead out of the tar", name)
    elif member.issparse() or not member.isreg():
      if extension in (*video_lib.EXTENSIONS, ".json", ".txt"):
        left_out.add("links, sparse files and devices", name)
    elif extension in samples.get(key, {}) or extension in captions[key]:
      left_out.add("names that come a second time", name)
    elif extension in video_lib.EXTENSIONS:
      samples.setdefault(key, {})[extension] = (name, member.offset_data, member.size)
    elif extension.endswith(video_lib.EXTENSIONS):
      left_out.add("videos with a dot in their name, at which WebDataset's key ends", name)
      others.append(Member(name, member.offset_data, member.size, ""))
    elif extension in (".json", ".txt") and member.size <= MOST_CAPTION:
      file.seek(member.offset_data)
      captions[key][extension] = file.read(member.size)
  fault = members.fault
  clips = []
  for key, videos in samples.items():
    name, offset, length = videos.pop(min(videos, key=video_lib.EXTENSIONS.index))
    others += [Member(*video, "") for video in videos.values()]
    found, why = _caption(captions[key])
    if why:
      left_out.add(why, name)
      others.append(Member(name, offset, length, ""))
    else:
      clips.append(Member(name, offset, length, found))
  for key in captions.keys() - samples.keys() if not fault else ():
    if captions[key]:
      left_out.add("samples without a video", key)
  return Index(clips, dict(left_out.found), fault, others)


class _LeftOut:
  def __init__(self):
    self.found: dict[str, tuple[int, str]] = {}

  def add(self, reason: str, name: str) -> None:
    count, first = self.found.get(reason, (0, name))
    self.found[reason] = count + 1, first


class _Members:
  """The members of a tar whose content is all there; `fault` says afterwards why there are no more."""

  def __init__(self, file: io.BufferedIOBase, size: int):
    self._file, self._size, self.fault = file, size, ""

  def __iter__(self):
    count = 0
    try:
      with tarfile.open(fileobj=self._file, mode="r:", encoding="utf-8") as tar:
        at = -1
        # Sizes below zero would lead backwards, and round in circles.
        while (member := tar.next()) is not None and tar.offset > at:
          # What a sparse member says is its size unpacked.
          if not member.issparse() and member.offset_data + member.size > self._size:
            self.fault = f"breaks off in {text.printable(member.name)}"
            return
          at = tar.offset
          count += 1
          tar.members.clear()  # It keeps all that it has seen.
          yield member
        self._file.seek(max(at, 0))
        end = self._file.read(tarfile.BLOCKSIZE)
    except errors.UserError:
      raise  # The file cannot be reached.
    except (tarfile.TarError, ValueError, IndexError, OverflowError, MemoryError, RecursionError):
      # What tarfile raises on bytes that are none.
      self.fault = f"is damaged after its first {count} members" if count else "is no tar file"
      return
    if len(end) < tarfile.BLOCKSIZE:
      self.fault = f"breaks off after {count} members"
    elif any(end):
      self.fault = f"is damaged after its first {count} members"


def split(name: str) -> tuple[str, str]:
  """A member's key and extension: `a/b.c.mp4` is a/b and .c.mp4; of no sample, an empty key."""
  folder, _, base = name.rpartition("/")
  stem, dot, extension = base.partition(".")
  if not stem or not dot:
    return "", ""
  return (f"{folder}/{stem}" if folder else stem), f".{extension.lower()}"


def _is_safe(name: str) -> bool:
  return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _caption(found: Mapping[str, bytes]) -> tuple[str, str]:
  """The caption of a sample, or why there is none."""
  try:
    values: Any = json.loads(found[".json"].decode("utf-8-sig")) if ".json" in found else {}
  except (ValueError, RecursionError):
    return "", "clips with a broken json"
  values = values if isinstance(values, dict) else {}
  words = next((values[key] for key in CAPTIONS if isinstance(values.get(key), str)), "")
  if not words.strip() and ".txt" in found:
    try:
      words = found[".txt"].decode("utf-8-sig")
    except UnicodeDecodeError:
      return "", "clips with a txt that is not UTF-8"
  words = " ".join(text.clean(words).replace("\0", " ").split())
  return words, "" if words else "clips without a caption"
