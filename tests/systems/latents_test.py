"""Which clips a system takes, and that one set of weights serves them all."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import (
  folder,
  quickstart,
  ucf101_bridge,
  ucf101_bridge_prior,
  ucf101_prior,
  webvid_saf,
  webvid_saf_cogvideox,
)
from fbjax import build, errors
from fbjax.systems import videocrafter

# Trained at 16x16 pixels and the first number of frames.
SYSTEMS = {
  "quickstart": (quickstart, "smoke", 3, {"size": 16}),
  "small UNet": (folder, "smoke", 3, {"size": 16}),
  "videocrafter": (webvid_saf, "smoke", 3, {"size": 16}),
  "videocrafter behind a prior": (webvid_saf, "from_prior+smoke", 3, {"size": 16}),
  "latte": (ucf101_bridge, "smoke", 3, {"size": 16}),
  "latte behind a prior": (ucf101_bridge_prior, "smoke", 3, {"size": 16}),
  "latte's prior": (ucf101_prior, "smoke", 3, {"size": 16}),
  "cogvideox": (webvid_saf_cogvideox, "smoke", 9, {"size": 16}),
}


def make(name, **system):
  module, arg, frames, data = SYSTEMS[name]
  config = module.get_config(arg).to_dict()
  config["data"] |= data | {"frames": frames}
  config["system"] |= {"dtype": "float32"} | system
  if name.startswith("latte"):
    config["system"]["latte"] |= {"size": 4}
  return build.make_system(config, build.make_tokenizer(config)), config


def draw(shapes, seed=0):
  """Weights of which none is zero, so that a new network does not answer zero."""
  rng = np.random.default_rng(seed)
  scale = lambda s: 0.3 if len(s) < 2 else float(np.prod(s[:-1])) ** -0.5  # noqa: E731
  return jax.tree.map(
    lambda x: jnp.asarray(scale(x.shape) * rng.standard_normal(x.shape), x.dtype), shapes
  )


def clip_of(system, config, params, frozen):
  """A function from an image to a clip, in one step."""
  tokens = jnp.asarray(build.make_tokenizer(config)(["a red star moves up"]))
  batch = {"tokens": tokens, "stride": jnp.ones(1, jnp.int32), "label": jnp.array([1], jnp.int32)}

  @jax.jit
  def clip(image):
    keys = jax.random.split(jax.random.key(0), 1)
    _, z1, cond = system.encode(frozen, batch | {"image": image}, keys)
    cond = system.embed(params, cond)
    z0 = system.denoise(params, z1, jnp.array([500.0]), cond)
    return system.decode(frozen, z0)

  return clip


@pytest.mark.parametrize(("name", "frames", "size"), [
  ("quickstart", 24, (16, 24)),
  pytest.param("small UNet", 24, (16, 24), marks=pytest.mark.thorough),
  pytest.param("videocrafter", 7, (16, 24), marks=pytest.mark.thorough),
  pytest.param("videocrafter behind a prior", 5, (24, 16), marks=pytest.mark.thorough),
  pytest.param("latte", 7, (24, 16), marks=pytest.mark.thorough),
  ("latte behind a prior", 2, (16, 24)),
  ("cogvideox", 25, (16, 24)),
])  # fmt: skip
def test_clips_of_another_length_and_size_show_the_given_image(name, frames, size):
  system, config = make(name)
  params, frozen = (
    draw(jax.eval_shape(f, jax.random.key(0))) for f in (system.init, system.init_frozen)
  )
  other = system.for_clips(frames, size)
  for f, g in ((system.init, other.init), (system.init_frozen, other.init_frozen)):
    assert jax.eval_shape(f, jax.random.key(0)) == jax.eval_shape(g, jax.random.key(0))

  clip = clip_of(other, config, params, frozen)
  rng = np.random.default_rng(1)
  one, two = (jnp.asarray(rng.integers(0, 256, (1, *size, 3), np.uint8)) for _ in range(2))
  video = clip(one)
  assert video.shape == (1, frames, *size, 3) and np.isfinite(video).all()
  assert np.abs(clip(two) - video).max((0, 2, 3, 4)).min() > 1e-3  # every frame follows the image


@pytest.mark.parametrize(("name", "frames", "size", "message"), [
  ("videocrafter", 16, (17, 17), "17x17 .* a multiple of 4, such as 16x16 or 20x20 (--size"),
  ("videocrafter", 16, (16, 18), "16x18 .* a multiple of 4, such as 16x16 or 16x20 (--size"),
  ("videocrafter", 0, (16, 16), "0 frames .* the nearest that do have 1 frames (--frames, config"),
  ("videocrafter", 16, (0, 16), "0x16 .* such as 4x16 (--size, config.data.size)"),
  ("videocrafter", 16, (-8, 16), "-8x16 .* such as 4x16 (--size"),
  ("latte", 16, (20, 16), "20x16 .* a multiple of 8, such as 16x16 or 24x16"),
  ("cogvideox", 24, (16, 16), "24 frames .* have 17 or 25 frames (--frames, config.data.frames)"),
  ("cogvideox", 5, (16, 16), "5 frames .* have 1 or 9 frames"),
  ("cogvideox", 9, (20, 16), "20x16 .* a multiple of 8"),
  ("latte behind a prior", 0, (16, 16), "0 frames"),
])  # fmt: skip
def test_what_does_not_fit_is_told_before_any_weights_are_there(name, frames, size, message):
  system, _ = make(name)
  pattern = re.escape(message).replace(r"\.\*", ".*").replace(r"\ ", " ")
  for ask in (system.check_clip, system.for_clips):
    with pytest.raises(errors.UserError, match=pattern) as told:
      ask(frames, size)
    assert "\n" not in str(told.value)


def test_each_level_of_the_unet_halves_the_size_once_more():
  _, config = make("small UNet")
  unet = config["system"]["unet"] | {"mult": (1, 2, 2)}
  system, _ = make("small UNet", codec={"name": "pixels", "patch": 2}, unet=unet)
  system.check_clip(5, (8, 16))
  with pytest.raises(errors.UserError, match="a multiple of 8"):
    system.check_clip(5, (8, 12))


def test_image_tokens_of_another_length_go_straight_between_those_it_was_trained_at():
  tokens = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 3, 5), np.float32))
  assert videocrafter.along_time(tokens, 4) is tokens
  more = videocrafter.along_time(tokens, 7)
  np.testing.assert_allclose(more[:, ::2], tokens, atol=1e-6)
  np.testing.assert_allclose(more[:, 1], (tokens[:, 0] + tokens[:, 1]) / 2, atol=1e-6)
  np.testing.assert_allclose(videocrafter.along_time(tokens, 2), tokens[:, [0, 3]], atol=1e-6)
  np.testing.assert_allclose(videocrafter.along_time(tokens, 1), tokens[:, :1], atol=1e-6)
  still = videocrafter.along_time(tokens[:, :1], 3)
  np.testing.assert_allclose(still, np.repeat(tokens[:, :1], 3, 1), atol=1e-6)


@pytest.mark.parametrize(("name", "fixed"), [
  ("latte", {"latte/positions/space", "latte/positions/time"}),
  ("latte's prior", {"latte/latte/positions/space", "latte/latte/positions/time"}),
  ("videocrafter", set()),
  ("cogvideox", set()),
])  # fmt: skip
def test_a_system_names_its_leaves_that_never_train(name, fixed):
  system, config = make(name)
  adapted = build.make_system(
    config | {"start": {}, "trainable": {"whole": ("bias$",), "lora": ("kernel$",)}}, None
  )
  # Of a system with additions they are not even among the params.
  for asked, found in ((system, fixed), (adapted, set())):
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(asked.init, jax.random.key(0)))
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}
    assert {x for x in names if any(re.search(p, x) for p in asked.fixed)} == found


def test_a_prior_that_trains_along_has_fixed_leaves_as_well():
  config = ucf101_prior.get_config("denoising+smoke").to_dict()
  system = build.make_system(config, None)
  names = ("latte/positions/time", "prior_latte/latte/positions/space", "latte/head/out/kernel")
  matched = [any(re.search(p, name) for p in system.fixed) for name in names]
  assert matched == [True, True, False]


@pytest.mark.parametrize(("name", "network", "key"), [
  ("videocrafter", "unet", "widht"), ("latte", "latte", "label_dropout"),
  ("cogvideox", "transformer", "rngs"), ("videocrafter", "resampler", "tokens"),
])  # fmt: skip
def test_a_size_that_a_network_has_not_is_told_in_the_configs_words(name, network, key):
  _, config = make(name)
  with pytest.raises(
    errors.UserError, match=f"config.system.{network} has no key '{key}'; it takes"
  ):
    make(name, **{network: config["system"][network] | {key: 3}})
  rest = {k: v for k, v in config["system"][network].items() if k not in ("depth", "blocks")}
  with pytest.raises(errors.UserError, match=f"config.system.{network} lacks '(depth|blocks)'"):
    make(name, **{network: rest})


@pytest.mark.parametrize("name", ["videocrafter", "latte", "latte's prior"])
def test_a_codec_of_fewer_latent_frames_is_refused_by_what_needs_one_of_each(name):
  codec = {
    "name": "video_autoencoder",
    "c_latent": 4,
    "widths": (8, 8, 8),
    "blocks": 1,
    "groups": 4,
  }
  with pytest.raises(errors.UserError, match="codec.name is 'video_autoencoder', .* one of each"):
    make(name, codec=codec)
