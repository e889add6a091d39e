"""Dtypes by the names that files give them, and tensors that no dtype of NumPy can hold."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fbjax import errors
from fbjax.port import keys


class Kind(NamedTuple):
  """A dtype, as safetensors, torch.dtype and torch's storage (if it has one of its own) call it."""

  dtype: np.dtype
  safetensors: str
  torch: str
  storage: str | None


KINDS = [
  Kind(np.dtype(dtype), *names)
  for dtype, *names in (
    (np.float64, "F64", "float64", "DoubleStorage"),
    (np.float32, "F32", "float32", "FloatStorage"),
    (np.float16, "F16", "float16", "HalfStorage"),
    (ml_dtypes.bfloat16, "BF16", "bfloat16", "BFloat16Storage"),
    (np.int64, "I64", "int64", "LongStorage"),
    (np.int32, "I32", "int32", "IntStorage"),
    (np.int16, "I16", "int16", "ShortStorage"),
    (np.int8, "I8", "int8", "CharStorage"),
    (np.uint8, "U8", "uint8", "ByteStorage"),
    (np.bool_, "BOOL", "bool", "BoolStorage"),
    (np.uint64, "U64", "uint64", None),
    (np.uint32, "U32", "uint32", None),
    (np.uint16, "U16", "uint16", None),
    (ml_dtypes.float8_e4m3fn, "F8_E4M3", "float8_e4m3fn", None),
    (ml_dtypes.float8_e5m2, "F8_E5M2", "float8_e5m2", None),
    (ml_dtypes.float8_e4m3fnuz, "F8_E4M3FNUZ", "float8_e4m3fnuz", None),
    (ml_dtypes.float8_e5m2fnuz, "F8_E5M2FNUZ", "float8_e5m2fnuz", None),
    (ml_dtypes.float8_e8m0fnu, "F8_E8M0", "float8_e8m0fnu", None),
  )
]
KIND_OF = {kind.dtype: kind for kind in KINDS}
SAFETENSORS = {kind.safetensors: kind.dtype for kind in KINDS}
TORCH = {kind.torch: kind.dtype for kind in KINDS}
STORAGES = {kind.storage: kind.dtype for kind in KINDS if kind.storage}
COMPLEX = {
  "C64": "complex64",
  "ComplexFloatStorage": "complex64",
  "complex64": "complex64",
  "ComplexDoubleStorage": "complex128",
  "complex128": "complex128",
}


class Unread:
  """A tensor in a dtype that no network here computes with, such as complex or quantized numbers.

  It does not keep a file from being read; whoever asks for its values gets a UserError.
  """

  def __init__(self, name: str, file: Any, dtype: str, shape: tuple[int, ...]):
    self.shape = shape
    self.dtype = np.dtype(COMPLEX.get(dtype, "V1"))
    self.problem = (
      f"the tensor {keys.printable(name)} in {keys.printable(str(file))} has the dtype "
      f"{keys.printable(COMPLEX.get(dtype, dtype))}, which no network here reads: convert it to "
      "float32 with torch"
    )

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    raise errors.UserError(self.problem)

  def __getitem__(self, place: Any) -> np.ndarray:
    raise errors.UserError(self.problem)
