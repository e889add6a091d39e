"""Whole runs at toy size: train, be killed, go on, sample."""

import json
import os
import signal
import subprocess
import sys

import av
import jax
import numpy as np
import optax
import pytest
from PIL import Image

import toy
from configs import ucf101_bridge_prior, ucf101_prior
from fbjax import build, checkpoint, run, sampling, sharding, tracker
from fbjax.train import loop
from settings import CACHE, FAST_COMPILATION, ROOT


@pytest.fixture(autouse=True, scope="module")
def one_device():
  """Programs for eight devices take minutes to compile; one test below asks for them."""
  with pytest.MonkeyPatch.context() as patch:
    one = sharding.make_mesh(1, 1, jax.devices()[:1])
    patch.setattr(build, "make_mesh", lambda config: one)
    yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):
  workdir = tmp_path_factory.mktemp("trained")
  run.train(toy.config(), str(workdir))
  return workdir


def test_a_run_leaves_everything_a_person_wants_to_see(trained):
  assert json.loads((trained / "config.json").read_text())["train"]["steps"] == 4
  rows = tracker.read_metrics(trained / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert {"loss", "grad_norm", "steps_per_s", "clips_per_s", "data_wait"} <= set(rows[0])
  assert (trained / "loss.png").exists() and list((trained / "tensorboard").iterdir())
  sheet = np.asarray(Image.open(trained / "samples" / "0000004.png"))
  assert sheet.shape[2] == 3 and sheet.std() > 0
  clips = sorted((trained / "samples" / "0000004").glob("*.mp4"))
  assert len(clips) == run.PREVIEWS


@pytest.fixture
def image(tmp_path):
  path = tmp_path / "cat.png"
  pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def frames(path) -> int:
  with av.open(str(path)) as container:
    return sum(1 for _ in container.decode(video=0))


def test_an_image_becomes_a_clip(trained, image, tmp_path):
  out = tmp_path / "new" / "cat.mp4"
  written = run.sample(toy.config(), str(trained), image=str(image), prompt="up", out=str(out))
  assert written == [out] and frames(out) == 3


def test_a_folder_becomes_clips_and_is_not_done_twice(trained, image, tmp_path):
  folder, out = tmp_path / "prompts", tmp_path / "out"
  folder.mkdir()
  for name in ("a.png", "b.jpeg"):
    Image.open(image).save(folder / name)
  (folder / "prompts.txt").write_text("one\n\ntwo\n")
  arguments = dict(image=str(folder), out=str(out))
  run.sample(toy.config(), str(trained), **arguments)
  assert sorted(p.name for p in out.iterdir()) == ["a.mp4", "b.mp4"]
  with pytest.raises(ValueError, match="every clip is already in"):
    run.sample(toy.config(), str(trained), **arguments)


def test_a_clip_is_continued_from_its_last_frame(trained, image, tmp_path):
  out = tmp_path / "long.mp4"
  run.sample(toy.config(), str(trained), image=str(image), out=str(out), chunks=3)
  assert frames(out) == 3 + 2 + 2


def test_clips_have_the_size_and_length_asked_for(trained, image, tmp_path):
  out = tmp_path / "wide.mp4"
  run.sample(toy.config(), str(trained), image=str(image), out=str(out), size=(16, 24), frames=4)
  with av.open(str(out)) as container:
    shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
  assert shapes == [(16, 24, 3)] * 4


def test_a_last_frame_is_refused_where_nobody_was_trained_with_one(trained, image, tmp_path):
  arguments = dict(image=str(image), out=str(tmp_path / "x.mp4"))
  with pytest.raises(ValueError, match="trained with the first frame alone"):
    run.sample(toy.config(), str(trained), last=str(image), **arguments)
  config = toy.config()
  config["system"]["given"] = "ends"
  with pytest.raises(ValueError, match="give --last=<image> too"):
    run.check_ends(config, None, 1)
  with pytest.raises(ValueError, match="cannot be continued"):
    run.check_ends(config, str(image), 2)


def test_guidance_needs_conditions_that_training_dropped(trained, image, tmp_path):
  arguments = dict(image=str(image), out=str(tmp_path / "x.mp4"))
  with pytest.raises(ValueError, match="config.objective.drop_both is 0"):
    run.sample(toy.config(), str(trained), image_guidance=2.0, **arguments)
  config = toy.config()
  config["objective"]["drop_text"] = 0.0
  system = build.make_system(config, build.make_tokenizer(config))
  form, mesh = build.make_formulation(config), build.make_mesh(config)
  with pytest.raises(ValueError, match="config.objective.drop_text is 0"):
    build.make_sample(config, system, form, mesh, guidance=2.0)


@pytest.fixture(scope="module")
def prior_run(tmp_path_factory, one_device):
  workdir = tmp_path_factory.mktemp("prior")
  run.train(ucf101_prior.get_config("smoke").to_dict(), str(workdir))
  return workdir


def test_a_bridge_starts_from_the_video_of_the_prior_that_another_run_has_trained(
  prior_run, image, tmp_path
):
  out = tmp_path / "coarse.mp4"
  run.sample(
    ucf101_prior.get_config("smoke").to_dict(), str(prior_run), image=str(image), out=str(out)
  )
  assert frames(out) == 4  # what the prior makes, by itself
  config = ucf101_bridge_prior.get_config("smoke").to_dict() | {"prior_run": str(prior_run)}
  run.train(config, str(tmp_path / "bridge"))
  mesh = build.make_mesh(config)
  system = build.make_system(config, build.make_tokenizer(config))
  _, frozen = run.load_start(config, system, mesh)
  prior = build.make_system(ucf101_prior.get_config("smoke").to_dict(), None)
  trained = run.load_ema(str(prior_run), prior, mesh)["latte"]
  jax.tree.map(np.testing.assert_array_equal, frozen["prior_latte"], trained)
  run.sample(config, str(tmp_path / "bridge"), image=str(image), out=str(tmp_path / "x.mp4"))
  assert frames(tmp_path / "x.mp4") == 4


def test_a_prior_of_other_sizes_is_refused(prior_run):
  config = ucf101_bridge_prior.get_config("smoke").to_dict() | {"prior_run": str(prior_run)}
  config["prior"]["latte"] = dict(config["system"]["latte"], depth=4)
  with pytest.raises(ValueError, match="'latte' of the neural prior .* config.prior asks for"):
    run.load_start(config, build.make_system(config, None), build.make_mesh(config))


@pytest.mark.parametrize("kind", ["tiny", "huge", "grey", "alpha", "CMYK", "palette"])
def test_any_image_that_a_person_may_have_becomes_a_frame(kind, tmp_path):
  rng = np.random.default_rng(0)
  shape = {"tiny": (1, 2), "huge": (3000, 4000)}.get(kind, (20, 30))
  image = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
  modes = {"grey": "L", "alpha": "RGBA", "CMYK": "CMYK", "palette": "P"}
  path = tmp_path / ("x.jpg" if kind == "CMYK" else "x.png")
  image.convert(modes.get(kind, "RGB")).save(path)
  frame = run.read_frame(path, (16, 24))
  assert frame.shape == (16, 24, 3) and frame.dtype == np.uint8


def test_sampling_with_another_config_names_the_keys(trained, image, tmp_path):
  config = toy.config()
  config["system"]["unet"]["width"] = 16
  with pytest.raises(ValueError, match="system.unet.width: 8 there, 16 now"):
    run.sample(config, str(trained), image=str(image), out=str(tmp_path / "x.mp4"))


def test_an_unreadable_image_is_named(trained, tmp_path):
  (tmp_path / "broken.png").write_text("not an image")
  with pytest.raises(ValueError, match="broken.png"):
    run.sample(
      toy.config(), str(trained), image=str(tmp_path / "broken.png"), out=str(tmp_path / "x.mp4")
    )


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_clip_is_the_same_in_any_batch(trained, guidance):
  config = toy.config()
  mesh = build.make_mesh(config)
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  form = build.make_formulation(config)
  program = build.make_sample(config, system, form, mesh, guidance=guidance)
  params = run.load_ema(str(trained), system, mesh)
  rng = np.random.default_rng(0)
  inputs = {
    "image": rng.integers(0, 256, (5, 16, 16, 3), np.uint8),
    "tokens": tokenizer(["up", "down", "left", "right", "spin"]),
    "stride": np.ones(5, np.int32),
  }
  clips = [
    sampling.generate(program, params, {}, inputs, seed=seed, batch_size=size).astype(int)
    for seed, size in [(0, 5), (0, 2), (1, 5)]
  ]
  assert clips[0].shape == (5, 3, 16, 16, 3)
  assert np.abs(clips[0] - clips[1]).max() <= 1  # rounding to uint8
  assert np.abs(clips[0] - clips[2]).max() > 10
  assert len({clip.tobytes() for clip in clips[0]}) == 5


COMMAND = """
import logging, sys
sys.path[:0] = ["tests"]
import jax, toy
jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
logging.basicConfig(level=logging.INFO, format="%(message)s")
from fbjax import processes, run
processes.join()
run.train(toy.config(steps=int(sys.argv[2]), save_every=2), sys.argv[1])
"""


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


def wait_for(process, steps) -> None:
  """Returns once the run has logged so many more steps."""
  lines = []
  for line in process.stderr:
    lines.append(line)
    if line.startswith("step "):
      steps -= 1
      if steps == 0:
        return
  raise AssertionError("the run ended early:\n" + "".join(lines))


def test_a_killed_run_ends_with_the_bits_of_one_that_was_never_stopped(tmp_path):
  """kill -9 while running, SIGTERM later, then to the end."""
  whole = start(tmp_path / "whole", 12)
  _, log = whole.communicate()
  assert whole.returncode == 0, log
  killed = start(tmp_path / "killed", 12)
  wait_for(killed, 5)
  killed.kill()
  killed.wait()
  asked = start(tmp_path / "killed", 12)
  wait_for(asked, 2)
  asked.send_signal(signal.SIGTERM)
  _, log = asked.communicate()
  assert asked.returncode == 0
  last = start(tmp_path / "killed", 12)
  _, log = last.communicate()
  assert last.returncode == 0, log
  expected, actual = final_state(tmp_path / "whole", 12), final_state(tmp_path / "killed", 12)
  jax.tree.map(np.testing.assert_array_equal, expected, actual)


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
      tx=optax.sgd(0.1),
      init=system.init,
      frozen={},
      data=build.make_batches(config, build.make_source(config, "train"), tokenizer, 0, 1),
      mesh=sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp]),
      workdir=str(workdir),
      steps=10,
      batch_size=8,
      log_every=1,
    )
    losses.append([row["loss"] for row in tracker.read_metrics(workdir / "metrics.jsonl")])
  np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
  assert len(losses[0]) == 10 and losses[0][0] != losses[0][-1]
