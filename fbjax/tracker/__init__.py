"""Logging of a run: lines of progress, metrics for files and other writers, plots, contact sheets.

No failure here ends a training: each kind is logged once, and the run goes on.
"""

import contextlib
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jaxtyping import UInt8

from fbjax import hardware, places
from fbjax.tracker import plots, writers
from fbjax.tracker.plots import contact_sheet, curve, moving_sheet, plot_loss, write_png
from fbjax.tracker.progress import duration, number, progress_line, time_table
from fbjax.tracker.writers import check_installed, is_number, names, read_metrics

__all__ = [
  "Tracker",
  "check_installed",
  "contact_sheet",
  "curve",
  "moving_sheet",
  "duration",
  "is_number",
  "names",
  "number",
  "plot_loss",
  "progress_line",
  "time_table",
  "read_metrics",
  "write_png",
]

logger = logging.getLogger(__name__)


class Tracker:
  """Writes a run's metrics into its workdir; only the first process writes.

  No method raises for a file, a disk or a library that fails. Metrics of steps after `start` that
  an earlier start wrote are dropped, since the resumed run writes them again. `written` names
  writers beside metrics.jsonl: see `writers`.
  """

  def __init__(
    self,
    workdir: str,
    *,
    steps: int,
    batch_size: int,
    start: int = 0,
    written: str = "tensorboard",
  ):
    self._home = workdir
    self.workdir = places.local(workdir)
    self.steps, self.batch_size = steps, batch_size
    self._active = jax.process_index() == 0
    self._peak = getattr(hardware.chip(jax.devices()[0]), "flops", None)
    self.restart_clock(start)
    self._failed: set[str] = set()
    self._writers: dict[str, writers.Writer] = {}
    if self._active:
      with self.attempt("write metrics.jsonl"):
        places.pull(workdir, "metrics.jsonl")
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._writers["metrics.jsonl"] = writers.Jsonl(self.workdir / "metrics.jsonl", start)
      for name in names(written):
        with self.attempt(f"write {name}"):
          # Imported here: tensorboardX imports torch where that is installed, which takes seconds.
          self._writers[name] = writers.kind(name)(workdir, start)

  @contextlib.contextmanager
  def attempt(self, what: str) -> Iterator[None]:
    """Context that suppresses exceptions, and logs the first one for each `what`."""
    try:
      yield
    except Exception as error:
      if what not in self._failed:
        self._failed.add(what)
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        logger.warning("Could not %s (%s): training goes on without it.", what, reason)

  def waited(self, seconds: float) -> None:
    """Adds time during which the step waited for data."""
    self._waited += seconds

  def computed(self, flops: float) -> None:
    """Adds the FLOPs of a step, those of the whole mesh."""
    self._flops += flops

  def restart_clock(self, step: int) -> None:
    """Restarts the measurement of rates at `step`, to leave out time that is not training."""
    self._last_step, self._last_time = step, time.perf_counter()
    self._waited = self._flops = 0.0

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs one line and keeps the metrics of `step`, with rates since the last call."""
    now = time.perf_counter()
    seconds = max(now - self._last_time, 1e-9)
    rate = (step - self._last_step) / seconds
    waiting = self._waited / seconds
    self._last_step, self._last_time = step, now
    row = dict(metrics)
    row |= {"steps_per_s": rate, "clips_per_s": rate * self.batch_size, "data_wait": waiting}
    if self._flops and self._peak:
      row["mfu"] = self._flops / seconds / (self._peak * jax.device_count())
    self._waited = self._flops = 0.0
    if not self._active:
      return
    logger.info(progress_line(step, self.steps, row))
    self._keep(step, row)
    self._push()

  def preview(
    self,
    step: int,
    image: UInt8[np.ndarray, "_ _ 3"],
    values: Mapping[str, float],
    moving: pathlib.Path | None = None,
  ) -> None:
    """Writes a sheet of samples, and what was measured of them as metrics `preview/<name>`.

    Args:
      step: whose weights have made the samples.
      image: the sheet.
      values: measurements by name.
      moving: file of the sheet as a GIF.
    """
    if not self._active:
      return
    if values:
      told = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
      logger.info("step %s  preview: %s", f"{step:,}", told)
    for name, writer in self._writers.items():
      with self.attempt(f"write {name}"):
        writer.picture("preview", step, image)
        if moving is not None:
          writer.clip("preview", step, moving)
    self._keep(step, {f"preview/{name}": value for name, value in values.items()})

  def time_spent(self, step: int, seconds: Mapping[str, float], began: float) -> None:
    """Logs the time of each phase up to `step`, and writes it as metrics `seconds/<phase>`.

    Args:
      step: the last one.
      seconds: by phase; they sum to the wall time.
      began: seconds before the first step.
    """
    if not self._active:
      return
    logger.info(
      "Where the time went, to step %d; the first step began after %s:\n%s",
      step,
      duration(began),
      time_table(seconds),
    )
    self._keep(step, {f"seconds/{name}": value for name, value in seconds.items()})

  def _keep(self, step: int, row: Mapping[str, float]) -> None:
    for name, writer in self._writers.items() if row else ():
      with self.attempt(f"write {name}"):
        writer.scalars(step, row)

  def close(self) -> None:
    """Draws loss.png and closes the writers."""
    if not self._active:
      return
    with self.attempt("draw loss.png"):
      plots.plot_loss(self.workdir / "metrics.jsonl", self.workdir / "loss.png")
    for name, writer in self._writers.items():
      with self.attempt(f"write {name}"):
        writer.close()
    self._push()

  def _push(self) -> None:
    with self.attempt(f"copy to {self._home}"):
      places.push(self._home)
