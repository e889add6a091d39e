"""Two processes of one run on this machine: what one loses, all are told."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import settings
from fbjax import checkpoint, errors, processes

# argv: port, process, what is below, and its arguments
START = """
import logging, os, sys
sys.path[:0] = ["tests"]
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]), heartbeat_timeout_seconds=60)
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from fbjax import checkpoint, errors, processes, sharding
logging.basicConfig(level=logging.WARNING, format="%(message)s")
processes.join(silence=4)
mesh = sharding.make_mesh(1, 4)
def state(step):
  x = np.random.default_rng(step).normal(size=(64, 512)).astype(np.float32)
  place = lambda x, *spec: jax.make_array_from_callback(x.shape, NamedSharding(mesh, P(*spec)), lambda i: x[i])
  return {"split": place(x, "fsdp"), "whole": place(x)}
"""

COLLECTIVE = """
total = jax.jit(lambda x: x + x.sum() * 1e-3, out_shardings=NamedSharding(mesh, P()))
x = state(0)["whole"]
for step in range(10**6):
  x = jax.block_until_ready(total(x))
  if step == 0:
    print("running", flush=True)
"""

PROGRAM = """
from fbjax import main
from fbjax.modes import train
def loop(config, workdir, **options):
  total = jax.jit(lambda x: x + x.sum() * 1e-3, out_shardings=NamedSharding(mesh, P()))
  x = state(0)["whole"]
  with processes.telling_of_lost_peers():
    for step in range(10**6):
      x = jax.block_until_ready(total(x))
      if step == 0:
        print("running", flush=True)
train.train = loop
processes.join = lambda: None
sys.argv = ["main", "--config=configs/quickstart.py:smoke", f"--workdir={sys.argv[3]}"]
main.cli()
"""

COMPILING = """
logging.getLogger().setLevel(logging.INFO)
@jax.jit
def slow(x):
  for i in range(10**9):
    x = x + i
  return x
with processes.ending_when_asked("Asked to stop while compiling, at step 7", 0):
  print("running", flush=True)
  slow(0.0)
"""

SAVE = """
checkpoints = checkpoint.Checkpoints(sys.argv[3])
for step in (2, 4):
  checkpoints.save(step, state(step), 10 * step)
checkpoints.close()
"""

RESTORE = """
checkpoints = checkpoint.Checkpoints(sys.argv[3])
found, position = checkpoints.restore(state(0))
for name, x in state(position // 10).items():
  for ours, theirs in zip(found[name].addressable_shards, x.addressable_shards):
    np.testing.assert_array_equal(ours.data, theirs.data)
print("position", position, flush=True)
checkpoints.save(4, state(4), 40)
checkpoints.close()
"""


def start(script: str, *arguments: str) -> list[subprocess.Popen]:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  environment = os.environ | {
    "XLA_FLAGS": f"{settings.FAST_COMPILATION} --xla_force_host_platform_device_count=2",
    "JAX_PLATFORMS": "cpu",
  }
  return [
    subprocess.Popen(
      [sys.executable, "-c", START + script, str(port), str(process), *arguments],
      cwd=settings.ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in (0, 1)
  ]


def finish(running: list[subprocess.Popen]) -> list[str]:
  outputs = [process.communicate(timeout=200) for process in running]
  assert [process.returncode for process in running] == [0, 0], outputs
  return [out + err for out, err in outputs]


LOSSES = {
  "killed": (COLLECTIVE, 1, signal.SIGKILL),
  "killed, in the program": (PROGRAM, 1, signal.SIGKILL),
  "halted": (COLLECTIVE, 1, signal.SIGSTOP),
  "halted, with the coordination service": (COLLECTIVE, 0, signal.SIGSTOP),
}


@pytest.mark.parametrize(("script", "lost", "how"), LOSSES.values(), ids=LOSSES)
def test_a_lost_peer_ends_the_others_with_one_sentence_in_time(script, lost, how, tmp_path):
  running = start(script, str(tmp_path))
  for process in running:
    while "running" not in process.stdout.readline():
      assert process.poll() is None
  running[lost].send_signal(how)
  killed = time.monotonic()
  _, log = running[1 - lost].communicate(timeout=60)
  assert time.monotonic() - killed < 15
  running[lost].kill()
  running[lost].communicate()
  assert running[1 - lost].returncode == 1
  for part in (
    "another process of this run has ended or hangs",
    "run the same command in all processes",
  ):
    assert part in log
  assert "stack trace" not in log


STUCK = """
logging.getLogger().setLevel(logging.INFO)
import time
step = 0
with processes.ending_when_stuck(lambda: (step, "without data"), limit=2):
  for step in range(8):
    time.sleep(0.5)  # longer than the limit, but it goes on
  print("running", flush=True)
  if jax.process_index() == 1:
    time.sleep(1000)
  processes.meet("never")
"""


def test_a_process_that_hangs_ends_all_of_them_and_says_in_what():
  """Alive, but in a read that never returns: nothing else would tell of it."""
  running = start(STUCK)
  for process in running:
    while "running" not in process.stdout.readline():
      assert process.poll() is None
  hung = time.monotonic()
  logs = [process.communicate(timeout=60)[1] for process in running]
  assert time.monotonic() - hung < 15
  assert running[1].returncode == 1
  assert "process 1 is stuck, without data for 2 s" in logs[1]


def test_asked_to_stop_while_compiling_all_end_at_once():
  running = start(COMPILING)
  for process in running:
    while "running" not in process.stdout.readline():
      assert process.poll() is None
  running[1].send_signal(signal.SIGTERM)
  asked = time.monotonic()
  logs = finish(running)
  assert time.monotonic() - asked < 15
  assert all("Asked to stop while compiling, at step 7" in log for log in logs)


def test_damage_that_one_process_finds_sends_all_to_the_checkpoint_before(tmp_path):
  """The half that process 1 reads is damaged; process 0 could restore its own."""
  folder = tmp_path / "checkpoints"
  finish(start(SAVE, str(tmp_path)))
  assert checkpoint.steps(str(tmp_path)) == [2, 4]
  written = [path for path in (folder / "4/state/ocdbt.process_1/d").iterdir()]
  biggest = max(written, key=lambda path: path.stat().st_size)
  content = bytearray(biggest.read_bytes())
  content[len(content) // 2] ^= 1
  biggest.write_bytes(content)
  logs = finish(start(RESTORE, str(tmp_path)))
  assert all("position 20" in log and "going back to that of step 2" in log for log in logs)
  assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "4.damaged"]


def test_half_an_environment_for_several_processes_is_no_lone_one(monkeypatch):
  def initialize(*args, **kwargs):
    raise ValueError("Number of processes must be defined.")

  monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: False)
  monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
  monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
  with pytest.raises(errors.UserError, match="set JAX_NUM_PROCESSES and JAX_PROCESS_ID too"):
    processes.join()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  monkeypatch.setenv("JAX_PROCESS_ID", "2")
  with pytest.raises(errors.UserError, match="JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=2: expected"):
    processes.join()
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
  with pytest.raises(errors.UserError, match="set JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID too"):
    processes.join()


BY_ENVIRONMENT = """
import jax
from fbjax import processes
processes.join()
print(jax.process_index(), jax.process_count())
"""


def test_processes_started_by_hand_find_each_other_by_the_environment():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  told = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
  started = [
    subprocess.Popen(
      [sys.executable, "-c", BY_ENVIRONMENT],
      env=os.environ | told | {"JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      text=True,
      cwd=settings.ROOT,
    )
    for i in range(2)
  ]
  assert [process.communicate(timeout=120)[0].split() for process in started] == [
    ["0", "2"],
    ["1", "2"],
  ]


def test_a_lone_process_is_not_ended_for_being_halted(monkeypatch):
  """By a closed laptop, for days; JAX's own limit is 100 s."""
  limits = []

  def initialize(address="", **options):
    if not address:
      raise ValueError("coordinator_address should be defined.")
    limits.append(options["heartbeat_timeout_seconds"])

  monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: False)
  monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
  processes.join()
  assert limits and limits[0] > 30 * 86_400
