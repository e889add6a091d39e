"""Every config, with every change that it names, builds; full sizes by shapes alone."""

import importlib
import itertools
import re

import jax
import numpy as np
import pytest

import settings
from configs import webvid_saf
from fbjax import build, sharding, tracker, trees
from fbjax.modes import train

CONFIGS = sorted(
  f.stem for f in (settings.ROOT / "configs").glob("*.py") if f.stem not in ("__init__", "common")
)


PAGES = (settings.ROOT / "README.md", *(settings.ROOT / "docs").glob("*.md"))
TOLD = "".join(page.read_text() for page in PAGES)
UNTOLD = [name for name in CONFIGS if f"--config=configs/{name}.py" not in TOLD]
# Others run the whole program with these networks, recipes_test and studies_test these configs: minutes saved.
UNTOLD = [
  name
  for name in UNTOLD
  if name not in ("webvid_diffusion", "ucf101_diffusion", "webvid_saf_cogvideox")
  and not name.startswith("study_")
]


def count(tree) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", [
  pytest.param(name, marks=[pytest.mark.thorough] if name == "shapes" else []) for name in UNTOLD
])  # fmt: skip
def test_a_smoke_run_trains_saves_and_shows_clips(name, tmp_path, monkeypatch):
  """Two steps of the whole program, of every config that no command of the pages runs."""
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config("smoke").to_dict()
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  monkeypatch.setattr(build, "make_mesh", lambda config: one)
  train.train(config, str(tmp_path / "run"))
  *rows, preview, _ = tracker.read_metrics(tmp_path / "run/metrics.jsonl")
  assert np.isfinite(preview["preview/loss"])
  assert [row["step"] for row in rows] == [1, 2] and (tmp_path / "run/samples/0000002.png").exists()


def test_the_saf_network_has_the_published_size():
  """1438.85 M and 48.79 M trained; 83.65 M in the VAE."""
  system = build.make_networks(webvid_saf.get_config().to_dict(), None)
  counts = {name: count(spec.shapes()) for name, spec in system.networks.items()}
  assert round(counts["unet"] / 1e4) == 143885
  assert round(counts["resampler"] / 1e4) == 4879
  assert round(counts["vae"] / 1e4) == 8365


def test_named_changes_join():
  c = webvid_saf.get_config("lora+recommended+smoke")
  assert c.diffusion.pretrained == "noise" and c.trainable.lora and c.train.steps == 2
  system = build.make_system(c.to_dict(), build.make_tokenizer(c.to_dict()))
  trained = jax.eval_shape(system.init, jax.random.key(0))
  assert 0 < count(trained) < 0.5 * count(jax.eval_shape(system.whole.init, jax.random.key(0)))
  with pytest.raises(ValueError, match="'bigger'; expected nothing or published, released, recomm"):
    webvid_saf.get_config("bigger")


# Every leaf of the full-size UNet that a change trains: regexes that one of must match, or none.
TRAINED = {
  "lora": (r"/(a|b)$|^resampler/|stride/|image_[kv]|alpha$|^unet/in_conv/kernel$", r"res/in_conv"),
  "temporal": (
    r"/temporal/|^unet/in_attention/|^resampler/|stride/|image_[kv]|alpha$|^unet/in_conv/kernel$",
    r"res/(in|out)_conv|spatial/blocks/\d+/attn\d/[qkv]/",
  ),
}


@pytest.mark.parametrize("change", ["lora", pytest.param("temporal", marks=pytest.mark.thorough)])
def test_what_trains_of_the_real_network_is_what_the_change_says(change):
  c = webvid_saf.get_config(change)
  c.weights = ""
  system = build.make_system(c.to_dict(), None)
  trains = build.make_optimizer(c.to_dict(), system).trains
  leaves = trees.flatten(jax.eval_shape(system.init, jax.random.key(0)))
  trained = {path: int(np.prod(x.shape)) for path, x in leaves.items() if trains(path)}
  wanted, unwanted = TRAINED[change]
  assert all(re.search(wanted, path) for path in trained)
  assert not any(re.search(unwanted, path) for path in trained)
  for leaf in ("unet/in_conv/kernel", "unet/stride/out/kernel", "resampler/latents"):
    assert leaf in trained  # new leaves train whole
  whole = count(jax.eval_shape(system.whole.init, jax.random.key(0)))
  share = sum(trained.values()) / whole
  assert 0.03 < share < (0.1 if change == "lora" else 0.5)
  if change == "temporal":
    assert any(path.startswith("unet/in_attention/") for path in trained)


@pytest.mark.parametrize("name", ["webvid_saf", "webvid_saf_cogvideox", "ucf101_bridge"])
def test_published_and_released_are_the_reference_to_the_letter(name):
  module = importlib.import_module(f"configs.{name}")
  default, published, released = (module.get_config(x) for x in ("", "published", "released"))
  assert published.sampling.sampler.to_dict() == {"name": "sde", "start": "published"}
  assert published.sampling.grid.name == "trailing" and published.optim.decays == "all"
  assert "start" not in default.sampling.sampler and default.optim.decays == "matrices"
  if name == "ucf101_bridge":
    assert published.data.flip and published.data.spacing == "published"
    assert (published.optim.clip, published.optim.clip_from) == (0.1, 100_000)
    assert not published.train.ema_warmup and published.train.ema_decay == 0.9999
  else:
    assert published.diffusion.rule == "published" and default.diffusion.rule == "exact"
    assert published.train.ema_decay == 0.0
  if name == "webvid_saf":
    drops = (published.objective[f"drop_{x}"] for x in ("text", "image", "both"))
    assert tuple(drops) == (0.2, 0.2, 0.2)
  if name == "webvid_saf_cogvideox":
    assert (published.system.codec.draw, published.sampling.draw) == ("mode", "sample")
  # Nothing of a released checkpoint starts anew.
  assert not released.start and released.weights != default.weights
  released.start, released.weights = published.start, published.weights
  assert released.to_dict() == published.to_dict()


def test_the_published_ddim_ends_at_index_0():
  sampler = importlib.import_module("configs.webvid_diffusion").get_config("published").sampling
  assert sampler.sampler.to_dict() == {"name": "ddim", "eta": 1.0, "last": 0.0}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_named_change_is_a_config_without_mistakes(name):
  module = importlib.import_module(f"configs.{name}")
  changes = getattr(module, "CHANGES", {"smoke": None})
  for change in ("", *changes):
    build.check(module.get_config(change).to_dict())
    for word in ("Named behind the colon",) if len(changes) > 1 else ():
      assert word in module.__doc__ and change in module.__doc__, change


@pytest.mark.parametrize("name", CONFIGS)
def test_every_head_says_what_it_trains_costs_and_deviates_in(name):
  doc = importlib.import_module(f"configs.{name}").__doc__
  for word in ("Trains ", "Costs ", "Expect ", "Deviates ", f"--config=configs/{name}.py"):
    assert f"\n{word}" in doc or word in doc and word.startswith("--"), word


@pytest.mark.parametrize("name", CONFIGS)
def test_two_named_changes_make_a_config_or_are_said_not_to_go_together(name):
  module = importlib.import_module(f"configs.{name}")
  for two in itertools.combinations(getattr(module, "CHANGES", {}), 2):
    try:
      config = module.get_config("+".join(two)).to_dict()
    except ValueError as error:
      assert f"{' and '.join(two)} do not go together" in str(error)  # noqa: PT017
    else:
      build.check(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_change_drops_what_its_system_is_not_told(name):
  module = importlib.import_module(f"configs.{name}")
  for change in getattr(module, "CHANGES", {"smoke": None}):
    names = [change] if change == "smoke" else [change, "smoke"]
    config = module.get_config("+".join(names)).to_dict() | {"prior_run": "runs/prior"}
    system = build.make_networks(config, build.make_tokenizer(config))
    build.make_loss(config, system, build.make_formulation(config))


def test_a_plus_without_a_name_is_told():
  with pytest.raises(ValueError, match=r"'published\+' .* a \+ with no name on one side"):
    webvid_saf.get_config("published+")
