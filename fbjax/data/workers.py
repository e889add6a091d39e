"""Worker processes that compute values by index, and leave nothing locked when they are killed.

Each is asked for its next numbers over a socket of its own and answers with a file in memory that
has no name. So there is no lock, queue or shared memory that a killed process could leave behind
held: its end of the socket closes, which the other side sees at once.
"""

import atexit
import multiprocessing
import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection, reduction
from typing import Any, BinaryIO, NamedTuple


class Died(Exception):
  """A worker process exited or was killed; the message has its exit status or signal."""

  def __init__(self, code: int):
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    super().__init__(how)
    self.killed = code == -signal.SIGKILL


class _Worker(NamedTuple):
  process: multiprocessing.Process
  ours: connection.Connection


class Workers(Iterator):
  """Iterates over make(0), make(1) and so on, computed by `count` processes.

  Each computes up to `ahead` values in advance, 64 at most. `make` is pickled once per process. An
  exception that it raises is raised here when the iteration reaches its value.
  """

  def __init__(self, make: Callable[[int], Any], count: int, ahead: int):
    # Hundreds of numbers would fill the sockets, and both sides wait for room.
    self._next, self._ahead = 0, min(ahead, 64)
    # Not forked: JAX's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    self._workers = [_start(context, make) for _ in range(count)]
    # Before multiprocessing waits for those that still run.
    atexit.register(self.close)
    for number in range(count * self._ahead):
      self._ask(number)

  def __next__(self) -> Any:
    """The next value.

    Raises:
      Died: when any of the processes is gone, also while the others have values left.
    """
    ours = self._worker(self._next).ours
    sentinels = [worker.process.sentinel for worker in self._workers]
    if gone := [sentinel for sentinel in connection.wait([ours, *sentinels]) if sentinel != ours]:
      process = self._workers[sentinels.index(gone[0])].process
      process.join()
      raise Died(process.exitcode)
    try:
      value = _receive(ours)
      self._ask(self._next + len(self._workers) * self._ahead)
    except (EOFError, OSError):
      process = self._worker(self._next).process
      process.join()
      raise Died(process.exitcode) from None
    self._next += 1
    if isinstance(value, Exception):
      raise value
    return value

  def close(self) -> None:
    """Ends the processes."""
    atexit.unregister(self.close)
    for worker in self._workers:
      worker.ours.close()
      worker.process.kill()
    for worker in self._workers:
      worker.process.join()

  def _worker(self, number: int) -> _Worker:
    return self._workers[number % len(self._workers)]

  def _ask(self, number: int) -> None:
    self._worker(number).ours.send(number)


def _start(context: Any, make: Callable[[int], Any]) -> _Worker:
  ours, theirs = context.Pipe()
  process = context.Process(target=_work, args=(theirs, make), name="fbjax-worker", daemon=True)
  process.start()
  theirs.close()
  return _Worker(process, ours)


def _work(theirs: connection.Connection, make: Callable[[int], Any]) -> None:
  # Schedulers and terminals signal the whole group; the process that asks decides when it is over.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  try:
    while True:
      _send(theirs, _attempt(make, theirs.recv()))
  except (EOFError, OSError):
    pass  # Nobody asks any more.


def _attempt(make: Callable[[int], Any], number: int) -> Any:
  try:
    return make(number)
  except Exception as error:
    error.add_note("In a worker process:\n" + traceback.format_exc())
    return error


def _send(theirs: connection.Connection, value: Any) -> None:
  with _memory() as file:
    pickle.dump(value, file, protocol=5)
    file.flush()
    reduction.send_handle(theirs, file.fileno(), os.getppid())


def _receive(ours: connection.Connection) -> Any:
  with open(reduction.recv_handle(ours), "rb") as file:
    file.seek(0)
    return pickle.load(file)


def _memory() -> BinaryIO:
  """A file that is gone once all have closed it; a batch takes thrice as long through a pipe."""
  if hasattr(os, "memfd_create"):
    return open(os.memfd_create("fbjax"), "w+b")
  return tempfile.TemporaryFile()
