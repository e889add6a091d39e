import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from configs import webvid_saf
from fbjax import build
from fbjax.systems import videocrafter


@pytest.fixture(scope="module")
def setting():
  config = toy.config()
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  params = jax.jit(system.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "video": rng.integers(0, 256, (2, 3, 16, 16, 3), np.uint8),
    "tokens": tokenizer(["a red star moves up", "a blue disc moves down"]),
    "stride": np.array([1, 2], np.int32),
  }
  return system, params, jax.tree.map(jnp.asarray, batch)


def test_the_prior_is_the_first_frame_repeated(setting):
  system, _, batch = setting
  z0, z1, cond = system.encode({}, batch, jax.random.split(jax.random.key(0), 2))
  assert z0.shape == z1.shape == (2, 3, 8, 8, 12)
  for t in range(3):
    np.testing.assert_array_equal(z1[:, t], z0[:, 0])
  np.testing.assert_array_equal(cond.frame, z1)


def test_an_image_encodes_like_the_first_frame_of_a_clip(setting):
  system, _, batch = setting
  keys = jax.random.split(jax.random.key(0), 2)
  image = {"image": batch["video"][:, 0], "tokens": batch["tokens"], "stride": batch["stride"]}
  z0, z1, cond = system.encode({}, image, keys)
  assert z0 is None
  expected = system.encode({}, batch, keys)
  np.testing.assert_array_equal(z1, expected.z1)
  jax.tree.map(np.testing.assert_array_equal, cond, expected.cond)


def test_decoding_gives_the_video_back(setting):
  system, _, batch = setting
  z0, _, _ = system.encode({}, batch, jax.random.split(jax.random.key(0), 2))
  video = np.asarray(system.decode({}, z0))
  np.testing.assert_allclose((video + 1) * 127.5, batch["video"], atol=1e-3)


def test_dropped_text_is_the_empty_caption_before_and_after_embedding(setting):
  system, params, batch = setting
  keys = jax.random.split(jax.random.key(0), 2)
  _, _, cond = system.encode({}, batch, keys)
  mask = jnp.array([True, False])
  before = system.embed(params, system.drop(cond, mask, ~mask))
  after = system.drop(system.embed(params, cond), mask, ~mask)
  np.testing.assert_allclose(before.text, after.text, rtol=1e-5, atol=1e-6)
  assert not np.allclose(before.text[0], system.embed(params, cond).text[0])
  np.testing.assert_allclose(before.text[1], system.embed(params, cond).text[1], rtol=1e-5)


def test_the_network_hears_image_text_time_and_stride(setting):
  """A new UNet answers zero; with any other head each input must matter."""
  system, params, batch = setting
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda p: jnp.asarray(p + 0.05 * rng.normal(size=p.shape), p.dtype), params)
  keys = jax.random.split(jax.random.key(0), 2)
  z0, z1, cond = system.encode({}, batch, keys)
  cond = system.embed(params, cond)
  t_net = jnp.array([100.0, 700.0])
  denoise = jax.jit(functools.partial(system.denoise, params))
  out = denoise(z0, t_net, cond)
  assert out.shape == z0.shape and out.dtype == jnp.float32
  null = cond._replace(text=cond.null_text)
  for other in (
    denoise(z0 + 0.1, t_net, cond),
    denoise(z0, t_net + 50, cond),
    denoise(z0, t_net, cond._replace(frame=cond.frame + 0.1)),
    denoise(z0, t_net, null),
    denoise(z0, t_net, cond._replace(stride=cond.stride + 1)),
  ):
    assert np.abs(np.asarray(other - out)).max() > 1e-4


@pytest.fixture(scope="module")
def pictured():
  """The system with a VAE, and CLIP's image network in front of a Resampler."""
  c = webvid_saf.get_config("smoke")
  c.data.update(frames=3, size=16)
  config = c.to_dict()
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  rng = np.random.default_rng(0)
  batch = {
    "video": rng.integers(0, 256, (2, 3, 16, 16, 3), np.uint8),
    "tokens": tokenizer(["a red star moves up", "a blue disc moves down"]),
    "stride": np.array([1, 2], np.int32),
  }
  params, frozen = (jax.jit(f)(jax.random.key(0)) for f in (system.init, system.init_frozen))
  return system, params, frozen, batch


def test_latents_are_of_the_vae_and_the_prior_is_the_targets_first_frame(pictured):
  system, _, frozen, batch = pictured
  keys = jax.random.split(jax.random.key(1), 2)
  z0, z1, cond = jax.jit(system.encode)(frozen, batch, keys)
  assert z0.shape == (2, 3, 4, 4, 4)  # 16 pixels through a VAE of factor 4
  # The posterior is drawn once: frame 0 of the clip is its prior exactly.
  for t in range(3):
    np.testing.assert_array_equal(z1[:, t], z0[:, 0])
  video = jax.jit(system.decode)(frozen, z0)
  assert video.shape == batch["video"].shape and np.isfinite(video).all()
  assert cond.text.shape == (2, 16, 32) and cond.image.shape == (2, 5, 32)


def test_a_dropped_image_is_grey_before_and_after_embedding(pictured):
  system, params, frozen, batch = pictured
  keys = jax.random.split(jax.random.key(1), 2)
  _, _, cond = jax.jit(system.encode)(frozen, batch, keys)
  no, first = jnp.zeros(2, bool), jnp.array([True, False])
  embed = jax.jit(system.embed)
  before, after = (
    embed(params, system.drop(cond, no, first)),
    system.drop(embed(params, cond), no, first),
  )
  np.testing.assert_allclose(before.image, after.image, atol=2e-2)  # bfloat16
  grey = dict(batch, video=np.full_like(batch["video"], 128))
  again = jax.random.split(jax.random.key(1), 2)
  _, _, of_grey = jax.jit(system.encode)(frozen, grey, again)
  np.testing.assert_allclose(
    cond.null_image.astype(np.float32), of_grey.image.astype(np.float32), atol=0.1
  )
  assert np.abs(cond.image.astype(np.float32) - of_grey.image.astype(np.float32)).max() > 0.1


def test_a_text_to_lead_away_from_is_read_as_a_caption_is(pictured):
  """Also by a text network that is frozen."""
  system, _, frozen, batch = pictured
  batch = jax.tree.map(jnp.asarray, batch)
  away = batch | {"null_tokens": batch["tokens"][::-1]}
  _, _, cond = system.encode(frozen, away, jax.random.split(jax.random.key(0), 2))
  dropped = system.drop(cond, jnp.ones(2, bool), jnp.zeros(2, bool))
  np.testing.assert_array_equal(dropped.text, cond.text[::-1])
  assert not np.array_equal(cond.text[0], cond.text[1])


def test_between_two_given_frames_the_prior_goes_straight():
  ends = jnp.stack([jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 4, 4, 3))], axis=1)
  way = videocrafter.prior(ends, "ends", 5)
  np.testing.assert_allclose(way[0, :, 0, 0, 0], [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_array_equal(videocrafter.prior(ends, "first", 5), np.zeros((2, 5, 4, 4, 3)))


def test_both_ends_of_a_clip_are_given_or_two_images():
  c = toy.config()
  c["system"]["given"] = "ends"
  tokenizer = build.make_tokenizer(c)
  system = build.make_system(c, tokenizer)
  video = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
  rest = {"tokens": tokenizer(["up", "down"]), "stride": np.ones(2, np.int32)}
  clip, images = {"video": video}, {"image": video[:, 0], "last": video[:, -1]}
  of_clip, of_images = (
    system.encode(
      {}, jax.tree.map(jnp.asarray, shown | rest), jax.random.split(jax.random.key(0), 2)
    )
    for shown in (clip, images)
  )
  np.testing.assert_allclose(of_clip.z1, of_images.z1, atol=1e-6)
  np.testing.assert_allclose(of_clip.z1[:, -1], of_clip.z0[:, -1], atol=1e-6)
