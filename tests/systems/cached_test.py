"""Encoding in two halves: what encoders make of a clip, and what is drawn of it without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ucf101_bridge, ucf101_bridge_prior, webvid_saf, webvid_saf_cogvideox
from fbjax import build, trees
from fbjax.systems import base, cached, cogvideox, neural_prior

VAE = {"name": "autoencoder", "width": 8, "mult": (1, 2), "blocks": 1, "groups": 4, "c_latent": 4}
EXACT = {"noisy_frame": False, "noisy_prior": False}
SYSTEMS = {
  "videocrafter": (webvid_saf, "smoke", {}),
  "videocrafter between two frames": (webvid_saf, "smoke", {"given": "ends"}),
  "latte": (ucf101_bridge, "smoke", {"codec": VAE}),
  "latte behind a prior": (ucf101_bridge_prior, "smoke", {"codec": VAE}),
  "cogvideox": (webvid_saf_cogvideox, "smoke", {}),
  "cogvideox without noise": (webvid_saf_cogvideox, "smoke", EXACT),
}


def make(name, **system):
  module, arg, own = SYSTEMS[name]
  config = module.get_config(arg).to_dict()
  frames = 9 if "cogvideox" in name else 3
  config["data"] = {"name": "synthetic", "frames": frames, "size": 16}
  config["system"] |= {"dtype": "float32"} | own | system
  if "latte" in config["system"]:
    config["system"]["latte"] |= {"size": 8}
  tokenizer = build.make_tokenizer(config)
  made = build.make_system(config, tokenizer)
  frozen = jax.jit(made.init_frozen)(jax.random.key(1))
  rng = np.random.default_rng(0)
  batch = {
    "video": rng.integers(0, 256, (2, frames, 16, 16, 3), np.uint8),
    "tokens": np.asarray(tokenizer(["a red star moves up", "a blue circle moves down"])),
    "stride": np.array([1, 3], np.int32),
    "label": np.array([3, -1], np.int32),
  }
  return made, frozen, jax.tree.map(jnp.asarray, batch)


def keys(seed=0):
  return jax.random.split(jax.random.key(seed), 2)


def kept(system, frozen, batch, of, dtype="float32"):
  """Features as a cache has them, and the frozen weights of a system that is fed with them."""
  features = lambda f, b: cached.narrowed(system.features(f, b, of), dtype)  # noqa: E731
  rest = {name: x for name, x in frozen.items() if name not in system.encoders}
  rest[cached.NULLS] = jax.jit(system.nulls)(frozen, {})
  return jax.jit(features)(frozen, batch), rest


@pytest.mark.parametrize("name", [
  "videocrafter",
  "latte behind a prior",
  "cogvideox",
  pytest.param("videocrafter between two frames", marks=pytest.mark.thorough),
  pytest.param("cogvideox without noise", marks=pytest.mark.thorough),
])  # fmt: skip
def test_what_is_drawn_of_features_is_what_encoding_gives_without_the_encoders(name):
  """Bit for bit in float32, of clips and of given frames."""
  system, frozen, batch = make(name)
  assert isinstance(cached.fed(system), base.System)
  last = {"image": batch["video"][:, 0], "last": batch["video"][:, -1]}
  image = last | {k: x for k, x in batch.items() if k != "video"}
  for told in (batch, image):
    features, rest = kept(system, frozen, told, keys()[:, None])
    assert not set(rest) & set(system.encoders) and neural_prior.names_in(rest) == [
      x for x in frozen if x.startswith("prior_")
    ]
    ours = jax.jit(cached.fed(system).encode)(rest, features, keys())
    theirs = jax.jit(system.encode)(frozen, told, keys())
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert (ours.z0 is None) == (told is image)


@pytest.mark.parametrize("name", ["videocrafter", "latte", "cogvideox"])
def test_half_precision_moves_latents_by_a_thousandth_of_their_deviation(name):
  system, frozen, batch = make(name)
  features, rest = kept(system, frozen, batch, keys()[:, None], "float16")
  assert all(x.dtype != jnp.float32 for x in features.values())
  ours = jax.jit(cached.fed(system).encode)(rest, features, keys())
  theirs = jax.jit(system.encode)(frozen, batch, keys())
  for x, y in ((ours.z0, theirs.z0), (ours.z1, theirs.z1)):
    assert 0 < float(jnp.std(x - y)) < 1e-3 * float(jnp.std(y))


def test_a_sampled_autoencoder_draws_other_latents_at_every_key_and_the_mode_keeps_a_mean_alone():
  system, frozen, batch = make("latte")
  features, rest = kept(system, frozen, batch, keys()[:, None])
  assert {"clip/mean", "clip/logvar"} <= set(features)
  draw = jax.jit(cached.fed(system).encode)
  assert np.abs(draw(rest, features, keys(1)).z0 - draw(rest, features, keys(2)).z0).min() > 0
  mode, frozen, batch = make("latte", codec=VAE | {"draw": "mode"})
  assert not [x for x in kept(mode, frozen, batch, keys()[:, None])[0] if "logvar" in x]


def test_of_several_noisy_versions_frame_and_prior_get_one_each_by_the_key():
  system, frozen, batch = make("cogvideox")
  features, rest = kept(system, frozen, batch, jax.vmap(lambda k: jax.random.split(k, 3))(keys()))
  assert features["frame/mean"].shape[:2] == features["prior/mean"].shape[:2] == (2, 3)
  assert features["clip/mean"].shape[0] == 2 and "still/mean" not in features
  encode = jax.jit(cached.fed(system).encode)
  seen = set()
  for seed in range(12):
    _, z1, cond = encode(rest, features, keys(seed))
    for i in range(2):
      places = []
      for found, name in ((cond.frame, "frame"), (z1, "prior")):
        there = system.codec.scale * features[f"{name}/mean"][i]
        match = [n for n in range(3) if np.array_equal(there[n], found[i])]
        assert len(match) == 1
        places += match
      seen.add(tuple(places))
  assert len(seen) > 5  # they are picked apart
  assert cogvideox.PURPOSES == 5


def test_a_text_to_lead_away_from_needs_no_place_in_a_cache():
  system, frozen, batch = make("videocrafter")
  nulls = jax.jit(system.nulls)(frozen, {})
  assert set(nulls) == {"null_text", "null_image"} and all(len(x) == 1 for x in nulls.values())
  away = jax.jit(system.nulls)(frozen, {"null_tokens": batch["tokens"]})
  assert len(away["null_text"]) == 2
  np.testing.assert_array_equal(away["null_image"], nulls["null_image"])
  features = jax.eval_shape(system.features, frozen, batch, keys()[:, None])
  assert "clip/mean" in trees.flatten(features)
