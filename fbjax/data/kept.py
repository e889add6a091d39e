"""What was worth keeping from one run to the next, below $FBJAX_CACHE or ~/.cache/fbjax.

  clips/   bytes that came over the network; the least recently used go once there are `LIMIT` of
           them, or as many as half of what the disk could hold
  tars/    where the members of tar files lie
  shapes/  how long and how large clips are

All of it can be deleted at any time. Where nothing can be written, nothing is kept.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable

from fbjax import places

logger = logging.getLogger(__name__)

LIMIT = 32 << 30  # bytes of clips
SWEEP = 1 << 30  # bytes that a process adds before it looks what there is

_lock = threading.Lock()
_added = {"bytes": SWEEP}  # so that the first one looks


def folder() -> pathlib.Path:
  return pathlib.Path(os.environ.get("FBJAX_CACHE") or "~/.cache/fbjax").expanduser()


def file(kind: str, key: str) -> pathlib.Path:
  """Where what has this key is kept."""
  digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()
  return folder() / kind / digest[:2] / digest


def write(path: pathlib.Path, data: bytes) -> None:
  """Keeps a file: a reader sees all of it or nothing. Says once if that cannot be done."""
  try:
    with places.written(os.fspath(path)) as part:
      part.write_bytes(data)
  except OSError as error:
    _tell(os.fspath(folder()), error.strerror or str(error))


def clip(key: str, size: int, fetch: Callable[[], bytes]) -> bytes:
  """Bytes that `fetch` brings, or those it brought before under this key; there are `size` of them."""
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
  """Deletes the clips that were not used for longest, as far as there are too many."""
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


@functools.cache
def _tell(place: str, why: str) -> None:
  logger.warning("%s cannot be written (%s): nothing is kept there.", place, why)
