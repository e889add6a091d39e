"""Every config, with every change that it names, builds; full sizes by shapes alone."""

import importlib

import jax
import numpy as np
import pytest

import settings
from configs import webvid_saf
from fbjax import build, sharding, tracker
from fbjax.data import video
from fbjax.modes import train

CONFIGS = sorted(
  f.stem for f in (settings.ROOT / "configs").glob("*.py") if f.stem not in ("__init__", "common")
)


def count(tree) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_smoke_run_trains_saves_and_shows_clips(name, tmp_path, monkeypatch):
  """Two steps of the whole program, of every config that needs no data of the user's own."""
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config("smoke").to_dict()
  one = sharding.make_mesh(1, 1, jax.devices()[:1])
  monkeypatch.setattr(build, "make_mesh", lambda config: one)
  if config["data"]["name"] != "synthetic":
    config["data"] = dict(config["data"], name="folder", path=str(clips(tmp_path / "clips")))
  train.train(config, str(tmp_path / "run"))
  rows = tracker.read_metrics(tmp_path / "run/metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2] and (tmp_path / "run/samples/0000002.png").exists()


def clips(folder):
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name in ("one", "two"):
    frames = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
    video.write_mp4(folder / f"{name}.mp4", frames, fps=8)
  return folder


def test_the_saf_network_has_the_published_size():
  """1438.85 M and 48.79 M trained; 83.65 M in the VAE."""
  system = build.make_system(webvid_saf.get_config().to_dict(), None)
  counts = {name: count(part.shapes()) for name, part in system.networks.items()}
  assert round(counts["unet"] / 1e4) == 143885
  assert round(counts["resampler"] / 1e4) == 4879
  assert round(counts["vae"] / 1e4) == 8365


def test_named_changes_join():
  c = webvid_saf.get_config("lora+recommended+smoke")
  assert c.diffusion.pretrained == "noise" and c.trainable.lora and c.train.steps == 2
  system = build.make_system(c.to_dict(), build.make_tokenizer(c.to_dict()))
  trained = jax.eval_shape(system.init, jax.random.key(0))
  assert 0 < count(trained) < 0.5 * count(jax.eval_shape(system.whole.init, jax.random.key(0)))
  with pytest.raises(ValueError, match="'bigger'; expected nothing or recommended, lora"):
    webvid_saf.get_config("bigger")


@pytest.mark.parametrize("change", ["lora", "temporal"])
def test_patterns_of_what_trains_meet_the_real_network(change):
  c = webvid_saf.get_config(change)
  system = build.make_system(c.to_dict(), None)
  trained = jax.eval_shape(system.init, jax.random.key(0))
  whole = jax.eval_shape(system.whole.init, jax.random.key(0))
  assert 0.002 < count(trained) / count(whole) < 0.7
