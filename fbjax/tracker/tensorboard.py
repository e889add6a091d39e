"""Metrics and pictures as TensorBoard's event files.

Imported by a training alone: tensorboardX imports torch where that is installed, which takes seconds.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from fbjax import places


class TensorBoard:
  """Writes event files; what an earlier start wrote of steps after `start` is hidden.

  Events are written synchronously and not by tensorboardX's thread: a full disk kills that one, and
  whoever puts the next event into its queue waits forever.
  """

  def __init__(self, workdir: str, start: int):
    folder = places.local(workdir) / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    # Two starts within a second would share a file of the same name.
    self._events = event_file_writer.EventsWriter(str(folder / "events"), f".{start}")
    restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(start + 1, session_log=restart)

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    values = [summary.scalar(name, value).value[0] for name, value in row.items()]
    self._write(step, summary=summary.Summary(value=values))

  def picture(self, name: str, step: int, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
    self._write(step, summary=summary.image(name, image, dataformats="HWC"))

  def clip(self, name: str, step: int, file: pathlib.Path) -> None:
    pass

  def close(self) -> None:
    self._events.close()

  def _write(self, step: int, **content: Any) -> None:
    self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))
    self._events.flush()
