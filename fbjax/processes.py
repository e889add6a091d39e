"""The processes of one run: how they find each other, and what is said when one is lost."""

import atexit
import contextlib
import functools
import itertools
import logging
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # the client of the coordination service has no public name
from jax.experimental import multihost_utils

from fbjax import errors

logger = logging.getLogger(__name__)

# Seconds: a lone process that a closed laptop halts has lost nobody.
LIFETIME = 10**8
# Where the coordination service keeps that one of the processes was sent SIGTERM.
NOTICE = "RECEIVED_PREEMPTION_NOTICE"
NOTICE_EVERY = 1.0  # seconds between two looks
ASKED = 128 + signal.SIGTERM  # exit status of a run that was asked to stop before it was done
STUCK = (
  1200.0  # seconds that one step, one wait for data or one save may take where others wait for it
)
_sums = itertools.count()
# What Gloo and NCCL say when the other end is gone.
LOST = r"Connection (reset|closed) by peer|Broken pipe|Socket closed|remote process exited"


def join(silence: float = 60.0) -> None:
  """Connects the processes of this run; a lone process connects to itself.

  Also alone, since without the coordination service nobody notices SIGTERM and a preempted run
  would lose what it did since its last checkpoint.

  Args:
    silence: seconds without a sign of life after which a process counts as dead, and the others end
      with one sentence. JAX itself aborts them with a stack of C++ after its heartbeat's 100 s, and
      at once when the dead one is process 0, which holds the coordination service.

  Raises:
    UserError: when the environment tells of other processes, but not enough to join them.
  """
  if not jax.distributed.is_initialized():
    told = told_by_environment()
    try:
      jax.distributed.initialize(
        **told
      )  # what is not told, TPU pods, SLURM, MPI and Kubernetes say
    except ValueError as error:
      if coordinator := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        raise errors.UserError(
          f"JAX_COORDINATOR_ADDRESS={coordinator} asks for several processes: set "
          "JAX_NUM_PROCESSES and JAX_PROCESS_ID too, or unset it to run one alone"
        ) from error
      if (count := os.environ.get("JAX_NUM_PROCESSES") or "1") != "1":
        raise errors.UserError(
          f"JAX_NUM_PROCESSES={count} asks for several processes: set JAX_COORDINATOR_ADDRESS and "
          "JAX_PROCESS_ID too, or unset it to run one alone"
        ) from error
      with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
      jax.distributed.initialize(
        f"127.0.0.1:{port}", num_processes=1, process_id=0, heartbeat_timeout_seconds=LIFETIME
      )
  _watch_peers(silence)


def told_by_environment() -> dict[str, int]:
  """Arguments of `jax.distributed.initialize` for processes that were started by hand.

  JAX reads JAX_COORDINATOR_ADDRESS itself, but not JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Raises:
    UserError: for one that is no number in its range.
  """
  count, own = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
  if not os.environ.get("JAX_COORDINATOR_ADDRESS") or not (count and own):
    return {}
  if not (count.isdigit() and own.isdigit() and int(own) < int(count)):
    raise errors.UserError(
      f"JAX_NUM_PROCESSES={count} and JAX_PROCESS_ID={own}: expected how many processes there are, and "
      "which of them this is, from 0 up"
    )
  return {"num_processes": int(count), "process_id": int(own)}


@functools.cache
def _watch_peers(silence: float) -> None:
  """Starts the thread that tells of dead peers; a collective that waits for one never returns."""
  state = distributed.global_state
  if state.num_processes > 1:
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(state, silence, ended), daemon=True)
    thread.start()

    @atexit.register
    def end() -> None:
      # Python kills a thread that is still about at its end, and inside JAX's C++ that is an abort.
      ended.set()
      thread.join(timeout=silence)


def _watch(state: Any, silence: float, ended: threading.Event) -> None:
  peers = [i for i in range(state.num_processes) if i != state.process_id]
  heard = dict.fromkeys(peers, ("", time.monotonic()))
  for beat in itertools.count():
    # Process 0 keeps what the others tell: when it is halted, this waits for it.
    late = threading.Timer(silence, _lost, [0, silence])
    late.daemon = True
    late.start()
    try:
      state.client.key_value_set(f"fbjax/alive/{state.process_id}", str(beat), allow_overwrite=True)
      told = dict(state.client.key_value_dir_get("fbjax/alive/"))
    except (jax.errors.JaxRuntimeError, AttributeError):
      return  # This run is over, or JAX is about to say that process 0 is.
    finally:
      late.cancel()
    now = time.monotonic()
    for i in peers:
      sign = told.get(f"fbjax/alive/{i}", "")
      if sign != heard[i][0]:
        heard[i] = sign, now
      elif now - heard[i][1] > silence:
        _lost(i, silence)
    if ended.wait(silence / 10):
      return


def _lost(peer: int, silence: float) -> NoReturn:
  logger.error("error: %s", lost_peer(f"process {peer} is silent for {silence:.0f} s"))
  logging.shutdown()
  os._exit(1)  # The main thread may wait for the dead one forever.


def meet(name: str) -> None:
  """A barrier of all processes, without a timeout; the watch of `join` sees to peers that die."""
  state = distributed.global_state
  if state.client is not None and state.num_processes > 1:
    state.client.wait_at_barrier(f"fbjax/{name}", timeout_in_ms=2**31 - 1)


@contextlib.contextmanager
def ending_when_asked(what: str, status: int) -> Iterator[None]:
  """Context that ends all processes within seconds of a SIGTERM to any of them; nothing is saved.

  For work that does not poll for preemption at each step, such as compilation, which takes minutes:
  JAX handles the signal itself, so that by default it ends nothing. Without JAX's coordination
  service this does nothing.

  Args:
    what: message to log then.
    status: exit status.
  """
  client, done = distributed.global_state.client, threading.Event()

  def watch() -> None:
    while not done.wait(NOTICE_EVERY):
      try:
        client.key_value_try_get(NOTICE)
      except jax.errors.JaxRuntimeError:
        continue  # nobody was told to stop
      if jax.process_index() == 0:
        done.wait(3 * NOTICE_EVERY)  # The others read the notice from this one.
      logger.info("%s", what)
      logging.shutdown()
      sys.stdout.flush()
      os._exit(status)  # The main thread may be in the compiler, which hears nothing.

  if client is None:
    yield
    return
  with _beside(watch, done):
    yield


@contextlib.contextmanager
def _beside(watch: Callable[[], None], ended: threading.Event) -> Iterator[None]:
  """Runs `watch` in a thread, until what runs inside is over and `ended` is set."""
  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


@contextlib.contextmanager
def ending_when_stuck(doing: Callable[[], tuple[int, str]], limit: float = STUCK) -> Iterator[None]:
  """Watchdog context that ends this process, and so all of them, when it makes no progress.

  A process whose storage, device or network hangs still sends heartbeats, and the others would wait
  for it forever. Does nothing in a run of a single process.

  Args:
    doing: returns a progress counter and the current activity in words; "" if it has no limit.
    limit: seconds within which the counter must change.
  """
  ended, ticks = threading.Event(), 20

  def watch() -> None:
    last, same = None, 0
    # Ticks, not the clock: a process that was halted meanwhile has not been stuck.
    while not ended.wait(limit / ticks):
      now = doing()
      same = same + 1 if now == last and now[1] else 0
      last = now
      if same >= ticks:
        logger.error(
          "error: process %d is stuck, %s for %.0f s: see the logs of the others for what they wait for, then run "
          "the same command in all processes again, to go on from the newest checkpoint",
          jax.process_index(),
          now[1],
          limit,
        )
        logging.shutdown()
        os._exit(1)  # The main thread does not answer.

  if jax.process_count() == 1:
    yield
    return
  with _beside(watch, ended):
    yield


def share(count: int) -> range:
  """This process's contiguous range of `count` items; lengths differ by one at most."""
  index, processes = jax.process_index(), jax.process_count()
  return range(index * count // processes, (index + 1) * count // processes)


def gather(value: Any) -> list[Any]:
  """All-gathers a value: those of all processes, in their order. Every process must call it.

  Args:
    value: anything that can be pickled; arrays keep every bit.
  """
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  with telling_of_lost_peers():
    sizes = multihost_utils.process_allgather(np.int32(len(data))).ravel()
    # As words: without 64-bit types JAX would round what is wider.
    words = np.zeros(-(-sizes.max() // 4), np.uint32)
    words.view(np.uint8)[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(words))
  return [
    pickle.loads(np.ascontiguousarray(row).view(np.uint8)[:n].tobytes())
    for row, n in zip(rows, sizes, strict=True)
  ]


def summed(x: np.ndarray) -> np.ndarray:
  """The sum of an array over all processes, which call this in the same order."""
  # A collective by itself gives up after a while, and some may be hours behind.
  meet(f"sum {next(_sums)}")
  return sum(gather(x))


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Context that all processes enter: a UserError in one of them is raised in each.

  It ends with a barrier. Inside, no process may wait for another, which may have failed, except in
  calls that fail in all of them alike, such as another `together`.
  """
  own = None
  try:
    yield
  except errors.LostPeer:
    raise  # there is nobody to tell
  except errors.UserError as error:
    own = error
  told = gather(None if own is None else str(own))
  if own is not None:
    raise own
  for sentence in filter(None, told):
    raise errors.UserError(sentence)


def leave(error: errors.LostPeer) -> NoReturn:
  """Ends this process with a sentence, without JAX, which would wait for the dead peer and abort."""
  print(f"error: {error}", file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(1)


def lost_peer(sign: str) -> str:
  """What to do when another process of this run ended."""
  return (
    f"{sign}, so another process of this run has ended or hangs; its own log says why: run the same command "
    "in all processes again, to go on from the newest checkpoint"
  )


@contextlib.contextmanager
def telling_of_lost_peers() -> Iterator[None]:
  """Context that raises a LostPeer for a JAX error that says that a connection to a peer broke."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() > 1 and re.search(LOST, str(error)):
      raise errors.LostPeer(lost_peer("a connection broke")) from error
    raise
