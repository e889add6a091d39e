"""Two processes of one run on this machine: they train and sample as one does, and one goes on from
what they saved."""

import os
import socket
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from PIL import Image

import settings
from fbjax import tracker

# argv: cache, workdir, steps, process, processes, port
COMMAND = """
import logging, os, sys
sys.path[:0] = ["tests"]
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
workdir, steps, process, processes, port = sys.argv[2], *map(int, sys.argv[3:])
if processes > 1:
  jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
import toy
from fbjax import processes as joined
from fbjax.modes import sample, train
logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
joined.join(silence=10)
config = toy.config(steps=steps, log_every=1, save_every=3, preview_every=6)
# Adam turns rounding noise in dead biases into full steps.
config["optim"] = dict(config["optim"], name="sgd", lr=0.1, schedule="constant", warmup=0)
config["mesh"] = dict(data=-1, fsdp=2 if processes > 1 else 1)
clips = dict(image=f"{workdir}/../images", out=f"{workdir}/clips{processes}")
if processes == 1 and os.path.exists(workdir):  # what two have trained
  sample.sample(None, workdir, **clips)
train.train(config, workdir)
if processes == 2:
  sample.sample(None, workdir, **clips)
"""


def start(workdir, steps, process=0, processes=1, port=0) -> subprocess.Popen:
  devices = f"--xla_force_host_platform_device_count={2 if processes > 1 else 1}"
  environment = os.environ | {
    "XLA_FLAGS": f"{settings.FAST_COMPILATION} {devices}",
    "JAX_PLATFORMS": "cpu",
  }
  argv = [str(settings.CACHE), str(workdir), *map(str, (steps, process, processes, port))]
  return subprocess.Popen(
    [sys.executable, "-c", COMMAND, *argv],
    cwd=settings.ROOT,
    env=environment,
    # A file, not a pipe: nobody reads the one while waiting for the other.
    stderr=(workdir.parent / f"{workdir.name}{process}.log").open("w"),
  )


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def finish(workdir, *processes: subprocess.Popen) -> None:
  try:
    codes = [process.wait(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
  logs = [log.read_text() for log in sorted(workdir.parent.glob(f"{workdir.name}*.log"))]
  assert set(codes) == {0}, "\n".join(logs)


def lose_one(workdir, step: int) -> None:
  """Two processes, of which one is killed behind a step; the other ends by itself, with a sentence."""
  port = free_port()
  one, two = (start(workdir, 6, process, 2, port) for process in range(2))
  try:
    patience = time.monotonic() + 200
    while len(losses(workdir)) < step and one.poll() is None and time.monotonic() < patience:
      time.sleep(0.02)
    two.kill()
    assert one.wait(timeout=100) == 1
  finally:
    one.kill()
    two.kill()
  logs = sorted(workdir.parent.glob(f"{workdir.name}*.log"))
  assert "another process of this run has ended or hangs" in logs[0].read_text()
  for log in logs:
    log.unlink()


def numbers(workdir) -> list[tuple[float, ...]]:
  """What a step tells of itself, the last one that was written counts."""
  rows = {
    row["step"]: row for row in tracker.read_metrics(workdir / "metrics.jsonl") if "loss" in row
  }
  return [tuple(rows[i][k] for k in ("loss", "grad_norm", "update_norm")) for i in sorted(rows)]


def pixels(file) -> np.ndarray:
  with av.open(str(file)) as container:
    return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(int)


def losses(workdir) -> list[float]:
  file = workdir / "metrics.jsonl"
  rows = tracker.read_metrics(file) if file.exists() else []
  return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.timeout(1200)
def test_two_processes_do_what_one_does_also_after_one_was_killed_and_one_goes_on(tmp_path):
  (tmp_path / "images").mkdir()
  rng = np.random.default_rng(0)
  for i in range(3):
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"images/{i}.png")
  (tmp_path / "images/prompts.txt").write_text("up\ndown\nleft\n")
  alone, together = tmp_path / "alone", tmp_path / "together"
  finish(alone, start(alone, 8))
  lose_one(together, step=int(rng.integers(4, 6)))
  before = numbers(together)
  port = free_port()
  finish(together, *(start(together, 6, process, 2, port) for process in range(2)))
  assert len(losses(together)) == 6  # only the first process writes
  assert numbers(together)[: len(before)] == before  # to the bit, also of steps taken twice
  np.testing.assert_allclose(losses(together), losses(alone)[:6], atol=1e-5)
  assert (together / "samples/0000006.png").exists()
  finish(together, start(together, 8))
  for i in range(3):
    ours, theirs = (pixels(together / f"clips{n}/{i}.mp4") for n in (1, 2))
    assert ours.shape == (3, 16, 16, 3) and np.abs(ours - theirs).max() <= 3
  np.testing.assert_allclose(losses(together), losses(alone), atol=1e-5)
  assert losses(alone)[0] != losses(alone)[-1]
