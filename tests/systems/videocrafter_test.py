import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from fbjax import build


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
