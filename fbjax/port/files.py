"""Checkpoint files as mappings of name to array, mapped from disk, read without torch.

A .ckpt, .pt or .bin is a zip of raw tensors and a pickle that says what they are. Unpickling can
run any program; here it runs nothing: what is not on a list of tensor constructors becomes an
inert object, whose name is reported.
"""

import collections
import io
import json
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fbjax import errors

STORAGES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
SAFETENSORS = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}
# Where training programs keep the weights, and what some put before each name.
HOMES = {
  "state_dict": "a Lightning checkpoint",
  "module": "a DeepSpeed checkpoint",
  "ema": "averaged weights under `ema`",
  "model": "weights under `model`",
}
WRAPPERS = ("_forward_module.", "module.")
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
DEEPSPEED = "mp_rank_00_model_states.pt"


class Checkpoint(NamedTuple):
  """tensors: mapped from disk. kind: what the file is. config: the config.json beside them.

  inert: the classes that a pickle asked for and did not get.
  """

  tensors: dict[str, np.ndarray]
  kind: str
  inert: tuple[str, ...] = ()
  config: dict[str, Any] | None = None


def read(path: str | pathlib.Path) -> Checkpoint:
  """Opens a .ckpt, .pt, .bin or .safetensors, or a folder of diffusers or DeepSpeed."""
  path = pathlib.Path(path)
  if path.is_dir():
    return _read_folder(path)
  if not path.is_file():
    raise errors.UserError(f"there is no checkpoint at {path}")
  start = path.open("rb").read(64)
  if path.suffix == ".safetensors":
    return Checkpoint(_read_safetensors(path), "a safetensors file")
  if start.startswith(b"PK"):
    return _read_zip(path)
  if start.startswith(b"version https://git-lfs"):
    raise errors.UserError(
      f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull"
    )
  if start.startswith(b"\x80"):
    raise errors.UserError(
      f"{path} is in torch's format of before 2020: convert it once with "
      "torch.save(torch.load(path), path)"
    )
  raise errors.UserError(f"{path} is neither a torch checkpoint nor a safetensors file")


def _read_folder(path: pathlib.Path) -> Checkpoint:
  for states in (path / DEEPSPEED, path / "checkpoint" / DEEPSPEED):
    if states.is_file():
      return read(states)
  config = path / "config.json"
  config = json.loads(config.read_text()) if config.is_file() else None
  for ending in ("safetensors", "bin"):
    index = sorted(path.glob(f"*.{ending}.index.json"))
    if index:
      parts = sorted(set(json.loads(index[0].read_text())["weight_map"].values()))
    else:
      # A folder may hold the same weights again as name.fp16.safetensors.
      parts = [f.name for f in sorted(path.glob(f"*.{ending}")) if f.name.count(".") == 1]
    if len(parts) > 1 and not index:
      raise errors.UserError(f"{path} holds {', '.join(parts)}: name the one that is meant")
    if parts:
      read_parts = [read(path / part) for part in parts]
      tensors = {key: x for part in read_parts for key, x in part.tensors.items()}
      inert = tuple(sorted({name for part in read_parts for name in part.inert}))
      return Checkpoint(tensors, "a diffusers folder", inert, config)
  raise errors.UserError(f"the folder {path} holds no .safetensors and no .bin")


def _map(path: pathlib.Path) -> np.ndarray:
  with path.open("rb") as file:
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  data = _map(path)
  truncated = errors.UserError(f"{path} is truncated or no safetensors file: download it again")
  length = int.from_bytes(data[:8].tobytes(), "little")
  if len(data) < 8 + length:
    raise truncated
  header = json.loads(data[8 : 8 + length].tobytes())
  header.pop("__metadata__", None)
  data = data[8 + length :]
  tensors = {}
  for name, entry in header.items():
    if entry["dtype"] not in SAFETENSORS:
      raise errors.UserError(f"{name} in {path} has the dtype {entry['dtype']}, which is not read")
    start, end = entry["data_offsets"]
    if end > len(data):
      raise truncated
    tensors[name] = data[start:end].view(SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
  return tensors


class Inert:
  """Stands for an object of a class that is not allow-listed; takes anything, does nothing."""

  def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
    return super().__new__(cls)

  def __init__(self, *args: Any, **kwargs: Any):
    pass

  def ignore(self, *args: Any, **kwargs: Any) -> None:
    pass

  __setstate__ = __setitem__ = append = extend = add = ignore


class _Unpickler(pickle.Unpickler):
  """Builds containers and arrays over the mapped storages, and Inert of everything else."""

  def __init__(self, file: io.BufferedIOBase, storages: Mapping[str, np.ndarray]):
    super().__init__(file)
    self.storages = storages
    self.inert: set[str] = set()

  def find_class(self, module: str, name: str) -> Any:
    known = {
      ("collections", "OrderedDict"): collections.OrderedDict,
      ("torch", "Size"): tuple,
      ("torch._utils", "_rebuild_tensor_v2"): _tensor,
      ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
      ("torch._tensor", "_rebuild_from_type_v2"): lambda make, _, args, state: make(*args),
    }
    if (module, name) in known:
      return known[module, name]
    if module == "torch" and name in STORAGES:
      return np.dtype(STORAGES[name])
    self.inert.add(f"{module}.{name}")
    return type(name, (Inert,), {"__module__": module})

  def persistent_load(self, pid: Any) -> np.ndarray:
    _, dtype, key, _, count = pid
    if not isinstance(dtype, np.dtype):
      raise errors.UserError(f"a tensor is stored as {dtype.__name__}, which is not read")
    storage = self.storages[key]
    if len(storage) < count * dtype.itemsize:
      raise errors.UserError(f"storage {key} is shorter than its tensor: the file is truncated")
    return storage[: count * dtype.itemsize].view(dtype)


def _tensor(
  storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
  last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
  if 0 not in shape and (min(offset, *stride, 0) < 0 or last >= len(storage)):
    raise errors.UserError("a tensor reaches beyond its storage: the file is damaged")
  steps = [step * storage.itemsize for step in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _read_zip(path: pathlib.Path) -> Checkpoint:
  try:
    file = zipfile.ZipFile(path)
  except zipfile.BadZipFile as error:
    raise errors.UserError(f"{path} is truncated or damaged: download it again") from error
  with file:
    entries = {info.filename: info for info in file.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise errors.UserError(f"{path} is a zip file, but no torch checkpoint")
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and file.read(order) != b"little":
      raise errors.UserError(f"{path} was written on a big-endian machine, which is not read")
    data = _map(path)
    storages = {
      name.removeprefix(f"{root}data/"): _stored(data, info, path)
      for name, info in entries.items()
      if name.startswith(f"{root}data/")
    }
    with file.open(pickles[0]) as pickled:
      unpickler = _Unpickler(pickled, storages)
      tree = unpickler.load()
  inert = tuple(sorted(unpickler.inert))
  tensors, kind = _home(tree)
  if not tensors:
    raise errors.UserError(f"{path} holds no tensors by name")
  return Checkpoint({_unwrap(key): x for key, x in tensors.items()}, kind, inert)


def _stored(data: np.ndarray, info: zipfile.ZipInfo, path: pathlib.Path) -> np.ndarray:
  """The bytes of an entry, where they lie in the file."""
  if info.compress_type != zipfile.ZIP_STORED:
    raise errors.UserError(f"{path} is compressed; torch writes its zip files without compression")
  name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
  start = info.header_offset + 30 + name + extra
  return data[start : start + info.file_size]


def _home(tree: Any) -> tuple[dict[str, np.ndarray], str]:
  """The tensors by name in what was unpickled, and where they were."""
  if not isinstance(tree, Mapping):
    return {}, ""
  for home, kind in HOMES.items():
    if isinstance(tree.get(home), Mapping):
      return _arrays(tree[home]), kind
  return _arrays(tree), "a state dict"


def _arrays(tree: Mapping[Any, Any]) -> dict[str, np.ndarray]:
  return {key: x for key, x in tree.items() if isinstance(x, np.ndarray)}


def _unwrap(key: str) -> str:
  for wrapper in WRAPPERS:
    key = key.removeprefix(wrapper)
  return key


def write(path: str | pathlib.Path, tensors: Mapping[str, Any], home: str = "state_dict") -> None:
  """Writes a .safetensors, or a checkpoint that torch.load reads, with the tensors under `home`.

  One tensor at a time is in memory; the file appears under its name when it is complete.
  """
  path = pathlib.Path(path)
  part = path.with_name(path.name + ".part")
  if path.suffix == ".safetensors":
    _write_safetensors(part, tensors)
  elif path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
    _write_zip(part, tensors, home)
  else:
    raise errors.UserError(f"cannot write {path}: the name must end in .safetensors, .ckpt or .pt")
  part.rename(path)


def _raw(tensor: Any) -> memoryview:
  return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _bytes(tensor: Any) -> int:
  return int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize


def _write_safetensors(path: pathlib.Path, tensors: Mapping[str, Any]) -> None:
  names = {np.dtype(dtype): name for name, dtype in SAFETENSORS.items()}
  header: dict[str, Any] = {}
  offset = 0
  for name, x in tensors.items():
    end = offset + _bytes(x)
    dtype = names[np.dtype(x.dtype)]
    header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [offset, end]}
    offset = end
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for x in tensors.values():
      file.write(_raw(x))


def _write_zip(path: pathlib.Path, tensors: Mapping[str, Any], home: str) -> None:
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
    file.writestr("archive/data.pkl", _pickle(tensors, home))
    file.writestr("archive/byteorder", "little")
    for i, x in enumerate(tensors.values()):
      with file.open(f"archive/data/{i}", "w", force_zip64=True) as entry:
        entry.write(_raw(x))
    file.writestr("archive/version", "3\n")


def _pickle(tensors: Mapping[str, Any], home: str) -> bytes:
  """The pickle torch would write, spelt out by hand: the classes it names are not here."""
  storages = {np.dtype(dtype): name for name, dtype in STORAGES.items()}

  def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()

  def number(n: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", n)

  def numbers(ns: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, ns)) + b"t"

  def tensor(key: str, x: Any) -> bytes:
    shape = tuple(x.shape)
    stride = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    kind = f"ctorch\n{storages[np.dtype(x.dtype)]}\n".encode()
    count = number(int(np.prod(shape)))
    storage = b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    args = storage + number(0) + numbers(shape) + numbers(stride) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + args + b"tR"

  items = b"".join(text(name) + tensor(str(i), x) for i, (name, x) in enumerate(tensors.items()))
  tree = b"}(" + items + b"u"
  return b"\x80\x02" + (b"}" + text(home) + tree + b"s" if home else tree) + b"."
