"""Files in buckets and on other machines, by URL: gs://bucket/folder/file.mp4.

Any protocol that fsspec supports, if its package is installed. Each request is tried up to `TRIES`
times.
"""

import functools
import io
import os
import pathlib
import posixpath
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from fbjax import errors, places
from fbjax.data import kept
from fbjax.data import video as video_lib

TRIES = 4
PAUSE = 0.5  # seconds before the second try, and twice as many before each after that
BLOCK = 1 << 18  # bytes read at once of a file that is skimmed
MOST_BYTES = 1 << 30  # of one clip, since it is held in memory

# What of a listing tells that a file was written anew.
VERSION = (
  *("size", "mtime", "created", "etag", "ETag", "generation", "md5Hash", "LastModified"),
  *("last_modified", "updated"),
)

T = TypeVar("T")


class Unreachable(video_lib.BrokenData):
  """An address that cannot be read; says which and why."""


class Address(os.PathLike):
  """A remote file or folder, with those methods of pathlib.Path that sources use.

  Every method that sends a request raises Unreachable when it fails, see `ask`.
  """

  def __init__(self, address: str):
    kind, _, rest = address.partition("://")
    self._kind, self._path = kind, rest.rstrip("/")

  def __str__(self) -> str:
    return f"{self._kind}://{self._path}"

  __fspath__ = __str__

  def __repr__(self) -> str:
    return f"Address({str(self)!r})"

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Address) and str(self) == str(other)

  def __hash__(self) -> int:
    return hash(str(self))

  def __truediv__(self, name: str) -> "Address":
    return Address(f"{self}/{name}")

  @property
  def parent(self) -> "Address":
    return Address(f"{self._kind}://{posixpath.dirname(self._path)}")

  @property
  def name(self) -> str:
    return posixpath.basename(self._path)

  def is_file(self) -> bool:
    return self.ask(lambda system, path: system.isfile(path))

  def is_dir(self) -> bool:
    return self.ask(lambda system, path: system.isdir(path))

  exists = is_file  # In a bucket, only files are.

  def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
    """The content, or all the bytes of a range."""

    def fetch(system: Any, path: str) -> bytes:
      data = system.cat_file(path, start=start, end=end)
      if start is not None and end is not None and len(data) != end - start:
        raise OSError(f"{len(data)} of {end - start} bytes came")
      return data

    return self.ask(fetch)

  def read_text(self, encoding: str) -> str:
    return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding).read()

  def files(self) -> list[str]:
    """Every file below, relative to here, sorted."""

    def find(system: Any, path: str) -> list[str]:
      # A store of objects may have one with the name of the folder, to stand for it.
      return [posixpath.relpath(name, path) for name in system.find(path) if name != path]

    return sorted(self.ask(find))

  def glob(self, pattern: str) -> list[str]:
    """The files below that match a glob pattern, as sorted paths relative to here."""
    return sorted(
      self.ask(
        lambda system, path: [
          posixpath.relpath(name, path) for name in system.glob(f"{path}/{pattern}")
        ]
      )
    )

  def sizes(self) -> dict[str, int]:
    """Sizes in bytes of all files below, by path relative to here; {} where there is no folder."""

    def find(system: Any, path: str) -> dict[str, int]:
      system.invalidate_cache()  # other processes write there
      try:
        found = system.find(path, detail=True)
      except FileNotFoundError:
        return {}
      return {posixpath.relpath(name, path): int(x["size"] or 0) for name, x in found.items()}

    return self.ask(find)

  def get(self, file: pathlib.Path) -> None:
    """Copies the content into a file of this machine."""
    self.ask(lambda system, path: system.get_file(path, os.fspath(file)))

  def put(self, file: pathlib.Path) -> None:
    """Uploads a local file atomically: under a temporary name, then renamed to this one."""

    name = uuid.uuid4().hex  # other processes may put the same

    def send(system: Any, path: str) -> None:
      # Only stores of objects show a file when it is whole; others, such as sftp, while it grows.
      aside = f"{path}.{name}.partial"
      try:
        system.put_file(os.fspath(file), aside)
      except FileNotFoundError:  # where there are folders
        system.makedirs(posixpath.dirname(path), exist_ok=True)
        system.put_file(os.fspath(file), aside)
      system.mv(aside, path)

    self.ask(send, "written")

  def open(self) -> io.BufferedReader:
    """A seekable, buffered reader of this file that requests `BLOCK` bytes at a time."""
    return io.BufferedReader(_Ranges(self, _version(str(self))[0]), BLOCK)

  def ask(self, question: Callable[[Any, str], T], what: str = "read") -> T:
    """Calls `question(file system, path)` with fsspec's file system and retries it when it fails.

    Raises:
      Unreachable: when it fails `TRIES` times, or for a reason that will not go away.
    """
    system, path = _system(self)
    for attempt in range(TRIES):
      try:
        return question(system, path)
      except errors.UserError:
        raise
      except FileNotFoundError:
        raise Unreachable(f"{self} does not exist.") from None
      except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise Unreachable(f"{self} cannot be {what}: {_told(error)}.") from None
      except Exception as error:  # Each file system has its own, and those of its network.
        told = _told(error)
        if attempt + 1 < TRIES:
          time.sleep(PAUSE * 2**attempt)
    raise Unreachable(f"{self} cannot be {what}, tried {TRIES} times: {told}.")


class _Ranges(io.RawIOBase):
  """A file of `size` bytes of which each read is a request."""

  def __init__(self, address: Address, size: int):
    self._address, self._size, self._at = address, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
    return self._at

  def readinto(self, buffer: memoryview) -> int:
    start, end = self._at, min(self._at + len(buffer), self._size)
    if start >= end:
      return 0
    data = self._address.read_bytes(start, end)
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


Place = pathlib.Path | Address  # a file or folder of this machine, or of another


def is_address(path: Any) -> bool:
  return isinstance(path, Address) or (isinstance(path, str) and places.is_remote(path))


def version(address: Address) -> tuple[int, str]:
  """Size in bytes, and a string that changes when the file is overwritten (ETag, mtime, ...).

  Requested once per process.
  """
  return _version(str(address))


def read(address: Address, start: int = 0, size: int | None = None) -> bytes:
  """The bytes of a clip: a whole file, or `size` bytes from `start`; cached on disk, see `kept`.

  In one request, since a demuxer's seeks would each be one.

  Raises:
    Unreachable: also for a clip of more than `MOST_BYTES`.
  """
  whole, stamp = version(address)
  wanted = whole if size is None else size
  if wanted > MOST_BYTES:
    raise Unreachable(
      f"{address} is {wanted / 1e9:.1f} GB, more than a clip in a bucket may have; cut it."
    )

  key = f"{address} {stamp} {start}"
  return (
    kept.clip(key, wanted, lambda: address.read_bytes(start, start + wanted)) if wanted else b""
  )


@functools.lru_cache(1 << 16)
def _version(address: str) -> tuple[int, str]:
  info = Address(address).ask(lambda system, path: system.info(path))
  if info.get("type") == "directory":
    raise Unreachable(f"{address} is a folder.")
  return int(info["size"] or 0), " ".join(f"{key}={info[key]}" for key in VERSION if key in info)


def _system(address: Address) -> tuple[Any, str]:
  """fsspec's file system for an address, which it keeps, and the path in it."""
  try:
    return fsspec.url_to_fs(str(address))
  except ImportError as error:
    kind = str(address).partition("://")[0]
    package = places.PACKAGES.get(kind)
    told = f"pip install {package}" if package else _told(error)
    raise Unreachable(f"{address} needs another package: {told}.") from None
  except ValueError as error:
    raise Unreachable(f"{address} is no address that can be read: {_told(error)}.") from None
  except Exception as error:  # Credentials that are not there or damaged, each in its own words.
    raise Unreachable(f"{address} cannot be reached: {_told(error)}.") from None


def _told(error: Exception) -> str:
  words = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return " ".join(str(words).split())[:300].rstrip(".")
