"""Safetensors files: a header in JSON, then the bytes of the tensors."""

import json
import math
from typing import Any

import numpy as np

from fbjax.port import dtypes, keys, limits

Tensor = np.ndarray | dtypes.Unread


def header_length(start: bytes) -> int:
  """Bytes of the header, as the first bytes of a file say it."""
  return int.from_bytes(start[:8], "little")


def is_one(start: bytes, size: int) -> bool:
  """Whether a file that starts so, and has this size, may be meant as safetensors."""
  return start[8:9] == b"{" and header_length(start) < max(size, limits.HEADER)


def read(data: np.ndarray, file: Any) -> dict[str, Tensor]:
  """The tensors in the bytes of a file, as views. `file` is its name in error messages.

  Raises:
    Refused: for a header that does not describe exactly these bytes.
  """
  length = header_length(data[:8].tobytes())
  if length > limits.HEADER:
    raise limits.Refused(f"has a header of {length:,} bytes: it is damaged, download it again")
  if len(data) < 8 + length:
    raise limits.Refused("is truncated or no safetensors file: download it again")
  header = json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=_once)
  if not isinstance(header, dict):
    raise limits.Refused("has a header that is no table of tensors: download it again")
  header.pop("__metadata__", None)
  if len(header) > limits.TENSORS:
    raise limits.Refused(f"lists {len(header):,} tensors, more than {limits.TENSORS:,}")
  data = data[8 + length :]
  tensors, taken = {}, []
  for name, entry in header.items():
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    label = keys.printable(name)
    if not _sizes(shape) or len(shape) > limits.RANK or not _sizes([start, end]) or start > end:
      raise limits.Refused(f"gives {label} an impossible shape or place: download it again")
    if end > len(data):
      raise limits.Refused(f"is truncated ({label} reaches beyond its end): download it again")
    taken.append((start, end, label))
    if dtype not in dtypes.SAFETENSORS:
      tensors[name] = dtypes.Unread(name, file, str(dtype), tuple(shape))
      continue
    dtype = dtypes.SAFETENSORS[dtype]
    if math.prod(shape) * dtype.itemsize != end - start:
      raise limits.Refused(
        f"has {end - start} bytes for {label}, not those of {dtype} {tuple(shape)}: "
        "it is damaged, download it again"
      )
    tensors[name] = data[start:end].view(dtype).reshape(shape)
  _check_places(taken, len(data))
  return tensors


def _check_places(taken: list[tuple[int, int, str]], size: int) -> None:
  """Tensors follow each other without gaps, from the first byte to the last."""
  reached = 0
  for start, end, label in sorted(taken):
    if start != reached:
      raise limits.Refused(
        f"has {'tensors that overlap' if start < reached else 'bytes of no tensor'} at {label}: "
        "it is damaged, download it again"
      )
    reached = end
  if reached != size:
    raise limits.Refused("has bytes of no tensor at its end: it is damaged, download it again")


def _sizes(numbers: Any) -> bool:
  return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object, in which no name comes twice."""
  table = dict(pairs)
  if len(table) != len(pairs):
    raise limits.Refused("has a header that names a tensor twice: download it again")
  return table
