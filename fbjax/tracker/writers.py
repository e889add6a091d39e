"""Where the metrics of a run go: a file of json lines, TensorBoard."""

import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from fbjax import places

logger = logging.getLogger(__name__)


class Writer(Protocol):
  """A place for metrics; any method may raise, which costs the run no more than this step's."""

  name: str

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    """Keeps the metrics of a step."""

  def picture(self, name: str, step: int, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
    """Shows a picture, where the place can."""

  def close(self) -> None:
    """Finishes what is written."""


class Jsonl:
  """One line of json for each step, those up to `start` kept from the run before.

  What is in the file but not of this kind stays beside it, in `<file>.damaged`.
  """

  def __init__(self, file: pathlib.Path, start: int):
    self.name, self._file = file.name, file
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
  whole = isinstance(row, dict) and isinstance(row.get("step"), int)
  return row if whole and not isinstance(row["step"], bool) else None


def is_number(x: Any) -> bool:
  """Whether x is a finite number."""
  return isinstance(x, (int, float)) and math.isfinite(x)
