"""NumPy's npz: a zip of arrays, as Chainer writes weights."""

import pathlib
import zipfile
import zlib

import numpy as np

from fbjax.port import limits, zips

SUFFIX = ".npy"


def is_one(archive: zips.Archive) -> bool:
  return bool(archive.infos) and all(name.endswith(SUFFIX) for name in archive.infos)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays by name; numbers only, nothing in the file is run.

  Raises:
    Refused: for damaged files, and arrays of other things than numbers.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
    raise limits.Refused("has arrays that cannot be read: download it again") from error
  if bad := [name for name, x in arrays.items() if x.dtype.kind not in "fiub"]:
    raise limits.Refused(f"holds {bad[0]!r}, which is no array of numbers: leave it out")
  return arrays
