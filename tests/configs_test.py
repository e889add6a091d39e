"""Every config, with every change that it names, builds; full sizes by shapes alone."""

import importlib

import jax
import numpy as np
import pytest

import settings
from configs import webvid_saf
from fbjax import build

CONFIGS = sorted(
  f.stem for f in (settings.ROOT / "configs").glob("*.py") if f.stem not in ("__init__", "common")
)


def count(tree) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_smoke_config_builds_everything_it_trains_with(name, tmp_path):
  config = importlib.import_module(f"configs.{name}").get_config("smoke").to_dict()
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  form = build.make_formulation(config)
  build.make_loss(config, system, form)
  build.make_sample(config, system, form, build.make_mesh(config))
  assert config["train"]["steps"] == 2
  assert count(jax.eval_shape(system.init, jax.random.key(0))) > 0


def test_the_saf_network_has_the_published_size():
  """1438.85 M and 48.79 M trained; 83.65 M in the VAE."""
  system = build.make_system(webvid_saf.get_config().to_dict(), None)
  counts = {name: count(part.shapes()) for name, part in system.parts.items()}
  assert round(counts["unet"] / 1e4) == 143885
  assert round(counts["resampler"] / 1e4) == 4879
  assert round(counts["vae"] / 1e4) == 8365


def test_named_changes_join():
  c = webvid_saf.get_config("lora+recommended+smoke")
  assert c.diffusion.pretrained == "noise" and c.trainable.name == "lora" and c.train.steps == 2
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
