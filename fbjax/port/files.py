"""Reads and writes checkpoint files as mappings of name to array, without torch.

Arrays are memory-mapped, but for those of an .npz. The format of a file is detected by its content,
not its name. No code in it is run, no file outside its folder is opened, and any fault is a
UserError of one sentence.
"""

import mmap
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fbjax import errors
from fbjax.port import dtypes, folders, keys, limits, npz, safetensors, torch_files, writing, zips

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # of files that `write` writes
printable = keys.printable
Unread = dtypes.Unread

# How files start that are taken for checkpoints, and what to do about it.
OTHERS = {
  limits.LFS: "is a Git LFS pointer, not the file itself: fetch it with git lfs pull",
  b"\x89HDF": "is an HDF5 file: name a checkpoint of torch or a safetensors file",
  b"GGUF": "is a GGUF file: name a checkpoint of torch or a safetensors file",
  b"\x93NUMPY": "is a NumPy file: name a checkpoint of torch or a safetensors file",
  b"\x1f\x8b": "is compressed with gzip: unpack it",
  b"<": "is a web page: download the file again, with a log-in if its site wants one",
  b"{": "is a JSON file: name the folder that it is in, or the file of weights",
}
LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"


class Checkpoint(NamedTuple):
  """A state dict and what it was read from.

  tensors: by name, memory-mapped; `Unread` where the dtype is not supported. kind: what the file
  is, such as "a state dict". inert: unusual classes and functions that its pickle refers to; none
  is imported. config: the config.json of a folder.
  """

  tensors: dict[str, np.ndarray | dtypes.Unread]
  kind: str
  inert: tuple[str, ...] = ()
  config: dict[str, Any] | None = None


def read(path: str | pathlib.Path) -> Checkpoint:
  """Opens a checkpoint of torch, a safetensors file, or a folder of diffusers or DeepSpeed.

  Raises:
    UserError: whatever is wrong with it.
  """
  path = pathlib.Path(path)
  label = keys.printable(str(path))
  try:
    return _read_folder(path) if path.is_dir() else _read_file(path)
  except errors.UserError:
    raise
  except limits.Refused as error:
    raise errors.UserError(f"{label} {error}") from error
  except OSError as error:
    raise errors.UserError(f"{label} cannot be read: {error.strerror or error}") from error
  except Exception as error:
    # Damage can end in any exception of those who parse it.
    why = keys.printable(f"{type(error).__name__}: {error}")
    raise errors.UserError(f"{label} is damaged ({why}): download it again") from error


def _read_folder(path: pathlib.Path) -> Checkpoint:
  parts = folders.find(path)
  read_parts = {part.name: read(part) for part in parts.files}
  listed = keys.unwrap(parts.listed)
  tensors, inert = {}, set()
  for name, part in read_parts.items():
    # A tensor that is in several files is that of the file which the index names.
    tensors |= {k: x for k, x in part.tensors.items() if listed.get(k, name) == name}
    inert |= set(part.inert)
  if lacking := sorted(listed.keys() - tensors.keys()):
    raise limits.Refused(
      f"lacks {len(lacking)} tensors that its index names, such as "
      f"{keys.printable(lacking[0])}: download it again"
    )
  kind = parts.kind or next(iter(read_parts.values())).kind
  return Checkpoint(tensors, kind, tuple(sorted(inert)), parts.config)


def _read_file(path: pathlib.Path) -> Checkpoint:
  if not path.is_file():
    there = path.exists() or path.is_symlink()
    label = keys.printable(str(path))
    raise errors.UserError(
      f"{label} is no regular file: name a file or folder of weights"
      if there
      else f"there is no checkpoint at {label}"
    )
  size = path.stat().st_size
  with path.open("rb") as file:
    start = file.read(64)
    if not start:
      raise limits.Refused("is empty: download it again")
    if safetensors.is_one(start, size):
      tensors = safetensors.read(_mapped(file), path)
      return Checkpoint(keys.unwrap(tensors), "a safetensors file")
    if start.startswith(b"PK"):
      archive = zips.Archive(path, _mapped(file))
      if npz.is_one(archive):
        return Checkpoint(npz.read(path), "a NumPy file")
      found = torch_files.read(archive, path)
      return Checkpoint(keys.unwrap(found.tensors), found.kind, found.inert)
  for beginning, what in OTHERS.items():
    if start.lstrip().startswith(beginning):
      raise limits.Refused(what)
  if LEGACY in start:
    raise limits.Refused(
      "is in torch's format of before 2020: convert it once with "
      "torch.save(torch.load(path, map_location='cpu'), path)"
    )
  if path.suffix == ".safetensors":
    raise limits.Refused("is truncated or no safetensors file: download it again")
  raise limits.Refused("is neither a torch checkpoint nor a safetensors file: name one of these")


def _mapped(file: Any) -> np.ndarray:
  return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def write(path: str | pathlib.Path, tensors: Mapping[str, Any], home: str = "state_dict") -> None:
  """Writes a .safetensors, or a checkpoint that torch.load reads, with the tensors under `home`.

  One tensor at a time is in memory; the file appears under its name when it is complete.

  Raises:
    UserError: for names and dtypes that cannot be written, and when the disk is full.
  """
  path = pathlib.Path(path)
  if path.suffix not in SUFFIXES:
    raise errors.UserError(
      f"cannot write {keys.printable(str(path))}: the name must end in {', '.join(SUFFIXES)}"
    )
  kinds = writing.kinds(path, tensors)
  with writing.aside(path) as part:
    if path.suffix == ".safetensors":
      writing.write_safetensors(part, tensors, kinds)
    else:
      writing.write_zip(part, tensors, kinds, home)
