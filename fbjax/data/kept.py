"""An on-disk cache shared by runs, below $FBJAX_CACHE or ~/.cache/fbjax.

  clips/   bytes of clips from the network; the least recently used are deleted beyond `LIMIT`
           bytes, or beyond half of the space that is free or held by them
  caches/  copies of latent caches that lie in a bucket
  tars/    indices of tar files
  shapes/  frames, height and width of clips

All of it can be deleted at any time. Where nothing can be written, nothing is kept.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping

from fbjax import errors, places

logger = logging.getLogger(__name__)

LIMIT = 32 << 30  # bytes of clips
FILLED = 0.9  # of the free disk, at most, by copies of files
FETCHERS = 8  # files copied at a time
TOLD = 10.0  # seconds between two lines of progress
SWEEP = 1 << 30  # bytes that a process adds before it looks what there is

_lock = threading.Lock()
_added = {"bytes": SWEEP}  # so that the first one looks


def folder() -> pathlib.Path:
  return pathlib.Path(os.environ.get("FBJAX_CACHE") or "~/.cache/fbjax").expanduser()


def file(kind: str, key: str) -> pathlib.Path:
  """The path of the entry of a key; `kind` is one of the folders that the module lists."""
  digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()
  return folder() / kind / digest[:2] / digest


def write(path: pathlib.Path, data: bytes) -> None:
  """Writes an entry atomically; where the disk does not let it, logs one warning and goes on."""
  try:
    with places.written(os.fspath(path)) as part:
      part.write_bytes(data)
  except OSError as error:
    with _lock:  # or several threads tell it
      _tell(os.fspath(folder()), error.strerror or str(error))


def clip(key: str, size: int, fetch: Callable[[], bytes]) -> bytes:
  """The `size` bytes of a clip: those cached under this key, else those that `fetch` returns."""
  path = file("clips", key)
  try:
    data = path.read_bytes()
    if len(data) == size:
      with contextlib.suppress(OSError):
        os.utime(path)  # Disks are often mounted to forget when a file was read.
      return data
  except OSError:
    pass
  data = fetch()
  write(path, data)
  with _lock:
    _added["bytes"] += len(data)
    due = _added["bytes"] >= SWEEP
    if due:
      _added["bytes"] = 0
  if due:
    sweep()
  return data


def sweep() -> None:
  """Deletes the least recently used clips until the rest fit the limits that the module states."""
  found = []
  for place, _, names in os.walk(folder() / "clips"):
    for name in names:
      path = os.path.join(place, name)
      try:
        status = os.stat(path)
      except OSError:
        continue  # Another process deleted it.
      found.append((status.st_mtime_ns, status.st_size, path))
  if not found:
    return
  held = sum(size for _, size, _ in found)
  most = min(LIMIT, (shutil.disk_usage(folder()).free + held) // 2)
  for _, size, path in sorted(found):
    if held <= most:
      break
    held -= size
    pathlib.Path(path).unlink(missing_ok=True)


def mirror(
  origin: str,
  key: str,
  sizes: Mapping[str, int],
  fetch: Callable[[str, pathlib.Path], None],
) -> pathlib.Path:
  """A folder with copies of files that lie elsewhere; what is there from an earlier run stays.

  Args:
    origin: where they lie.
    key: of the folder: another one for other content.
    sizes: bytes of the files, by name.
    fetch: copies the file of this name to a path.

  Raises:
    UserError: when the disk has no room for all of them.
  """
  home = file("caches", key)
  with errors.of_the_disk(f"cannot write {home}", lambda: "set FBJAX_CACHE to another folder"):
    home.mkdir(parents=True, exist_ok=True)
  wanted = {name: size for name, size in sizes.items() if _size(home / name) != size}
  needed, room = sum(wanted.values()), int(shutil.disk_usage(home).free * FILLED)
  if needed > room:
    raise errors.UserError(
      f"{origin} has {needed / 1e9:,.1f} GB to fetch, and there is room for {room / 1e9:,.1f} GB in {folder()}: "
      "set FBJAX_CACHE to a folder of a larger disk, or mount the bucket and name the folder there"
    )

  def bring(name: str) -> int:
    with places.written(os.fspath(home / name)) as part:
      fetch(name, part)
    return wanted[name]

  told, done = time.monotonic(), 0
  with (
    errors.of_the_disk(f"cannot write {home}", lambda: "set FBJAX_CACHE to another folder"),
    concurrent.futures.ThreadPoolExecutor(FETCHERS) as pool,
  ):
    for size in pool.map(bring, wanted):
      done += size
      if time.monotonic() - told > TOLD or done == needed:
        told = time.monotonic()
        logger.info("%s: fetched %.1f of %.1f GB.", origin, done / 1e9, needed / 1e9)
  return home


def _size(path: pathlib.Path) -> int | None:
  try:
    return path.stat().st_size
  except FileNotFoundError:
    return None


@functools.cache
def _tell(place: str, why: str) -> None:
  logger.warning("%s cannot be written (%s): nothing is kept there.", place, why)
