"""Where the time of a training goes: a clock that is in one phase at any moment.

  starting    imports, networks, weights that are started from
  restoring   reading the checkpoint that the run goes on from
  compiling   the step, once for each shape of batches
  data_wait   waiting for a batch, while the devices are idle
  saving      the blocking part of checkpoints; the rest is written while steps run
  reporting   metrics, and previews with their compilation
  steps       what is left: its share is the goodput

A moment belongs to one phase, so that the phases of a run sum to its wall time.
"""

import contextlib
import os
import time
from collections.abc import Iterator

PHASES = ("starting", "restoring", "compiling", "data_wait", "saving", "reporting", "steps")


class Clock:
  """Seconds of each phase. It starts in `starting`.

  Args:
    before: seconds of `starting` that have passed already.
  """

  def __init__(self, before: float = 0.0):
    self._spent = dict.fromkeys(PHASES, 0.0) | {"starting": before}
    self._phase, self._since = PHASES[0], time.perf_counter()
    self.changes = 0  # of phase: a clock that counts on belongs to a run that does

  @property
  def phase(self) -> str:
    """The current phase."""
    return self._phase

  def enter(self, phase: str) -> None:
    """Ends the present phase and begins another."""
    now = time.perf_counter()
    self._spent[self._phase] += now - self._since
    self._phase, self._since = phase, now
    self.changes += 1

  @contextlib.contextmanager
  def within(self, phase: str) -> Iterator[None]:
    """Context in another phase; at its end, the interrupted one goes on."""
    before = self._phase
    self.enter(phase)
    try:
      yield
    finally:
      self.enter(before)

  def give(self, seconds: float, phase: str) -> None:
    """Moves seconds of the current phase to another one, which ran at the same time."""
    self._spent[self._phase] -= seconds
    self._spent[phase] += seconds

  def seconds(self) -> dict[str, float]:
    """Seconds of each phase, up to now."""
    running = time.perf_counter() - self._since
    return self._spent | {self._phase: self._spent[self._phase] + running}

  def goodput(self) -> float:
    """The share of `steps` in the time up to now, 0 to 1."""
    seconds = self.seconds()
    return seconds["steps"] / max(sum(seconds.values()), 1e-9)


def process_age() -> float:
  """Seconds since this process was started; 0 where the system does not tell, as outside Linux."""
  try:
    with open("/proc/self/stat") as file:
      ticks = int(file.read().rpartition(")")[2].split()[19])
    began = ticks / os.sysconf("SC_CLK_TCK")
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
  except (OSError, ValueError, IndexError, AttributeError):
    return 0.0
