import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import webvid_saf_cogvideox
from fbjax import build
from fbjax.systems import base, cogvideox


def keys():
  return jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def setting():
  config = webvid_saf_cogvideox.get_config("smoke").to_dict()
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  params, frozen = (jax.jit(f)(jax.random.key(1)) for f in (system.init, system.init_frozen))
  rng = np.random.default_rng(0)
  shake = lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape), p.dtype)  # noqa: E731
  batch = {
    "video": rng.integers(0, 256, (2, 9, 16, 16, 3), np.uint8),
    "tokens": tokenizer(["a red star moves up", "a blue circle moves down"]),
  }
  return system, jax.tree.map(shake, params), frozen, batch


def test_at_sampling_condition_and_prior_are_the_frame_as_it_is(setting):
  system, _, frozen, batch = setting
  assert isinstance(system, base.System)
  image = {"image": batch["video"][:, 0], "tokens": batch["tokens"]}
  z0, z1, cond = jax.jit(system.encode)(frozen, image, keys())
  assert z0 is None and z1.shape == (2, 3, 4, 4, 4)
  np.testing.assert_array_equal(cond.frame, z1)


def test_in_training_they_are_noisy_each_by_itself(setting):
  system, _, frozen, batch = setting
  encode = jax.jit(system.encode)
  z0, z1, cond = encode(frozen, batch, keys())
  assert z0.shape == z1.shape == cond.frame.shape
  image = {"image": batch["video"][:, 0], "tokens": batch["tokens"]}
  _, clean, _ = encode(frozen, image, keys())
  for noisy in (z1, cond.frame):
    assert 1e-4 < np.abs(noisy - clean).mean() < np.abs(clean).mean()
  assert np.abs(z1 - cond.frame).max() > 1e-4


def test_the_noise_of_a_clip_has_a_deviation_of_its_own():
  field = cogvideox.noise(jax.random.split(jax.random.key(3), 400), (1, 8, 8, 3))
  logs = np.log(np.asarray(field).std((1, 2, 3, 4)))
  np.testing.assert_allclose(logs.mean(), -3, atol=0.1)
  np.testing.assert_allclose(logs.std(), 0.5, atol=0.07)


def test_the_network_hears_state_time_text_and_frame(setting):
  system, params, frozen, batch = setting
  z0, _, cond = jax.jit(system.encode)(frozen, batch, keys())
  time = jnp.array([100.0, 700.5])
  denoise = jax.jit(system.denoise)
  out = denoise(params, z0, time, cond)
  assert out.shape == z0.shape
  dropped = system.drop(cond, jnp.array([True, True]), jnp.zeros(2, bool))
  np.testing.assert_array_equal(dropped.text, cond.null_text)
  for other in (
    denoise(params, z0 + 0.1, time, cond),
    denoise(params, z0, time + 0.5, cond),
    denoise(params, z0, time, dropped),
    denoise(params, z0, time, cond._replace(frame=cond.frame + 0.1)),
  ):
    assert np.abs(other - out).max() > 1e-5


def test_a_text_to_lead_away_from_is_read_as_a_caption_is(setting):
  system, _, frozen, batch = setting
  batch = jax.tree.map(jnp.asarray, batch)
  away = batch | {"null_tokens": batch["tokens"][::-1]}
  _, _, cond = system.encode(frozen, away, keys())
  dropped = system.drop(cond, jnp.ones(2, bool), jnp.zeros(2, bool))
  np.testing.assert_array_equal(dropped.text, cond.text[::-1])
  assert not np.array_equal(cond.text[0], cond.text[1])


def test_a_clip_comes_back_in_its_length(setting):
  system, _, frozen, batch = setting
  z0, _, _ = jax.eval_shape(system.encode, frozen, batch, keys())
  assert jax.eval_shape(system.decode, frozen, z0).shape == batch["video"].shape
