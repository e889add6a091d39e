"""Checkpoints as safetensors and torch write them, tensor by tensor."""

import contextlib
import json
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fbjax import errors
from fbjax.port import dtypes, keys


@contextlib.contextmanager
def aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary name beside `path`, which becomes it in the end; after a failure nothing is left.

  Raises:
    UserError: when the disk is full, the folder missing, or `path` a folder.
  """
  label = keys.printable(str(path))
  if path.is_dir():
    raise errors.UserError(f"cannot write {label}: there is a folder of this name")
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  try:
    yield part
    with part.open("rb") as file:
      os.fsync(file.fileno())
    part.rename(path)
  except OSError as error:
    raise errors.UserError(f"cannot write {label}: {error.strerror or error}") from error
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)


def kinds(path: pathlib.Path, tensors: Mapping[str, Any]) -> dict[str, dtypes.Kind]:
  """What each tensor's dtype is called.

  Raises:
    UserError: for dtypes that such files do not have.
  """
  for name, x in tensors.items():
    if np.dtype(x.dtype) not in dtypes.KIND_OF:
      raise errors.UserError(
        f"cannot write {keys.printable(name)} to {keys.printable(str(path))}: no checkpoint has the "
        f"dtype {x.dtype}; convert it to float32"
      )
  return {name: dtypes.KIND_OF[np.dtype(x.dtype)] for name, x in tensors.items()}


def write_safetensors(
  path: pathlib.Path, tensors: Mapping[str, Any], kinds: Mapping[str, dtypes.Kind]
) -> None:
  header: dict[str, Any] = {}
  offset = 0
  for name, x in tensors.items():
    end = offset + _bytes(x)
    dtype = kinds[name].safetensors
    header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [offset, end]}
    offset = end
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for x in tensors.values():
      file.write(_raw(x))


def write_zip(
  path: pathlib.Path, tensors: Mapping[str, Any], kinds: Mapping[str, dtypes.Kind], home: str
) -> None:
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
    file.writestr("archive/data.pkl", _pickle(tensors, kinds, home))
    file.writestr("archive/byteorder", "little")
    for i, x in enumerate(tensors.values()):
      with file.open(f"archive/data/{i}", "w", force_zip64=True) as entry:
        entry.write(_raw(x))
    file.writestr("archive/version", "3\n")


def _raw(tensor: Any) -> memoryview:
  return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _bytes(tensor: Any) -> int:
  return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def _pickle(tensors: Mapping[str, Any], kinds: Mapping[str, dtypes.Kind], home: str) -> bytes:
  """The pickle torch would write, spelt out by hand: the classes it names are not here."""

  def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()

  def number(n: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", n)

  def numbers(ns: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, ns)) + b"t"

  def tensor(key: str, x: Any, kind: dtypes.Kind) -> bytes:
    shape = tuple(x.shape)
    stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    hooks = b"ccollections\nOrderedDict\n)R"
    if kind.storage is not None:
      make, place, count, dtype = (
        "_rebuild_tensor_v2",
        f"torch\n{kind.storage}",
        math.prod(shape),
        "",
      )
    else:  # newer dtypes lie in storages of bytes
      make, place, count = "_rebuild_tensor_v3", "torch.storage\nUntypedStorage", _bytes(x)
      dtype = f"ctorch\n{kind.torch}\n"
    pid = text("storage") + f"c{place}\n".encode() + text(key) + text("cpu") + number(count)
    args = b"(" + pid + b"tQ" + number(0) + numbers(shape) + numbers(stride) + b"\x89" + hooks
    return f"ctorch._utils\n{make}\n(".encode() + args + dtype.encode() + b"tR"

  items = b"".join(
    text(name) + tensor(str(i), x, kinds[name]) for i, (name, x) in enumerate(tensors.items())
  )
  tree = b"}(" + items + b"u"
  return b"\x80\x02" + (b"}" + text(home) + tree + b"s" if home else tree) + b"."
