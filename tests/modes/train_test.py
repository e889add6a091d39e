"""Whole runs at toy size: train, be killed, go on, sample."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import toy
from fbjax import build, checkpoint, errors, sharding, tracker
from fbjax.modes import train, watch
from fbjax.train import loop, optim
from settings import CACHE, FAST_COMPILATION, ROOT


def test_a_run_leaves_everything_a_person_wants_to_see(trained):
  assert json.loads((trained / "config.json").read_text())["train"]["steps"] == 4
  *rows, measured, spent = tracker.read_metrics(trained / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert {"loss", "grad_norm", "steps_per_s", "clips_per_s", "data_wait"} <= set(rows[0])
  assert measured["step"] == 4 and spent["seconds/compiling"] > 0
  assert {"preview/loss", "preview/motion_ratio", "preview/static_share"} <= set(measured)
  page = (trained / "report.html").read_text()
  assert "Step 4 of 4" in page and page.count("data:image/gif") == 1
  assert (trained / "loss.png").exists() and list((trained / "tensorboard").iterdir())
  sheet = np.asarray(Image.open(trained / "samples" / "0000004.png"))
  assert sheet.shape[2] == 3 and sheet.std() > 0
  with Image.open(trained / "samples" / "0000004.gif") as moving:
    assert moving.n_frames == 3
  clips = sorted((trained / "samples" / "0000004").glob("*.mp4"))
  assert len(clips) == train.PREVIEWS


def test_previews_animate_images_of_ones_own(tmp_path):
  """Beside the held-out clips, with the same noise at every step."""
  folder = tmp_path / "images"
  folder.mkdir()
  noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
  for name in "ab":
    Image.fromarray(noise).save(folder / f"{name}.png")
  (folder / "prompts.txt").write_text("up\ndown\n")
  config = toy.config(steps=2, preview_every=1)
  config["sampling"]["images"] = str(folder)
  config["optim"]["lr"] = 0.0  # two previews of one network
  train.train(config, str(tmp_path / "run"))
  one, two = (tmp_path / "run" / "samples" / f"000000{step}-images" for step in (1, 2))
  assert sorted(x.name for x in one.iterdir()) == ["a.mp4", "b.mp4"]
  assert (one / "a.mp4").read_bytes() == (two / "a.mp4").read_bytes()
  assert (one / "a.mp4").read_bytes() != (one / "b.mp4").read_bytes()
  assert one.with_name(f"{one.name}.gif").exists() and one.with_name(f"{one.name}.png").exists()
  (folder / "prompts.txt").write_text("up\n")
  with pytest.raises(errors.UserError, match="has 1 prompts for 2 images"):
    train.train(config, str(tmp_path / "other"))
  assert not (tmp_path / "other" / "config.json").exists()


COMMAND = """
import logging, sys
sys.path[:0] = ["tests"]
import jax, toy
jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Importing Orbax may have set up the root logger already.
logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
from fbjax import processes
from fbjax.modes import train, watch
processes.join()
done = train.train(toy.config(steps=int(sys.argv[2]), save_every=2), sys.argv[1])
sys.exit(0 if done else processes.ASKED)
"""


def test_a_warmup_that_does_not_end_is_told(caplog):
  config = toy.config()
  config["optim"]["warmup"], config["train"]["steps"] = 50, 2
  train.tell_warmup(config)
  assert "config.optim.warmup is 50 of 2 steps: the learning rate ends at 0.04" in caplog.text
  caplog.clear()
  config["train"]["steps"] = 50
  train.tell_warmup(config)
  assert not caplog.text


def start(workdir, steps) -> subprocess.Popen:
  environment = os.environ | {"XLA_FLAGS": FAST_COMPILATION}
  command = [sys.executable, "-c", COMMAND, str(workdir), str(steps), str(CACHE)]
  return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def final_state(workdir, step):
  config = toy.config()
  system = build.make_system(config, build.make_tokenizer(config))
  shapes = {"params": jax.eval_shape(system.init, jax.random.key(0))}
  found, part = checkpoint.load(str(workdir), shapes)
  assert found == step
  return part["params"]


def wait_for(process, steps, begins="step ") -> None:
  """Returns once the run has logged so many more steps, or other lines that begin so."""
  lines = []
  for line in process.stderr:
    lines.append(line)
    if line.startswith(begins):
      steps -= 1
      if steps == 0:
        return
  raise AssertionError(f"the run ended early ({process.wait()}):\n" + "".join(lines))


def test_a_killed_run_ends_with_the_bits_of_one_that_was_never_stopped(tmp_path):
  """kill -9 while running, SIGTERM later, one more before the first step of a run that goes on."""
  whole = start(tmp_path / "whole", 12)
  _, log = whole.communicate()
  assert whole.returncode == 0, log
  killed = start(tmp_path / "killed", 12)
  wait_for(killed, 5)
  killed.kill()
  killed.wait()
  for steps, line in ((2, "step "), (1, "Resumed ")):
    asked = start(tmp_path / "killed", 12)
    wait_for(asked, steps, line)
    asked.send_signal(signal.SIGTERM)
    _, log = asked.communicate()
    assert asked.returncode == 128 + signal.SIGTERM
    assert "Asked to stop" in log and "step 12/12" not in log
  last = start(tmp_path / "killed", 12)
  _, log = last.communicate()
  assert last.returncode == 0, log
  expected, actual = final_state(tmp_path / "whole", 12), final_state(tmp_path / "killed", 12)
  jax.tree.map(np.testing.assert_array_equal, expected, actual)


@pytest.mark.thorough
def test_a_real_network_learns_the_same_on_one_device_and_on_eight(tmp_path):
  """Ten steps of SGD: Adam would turn rounding in dead biases into steps."""
  config = toy.config()
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  loss_fn = build.make_loss(config, system, build.make_formulation(config))
  losses = []
  for data, fsdp in [(1, 1), (2, 4)]:
    workdir = tmp_path / str(data * fsdp)
    loop.train(
      loss_fn=loss_fn,
      tx=optim.make_optimizer(name="sgd", lr=0.1, steps=10),
      init=system.init,
      frozen={},
      data=build.make_batches(config, build.make_source(config, "train"), tokenizer, 0, 1),
      mesh=sharding.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp]),
      workdir=str(workdir),
      steps=10,
      batch_size=8,
      log_every=1,
    )
    rows = tracker.read_metrics(workdir / "metrics.jsonl")
    losses.append([row["loss"] for row in rows if "loss" in row])
  np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
  assert len(losses[0]) == 10 and losses[0][0] != losses[0][-1]


def test_a_preview_that_cannot_be_written_has_waited_for_all_processes_before(
  tmp_path, monkeypatch, caplog
):
  """The first process alone writes: the others, in a computation of all, would wait for it."""
  measured = []
  monkeypatch.setattr(watch.Watch, "__call__", lambda self, *args: measured.append(1) or {})
  (tmp_path / "samples").write_text("in the way")
  train.train(toy.config(steps=2), str(tmp_path))
  assert "Could not draw a preview" in caplog.text and measured
