"""Workdirs in a bucket: small files are written here and copied there.

Checkpoints go to a bucket directly. Plots, clips and events are made by libraries that know local
files alone, so they are made in a folder of this machine and pushed.
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from fbjax import errors

# What reads and writes addresses of a kind.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}


def is_remote(workdir: str) -> bool:
  """Whether a workdir is in a bucket, such as gs://mine/run."""
  return "://" in str(workdir)


def absolute(folder: str) -> epath.Path:
  """The full path of a folder; that of a bucket is one already.

  Raises:
    UserError: for a bucket that nothing installed here reads and writes.
  """
  return remote(folder) if is_remote(folder) else epath.Path(folder).absolute()


@functools.cache
def local(workdir: str) -> pathlib.Path:
  """Where this process writes small files: the workdir, or a local folder that `push` copies."""
  if not is_remote(workdir):
    return pathlib.Path(workdir)
  return pathlib.Path(tempfile.mkdtemp(prefix="fbjax-"))


def pull(workdir: str, name: str) -> None:
  """Fetches one file of a bucket, if it is there, to go on writing it."""
  if is_remote(workdir) and (there := remote(workdir) / name).exists():
    (local(workdir) / name).write_bytes(there.read_bytes())


def push(workdir: str) -> None:
  """Copies what was written since the last push into the bucket; nothing to do without one."""
  if not is_remote(workdir):
    return
  here, pushed = local(workdir), _pushed(workdir)
  for file in sorted(here.rglob("*")):
    if file.is_file() and pushed.get(file) != (stamp := file.stat().st_mtime_ns):
      there = remote(workdir) / file.relative_to(here).as_posix()
      there.parent.mkdir(parents=True, exist_ok=True)
      there.write_bytes(file.read_bytes())
      pushed[file] = stamp


def remote(workdir: str) -> epath.Path:
  kind = str(workdir).partition(":")[0]
  if kind not in PACKAGES:
    raise errors.UserError(
      f"{workdir} is an address of a kind that is not read or written here; there are "
      f"{', '.join(f'{kind}://' for kind in PACKAGES)} and files of this machine"
    )
  if importlib.util.find_spec(PACKAGES[kind]) is None:
    raise errors.UserError(f"{workdir} needs another package: pip install {PACKAGES[kind]}")
  return epath.Path(workdir)


def check_writable(folder: str | os.PathLike) -> None:
  """Makes a folder, and raises a UserError if it is not writable; a bucket is not checked."""
  if is_remote(os.fspath(folder)):
    return
  try:
    probe(folder)
  except (FileExistsError, NotADirectoryError):
    raise errors.UserError(
      f"cannot write to {folder}: it is no folder; give another --out"
    ) from None
  except OSError as error:
    raise errors.UserError(
      f"cannot write to {folder} ({error.strerror or error}); give another --out"
    ) from None


def probe(folder: str | os.PathLike) -> None:
  """Makes a folder and writes into it; what goes wrong is an OSError."""
  there = absolute(os.fspath(folder))
  there.mkdir(parents=True, exist_ok=True)
  file = there / f".{uuid.uuid4().hex}.partial"
  file.write_text("")
  file.unlink()


@functools.cache
def _pushed(workdir: str) -> dict[pathlib.Path, int]:
  return {}


def exists(file: str) -> bool:
  """Whether a file or folder is there, on a disk or in a bucket."""
  return absolute(file).exists()


def write_text(file: str, text: str) -> None:
  """Writes a small file atomically: a reader sees the old one or the new one."""
  with written(file) as path:
    path.write_text(text)


def write_json(file: str, value: Any) -> None:
  """As `write_text`, a plain value."""
  write_text(file, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def written(file: str) -> Iterator[pathlib.Path]:
  """Context with a local path to write; without an error, what is there becomes `file` at once."""
  there = absolute(file)
  if not is_remote(file):
    there.parent.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(there.with_name(f".{uuid.uuid4().hex}.partial{there.suffix}"))
    try:
      yield aside
      aside.replace(there)
    finally:
      aside.unlink(missing_ok=True)
    return
  with tempfile.TemporaryDirectory(prefix="fbjax-") as folder:
    aside = pathlib.Path(folder) / there.name
    yield aside
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(aside.read_bytes())
