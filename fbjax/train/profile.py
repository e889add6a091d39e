"""A profiler trace of a few training steps, on the devices and the host.

The first process writes it below `<workdir>/profile`, for XProf and Perfetto. It begins after the
first step of a run, and slows the steps somewhat.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import jax

from fbjax import places

logger = logging.getLogger(__name__)

FIRST, STEPS = 2, 5  # of those that a run makes, from 1


class Trace:
  """Traces steps FIRST to FIRST + STEPS - 1 of a run, or as many of them as it makes.

  Args:
    workdir: of the run.
    remaining: how many steps the run will make; 0 for no trace.
    attempt: makes a context that suppresses errors, such as `tracker.Tracker.attempt`.
  """

  def __init__(
    self,
    workdir: str,
    remaining: int,
    attempt: Callable[[str], contextlib.AbstractContextManager[None]],
  ):
    self._workdir, self._attempt = workdir, attempt
    self._folder = places.local(workdir) / "profile"
    first = min(FIRST, remaining) if jax.process_index() == 0 else 0
    self._steps = range(first, min(first + STEPS, remaining + 1)) if first else range(0)
    self._running = False

  def reach(self, step: int, before: Any) -> None:
    """Begins or ends the trace before a step, if that is due, once the last step is done.

    Args:
      step: number of the next step, from 1 in each run.
      before: an output of the last step, to wait for.
    """
    if self._running and step not in self._steps:
      jax.block_until_ready(before)
      self.close()
    elif self._steps and step == self._steps[0]:
      jax.block_until_ready(before)
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # every call of Python, which hides what there is to see
      with self._attempt("trace steps"):
        self._folder.mkdir(parents=True, exist_ok=True)  # JAX would trace, and fail behind it
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
        self._running = True

  def close(self) -> None:
    """Ends the trace, if it runs, and writes it."""
    if not self._running:
      return
    self._running = False
    with self._attempt("trace steps"):
      jax.profiler.stop_trace()
      places.push(self._workdir)
      logger.info(
        "Wrote a trace of steps %d to %d of this run into %s.",
        self._steps[0],
        self._steps[-1],
        self._folder,
      )


def named(step: int) -> contextlib.AbstractContextManager[Any]:
  """Context that marks a training step in a profiler trace."""
  return jax.profiler.StepTraceAnnotation("train", step_num=step)
