"""What each config and each of its named changes is for, shown at toy size by its effect.

Every recipe starts from a folder of ported weights that holds what its published checkpoint would
hold, takes eight training steps, and is then asked: what moved, what did not, and what the network's
output depends on.
"""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax import build, loading, sharding, trees
from fbjax import weights as weights_lib
from fbjax.data import pipeline
from fbjax.train import step

# Config, its changes, what its networks are told, and a regex of the leaves that train ("" for all).
TOLD = ("frame", "text", "stride", "image")
ADDED = r"^resampler/|stride/|image_|alpha|^unet/in_conv/kernel|/(a|b)$"
RECIPES = [
  ("webvid_saf", "", TOLD, ""),
  ("webvid_saf", "lora", TOLD, ADDED),
  ("webvid_saf", "temporal", TOLD, rf"{ADDED}|/temporal/|in_attention"),
  ("webvid_saf", "recommended+lora", TOLD, ADDED),
  ("webvid_saf", "prior", ("image", "text", "stride"), ""),
  ("webvid_saf", "from_prior", TOLD, r"^(?!prior_)"),
  ("webvid_diffusion", "", TOLD, ""),
  ("folder", "", ("frame", "text", "stride"), ""),
  ("quickstart", "", ("frame", "text"), r"^(?!latte/positions)"),
  ("webvid_saf_cogvideox", "", ("frame", "text"), ""),
  ("webvid_saf_cogvideox", "lora", ("frame", "text"), r"patches/kernel|/(a|b)$"),
  ("webvid_saf_cogvideox", "from_prior", ("frame", "text"), r"^(?!prior_)"),
  ("webvid_saf_cogvideox", "prior", ("frame", "text"), ""),
  ("ucf101_diffusion", "", ("frame", "label"), r"^(?!latte/positions)"),
  ("ucf101_bridge", "", ("frame", "label"), r"^(?!latte/positions)"),
  ("ucf101_prior", "", ("frame", "label"), r"^(?!.*positions)"),
  ("ucf101_prior", "combination", ("frame", "label"), r"^(?!.*positions)"),
  ("ucf101_bridge_prior", "", ("frame", "label"), r"^(?!prior_|latte/positions)"),
]

# Each of their parts is in another recipe as well.
THOROUGH = (
  ("folder", ""),
  ("quickstart", ""),
  ("webvid_saf", ""),
  ("webvid_saf", "from_prior"),
  ("webvid_saf", "prior"),
  ("webvid_saf", "temporal"),
  ("webvid_saf", "recommended+lora"),
  ("webvid_diffusion", ""),
  ("webvid_saf_cogvideox", "from_prior"),
  ("webvid_saf_cogvideox", "prior"),
  ("webvid_saf_cogvideox", "lora"),
  ("ucf101_prior", "combination"),
  ("ucf101_diffusion", ""),
)


def recipe(name, changes):
  arg = "+".join(filter(None, [changes, "smoke"]))
  c = importlib.import_module(f"configs.{name}").get_config(arg)
  c.train.update(batch_size=2, ema_decay=0.5)
  c.optim.update(lr=1e-2, warmup=0, schedule="constant", clip=0.0, weight_decay=0.0)
  c.objective.update(drop_text=0.0)
  for key in ("drop_image", "drop_both"):
    if key in c.objective:
      c.objective[key] = 0.0
  if c.data.name in ("folder", "webvid"):
    c.data = dict(name="synthetic")
  if "unet" in c.system:
    c.data.update(frames=2, size=16)
    # The middle attends whatever the levels do; the autoencoder is half of the compilation.
    c.system.codec = dict(name="pixels", patch=4)
    c.system.unet.update(attention_levels=(), mult=(1,), width=8, head_dim=8, groups=4)
    c.system.unet.temporal_conv = changes == "temporal"
    for name in {"text", "image"} & set(c.system):
      c.system[name].layers = 1
      if "skip" in c.system[name]:
        c.system[name].skip = 0
  return c.to_dict()


def port(config, folder) -> bool:
  """Writes what the checkpoint that a config starts from would hold: nothing in it is zero.

  Returns:
    Whether it starts from any.
  """
  system = build.make_networks(config, build.make_tokenizer(config))
  rng = np.random.default_rng(0)
  leaves = {}
  for name, spec in system.networks.items():
    if name in build.of_prior_run(config, system):
      continue
    rules = config["start"].get(name, {})
    for leaf, like in trees.flatten(spec.shapes()).items():
      named = {k for k in rules for pattern in rules[k] if re.fullmatch(pattern, leaf)}
      shape = like.shape
      if "widen" in named or (named == {"new"} and leaf == "in_conv/kernel"):
        shape = (*shape[:-2], shape[-2] // 2, shape[-1])
      elif named:
        continue
      fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 1
      value = rng.standard_normal(shape, np.float32) * 0.5 / np.sqrt(fan_in)
      leaves[weights_lib.network_path(name, leaf)] = value + leaf.endswith("scale")
  if leaves:
    weights_lib.write(folder, leaves, lambda path, x: None, {"parts": {}})
  return bool(leaves)


def trained(name, changes, folder, monkeypatch):
  """A recipe after three steps: its system, its weights before and after, and a way to run it."""
  config = recipe(name, changes)
  if config["prior"] and not config["prior"].get("trained"):
    config["prior_run"] = "played"
  if port(config, folder):
    config["weights"] = folder
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  form = build.make_formulation(config)
  mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  monkeypatch.setattr(loading, "prior_weights", lambda config, system, *_: drawn_prior(system))
  starting = loading.starting_weights(config, system, mesh)
  params = starting.params()
  source = build.make_source(config, "train")
  batch = pipeline.read(source, tokenizer, [0, 1])
  batch = {k: jnp.asarray(batch[k]) for k in ("video", "tokens", "stride", "label")}
  if "label" in system.conditions:
    batch["label"] = jnp.asarray([3, 4], jnp.int32)
  optimizer = build.make_optimizer(config, system)
  loss = build.make_loss(config, system, form)
  train = jax.jit(step.make_train_step(loss, optimizer, ema_decay=0.5, seed=0))
  state = step.init_state(params, optimizer)
  for _ in range(8):  # what is multiplied by a zero moves in the step after, one zero after another
    state, metrics = train(state, starting.frozen, batch)
  assert np.isfinite(metrics["loss"])

  @jax.jit
  def run(params, frozen, batch):
    keys = jax.random.split(jax.random.key(0), 2)
    video = batch["video"]
    told = {k: x for k, x in batch.items() if k != "video"} | {
      "image": video[:, 0],
      "last": video[:, -1],
    }
    _, z1, cond = system.encode(frozen, told, keys)
    weights = system.weights(params, frozen)
    x = jax.random.normal(jax.random.key(1), z1.shape)
    return system.denoise(weights, x, jnp.full(2, 300.0), system.embed(weights, cond))

  return system, params, state, starting.frozen, batch, run


def drawn_prior(system):
  """A frozen neural prior and a digest, as another run would have trained it."""
  names = [n for n in system.networks if n.startswith("prior_")]
  weights = {n: system.networks[n].init(jax.random.key(5)) for n in names}
  return jax.tree.map(lambda x: x + 0.05, weights), "played"


def perturbed(batch, what):
  """The batch with another frame, text, stride or label."""
  match what:
    case "frame" | "image":
      return batch | {"video": 255 - batch["video"]}
    case "text":
      return batch | {"tokens": jnp.flip(batch["tokens"], axis=0)}
    case "stride":
      return batch | {"stride": batch["stride"] + 3}
    case "label":
      return batch | {"label": batch["label"] + 1}


@pytest.mark.parametrize(
  ("name", "changes", "told", "trains"),
  [
    pytest.param(*r, id=":".join(r[:2]), marks=[pytest.mark.thorough] if r[:2] in THOROUGH else [])
    for r in RECIPES
  ],
)
def test_a_recipe_trains_what_it_says_and_heeds_all_that_it_is_told(
  name, changes, told, trains, tmp_path, monkeypatch
):
  system, params, state, frozen, batch, run = trained(name, changes, str(tmp_path), monkeypatch)

  before = run(state.params, frozen, batch)
  for what in told:
    moved = jnp.abs(run(state.params, frozen, perturbed(batch, what)) - before)
    assert float(jnp.max(moved)) > 1e-6, f"the output does not depend on the {what}"
  assert system.conditions == set(told) - {"frame"}

  before, after = trees.flatten(params), trees.flatten(state.params)
  assert before.keys() == after.keys()
  moved = {path for path in before if np.any(np.asarray(before[path]) != np.asarray(after[path]))}
  wanted = {path for path in before if re.search(trains, path)}
  assert moved <= wanted, f"{sorted(moved - wanted)[:5]} must not train"
  # A class or a word that no clip has, and biases in front of a norm, have no gradient.
  still = {p for p in wanted - moved if not re.search(r"bias$|embedding$|position", p)}
  assert not still, f"{sorted(still)[:5]} must train"
  if system is not system.whole:
    base = trees.flatten(frozen["base"])
    assert not set(base) & set(after) and any(p.endswith("/a") for p in after)
