"""What comes with the package: configs/, and zoo/ with the models in the box.

In a checkout both lie beside the package, in an installed wheel within it.
"""

import os
import pathlib

from fbjax import places

_HERE = pathlib.Path(__file__).parent
_BUNDLED = _HERE / "bundled"
ROOT = _BUNDLED if _BUNDLED.is_dir() else _HERE.parent  # the folder that holds both


def find(path: str | os.PathLike[str]) -> str:
  """Resolves a path; a `zoo/...` that does not exist is looked up among the bundled models."""
  path = os.fspath(path)
  if path and not places.is_remote(path) and not places.exists(path):
    there = ROOT / path
    if path.startswith("zoo/") and there.exists():
      return str(there)
  return path
