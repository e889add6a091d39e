"""The HTML report of a run, `report.html` in its workdir, and that of several runs."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from fbjax import errors, places
from fbjax import workdir as workdir_lib
from fbjax.reports import page, run

__all__ = ["FILE", "leave", "leaving", "note_start", "write"]

logger = logging.getLogger(__name__)

FILE = "report.html"
MOVING = 4_000_000  # bytes of the moving pictures of a page


def write(workdirs: Sequence[str], out: str, ended: str = "") -> None:
  """Writes the page of some runs.

  Args:
    workdirs: one or more.
    out: file of the page.
    ended: the error that a single run ended with, if any.

  Raises:
    UserError: when nothing was trained in one of the folders.
  """
  share = MOVING / len(workdirs)
  named = zip(workdirs, run.names(workdirs), strict=True)
  runs = [run.read(workdir, name, share, ended) for workdir, name in named]
  places.write_text(out, page.page(runs))


def leave(workdir: str, ended: str = "") -> None:
  """Writes a run's page into its workdir, in the first process; logs failures, never raises."""
  if jax.process_index() != 0:
    return
  out = f"{workdir}/{FILE}"
  with _attempt(out):
    if places.exists(f"{workdir}/{workdir_lib.CONFIG_FILE}"):  # or else nothing was trained
      write([workdir], out, ended)
      logger.info("Wrote %s.", out)


@contextlib.contextmanager
def leaving(workdir: str) -> Iterator[None]:
  """Context that writes the page of a run at its end, also after an exception."""
  try:
    yield
  except BaseException as error:
    leave(workdir, _told(error))
    raise
  leave(workdir)


def note_start(
  workdir: str, config: Mapping[str, Any], named: str = "", given: Mapping[str, Any] | None = None
) -> None:
  """Calls `run.note_start` in the first process; logs failures, never raises."""
  if jax.process_index() == 0:
    with _attempt(f"{workdir}/{run.START_FILE}"):
      run.note_start(workdir, config, named, given)


@contextlib.contextmanager
def _attempt(file: str) -> Iterator[None]:
  try:
    yield
  except Exception as error:
    logger.warning("Could not write %s (%s): the run does without it.", file, _told(error))


def _told(error: BaseException) -> str:
  """One line; an error of the program itself with its kind."""
  kind = "" if isinstance(error, errors.UserError) else f"{type(error).__name__}: "
  return f"{kind}{error}".strip().splitlines()[0]
