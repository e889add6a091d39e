"""Where the files of a data set lie: in a folder of this machine, in a bucket, and there in tars.

A file's name is its path below the root, and leads into a tar where it has one on its way:
`train/00000.tar/cat.mp4`.
"""

import contextlib
import io
import os
import pathlib
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from fbjax.data import objects, playback, tars
from fbjax.data import video as video_lib


def place(path: video_lib.Path) -> objects.Place:
  """A path on this machine, or the address of another one."""
  if isinstance(path, objects.Address):
    return path
  return objects.Address(path) if objects.is_address(path) else pathlib.Path(path)


def folder(path: Any) -> objects.Place:
  """The folder that config.data.path names, here or elsewhere; BrokenData where there is none."""
  if not isinstance(path, str | os.PathLike) or not str(path):
    raise video_lib.BrokenData("no path to the data is given; set config.data.path to its folder.")
  root = place(path)
  if not (root.is_dir() if isinstance(root, objects.Address) else os.path.isdir(root)):
    raise video_lib.BrokenData(f"no folder at {root}; set config.data.path to where the data is.")
  return root


def content(root: objects.Place, file: str) -> tuple[video_lib.Path, bytes | None]:
  """A file as `video.read_clip` takes it: the path of one on disk, else its name and its bytes.

  Raises:
    BrokenClip: where a name leads out of the root, or its bytes cannot be had.
  """
  path = below(root, file)
  if inside := _in_tar(root, file):
    return os.fspath(path), tars.read(*inside)
  if isinstance(root, objects.Address):
    try:
      return os.fspath(path), objects.read(path)
    except objects.Unreachable as error:
      raise video_lib.BrokenClip(str(error)) from None
  return path, None


def opened(root: objects.Place, file: str) -> io.BufferedIOBase:
  """A file, of which only what is asked for is read.

  Raises:
    BrokenClip: as `content`.
  """
  path = below(root, file)
  try:
    if inside := _in_tar(root, file):
      return tars.opened(*inside)
    return path.open() if isinstance(path, objects.Address) else playback.open_regular(path)
  except objects.Unreachable as error:
    raise video_lib.BrokenClip(str(error)) from None
  except FileNotFoundError:
    raise video_lib.BrokenClip(f"{path} does not exist.") from None
  except (OSError, ValueError) as error:
    told = getattr(error, "strerror", None) or error
    raise video_lib.BrokenClip(f"{path} cannot be read: {told}.") from None


def size(root: objects.Place, file: str) -> int:
  """How many bytes a file has.

  Raises:
    BrokenClip: as `content`.
    OSError: for a file of this machine that is not there.
  """
  path = below(root, file)
  if inside := _in_tar(root, file):
    return tars.find(*inside).size
  try:
    return objects.version(path)[0] if isinstance(root, objects.Address) else path.stat().st_size
  except objects.Unreachable as error:
    raise video_lib.BrokenClip(str(error)) from None


def below(root: objects.Place, file: str) -> objects.Place:
  """Where a file lies; BrokenClip where its name leads out of the root."""
  if "\0" in file or ".." in file.split("/") or file.startswith("/"):
    raise video_lib.BrokenClip(f"{root} lists {file!r}, which is no file below it.")
  return root / file


def listed(folder: objects.Place) -> dict[str, int]:
  """The bytes of the files in a folder, by name; of no folder there are none."""
  if isinstance(folder, objects.Address):
    return {name: n for name, n in folder.sizes().items() if "/" not in name}
  if not folder.is_dir():
    return {}
  return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}


@contextlib.contextmanager
def written(file: objects.Place) -> Iterator[pathlib.Path]:
  """Yields a temporary local path, moved to `file` if the block succeeds: an atomic write.

  For a bucket it lies below $TMPDIR and is uploaded.
  """
  if isinstance(file, objects.Address):
    with tempfile.TemporaryDirectory(prefix="fbjax-") as folder:
      aside = pathlib.Path(folder) / file.name
      yield aside
      file.put(aside)
    return
  aside = file.with_suffix(".partial")
  aside.unlink(missing_ok=True)  # of a run that was killed
  yield aside
  aside.replace(file)


def common(roots: Sequence[objects.Place]) -> objects.Place:
  """The folder that some roots share; BrokenData where they are not in one place."""
  kinds, rests = zip(*(_parts(root) for root in roots), strict=True)
  if len(set(kinds)) > 1:
    raise video_lib.BrokenData(
      f"{roots[0]} and {roots[-1]} have no folder in common; take data of one place."
    )
  shared = os.path.commonpath(rests)
  return objects.Address(f"{kinds[0]}://{shared}") if kinds[0] else pathlib.Path(shared)


def relative(path: objects.Place, home: objects.Place) -> str:
  """The name of a file below a folder."""
  return posixpath.relpath(_parts(path)[1], _parts(home)[1])


def _parts(path: objects.Place) -> tuple[str, str]:
  """The kind of an address, empty for this machine, and the path."""
  if isinstance(path, objects.Address):
    kind, _, rest = str(path).partition("://")
    return kind, rest
  return "", os.path.abspath(path)


def _in_tar(root: objects.Place, file: str) -> tuple[objects.Place, str] | None:
  """The tar that a file's name leads into, and the name of the member; None where there is none."""
  parts = file.split("/")
  for i, part in enumerate(parts[:-1], start=1):
    if part.endswith(".tar"):
      tar = root / "/".join(parts[:i])
      # A folder may be called so.
      if isinstance(tar, objects.Address) or not tar.is_dir():
        return tar, "/".join(parts[i:])
  return None
