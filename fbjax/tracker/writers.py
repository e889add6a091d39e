"""Where the metrics of a run go: a file of json lines, and what `config.train.writers` names.

One of your own is a class with the four methods of `Writer`, whose constructor takes
the workdir and the step that the run goes on from. It is named by its module, as in
`--config.train.writers=tensorboard,my_code:MyWriter`.
"""

import importlib
import importlib.util
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from fbjax import errors, places

logger = logging.getLogger(__name__)


class Writer(Protocol):
  """A writer of metrics; what a method raises is logged, and costs no more than this step's."""

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    """Keeps the metrics of a step."""

  def picture(self, name: str, step: int, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
    """Shows a picture, where the place can."""

  def clip(self, name: str, step: int, file: pathlib.Path) -> None:
    """Shows a moving GIF, where the place can."""

  def close(self) -> None:
    """Finishes what is written."""


# By name: module and class, and the package that it needs beside those of every installation.
KNOWN = {
  "tensorboard": ("fbjax.tracker.tensorboard:TensorBoard", None),
  "wandb": ("fbjax.tracker.wandb:Wandb", "wandb"),
}


def names(written: str) -> list[str]:
  """The writers of `config.train.writers`, which are separated by commas.

  Raises:
    UserError: for one that does not exist.
  """
  found = [name.strip() for name in written.split(",") if name.strip()]
  for name in found:
    module, _, kind = name.partition(":")
    if name not in KNOWN and not (module and kind.isidentifier()):
      raise errors.UserError(
        f"config.train.writers names {name!r}; expected some of {', '.join(KNOWN)}, or a class of your own as "
        "module:Class, separated by commas"
      )
  return list(dict.fromkeys(found))


def check_installed(written: str) -> None:
  """Raises a UserError for a writer whose package, or module, is not there."""
  for name in names(written):
    _, package = KNOWN.get(name, (name, None))
    if package and importlib.util.find_spec(package) is None:
      raise errors.UserError(
        f"config.train.writers names {name!r}, which needs another package: pip install {package}"
      )
    if name not in KNOWN:
      try:
        kind(name)
      except (ImportError, AttributeError) as error:
        raise errors.UserError(
          f"config.train.writers names {name!r}, which cannot be imported ({error}): run where Python finds "
          "the module, or leave it out"
        ) from error


def kind(name: str) -> Callable[[str, int], Writer]:
  """The class of a writer; its constructor takes the workdir and the step the run goes on from."""
  module, _, attribute = KNOWN.get(name, (name, None))[0].partition(":")
  return getattr(importlib.import_module(module), attribute)


class Jsonl:
  """A file of JSON lines, each with its `step`; lines of earlier starts are kept up to `start`.

  A file with other lines is kept beside it as `<file>.damaged`.
  """

  def __init__(self, file: pathlib.Path, start: int):
    self._file = file
    rows = read_metrics(file)
    if strange := sum(1 for line in _lines(file) if line.strip() and not _row(line)):
      aside = file.with_name(file.name + ".damaged")
      os.replace(file, aside)
      logger.warning("%s has %d lines that are no metrics: kept as %s.", file, strange, aside)
    text = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= start)
    places.write_text(str(file), text)

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    with self._file.open("a") as file:
      file.write(json.dumps({"step": step} | dict(row)) + "\n")

  def picture(self, name: str, step: int, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
    pass

  def clip(self, name: str, step: int, file: pathlib.Path) -> None:
    pass

  def close(self) -> None:
    pass


def read_metrics(file: str | os.PathLike) -> list[dict[str, float]]:
  """The rows of a metrics.jsonl; none when it is missing. Lines that are no metrics are left out."""
  return [row for row in map(_row, _lines(file)) if row]


def _lines(file: str | os.PathLike) -> list[str]:
  """What a file holds, by lines that have an end; a kill may have cut off one behind them."""
  if not os.path.exists(file):
    return []
  return pathlib.Path(file).read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _row(line: str) -> dict[str, float] | None:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return None
  step = row.get("step") if isinstance(row, dict) else None
  whole = isinstance(step, int) and not isinstance(step, bool) and is_number(step)
  return row if whole else None


def is_number(x: Any) -> bool:
  """Whether x is a finite number, which a float can hold."""
  return isinstance(x, (int, float)) and abs(x) <= sys.float_info.max
