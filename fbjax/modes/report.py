"""--mode=report: one page of a run, or of several side by side: configs, curves, cards, samples.

fbjax report runs/a runs/b --out=report.html
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import jax

from fbjax import errors, places, reports

logger = logging.getLogger(__name__)

MOST = 12  # runs that a page can show so that somebody sees something


def report(config: dict[str, Any] | None, workdirs: Sequence[str], out: str | None = None) -> str:
  """Writes the page of some runs.

  Args:
    config: None; runs have their own.
    workdirs: folders of runs, here or in a bucket.
    out: file of the page; None is report.html, of one run in its workdir, of several in the current
      folder.

  Returns:
    The file.

  Raises:
    UserError: for folders that are no runs, or a file that cannot be written.
  """
  if config is not None:
    raise errors.UserError("--mode=report reads the configs of the runs: leave --config out")
  workdirs = [x.rstrip("/") for x in workdirs]
  if not 1 <= len(set(workdirs)) == len(workdirs) <= MOST:
    raise errors.UserError(
      f"--mode=report takes 1 to {MOST} runs, each once, such as --mode=report runs/a runs/b; it was "
      f"given {', '.join(workdirs) or 'none'}"
    )
  if not out:
    out = f"{workdirs[0]}/{reports.FILE}" if len(workdirs) == 1 else reports.FILE
  if not out.endswith((".html", ".htm")):
    raise errors.UserError(f"--out={out} is the file of a page: give it a name that ends in .html")
  if jax.process_index() == 0:
    places.check_writable(os.path.dirname(out) or ".")
    reports.write(workdirs, out)
    logger.info("Wrote %s.", out)
  return out
