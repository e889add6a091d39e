import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart, ucf101_bridge_prior, ucf101_diffusion, ucf101_prior
from fbjax import build


def keys():
  return jax.random.split(jax.random.key(0), 2)


def make(module):
  config = module.get_config("smoke").to_dict()
  system = build.make_system(config, None)
  params, frozen = (jax.jit(f)(jax.random.key(1)) for f in (system.init, system.init_frozen))
  # A fresh network answers zero: shake it.
  rng = np.random.default_rng(0)
  shake = lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape), p.dtype)  # noqa: E731
  return system, jax.tree.map(shake, params), jax.tree.map(shake, frozen)


@pytest.fixture(scope="module")
def batch():
  video = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
  return {"video": jnp.asarray(video), "label": jnp.array([3, -1], jnp.int32)}


def test_a_clip_without_a_class_has_the_null_class(batch):
  system, _, frozen = make(ucf101_bridge_prior)
  _, _, cond = system.encode(frozen, batch, keys())
  np.testing.assert_array_equal(cond.label, [3, 101])
  dropped = system.drop(cond, jnp.array([True, False]), jnp.zeros(2, bool))
  np.testing.assert_array_equal(dropped.label, [101, 101])


@pytest.mark.parametrize("module", [ucf101_bridge_prior, ucf101_diffusion])
def test_the_network_hears_state_time_class_and_frame(batch, module):
  system, params, frozen = make(module)
  z0, _, cond = system.encode(frozen, batch, keys())
  time = jnp.array([10.0, 500.0])
  denoise = jax.jit(system.denoise)
  out = denoise(params, z0, time, cond)
  assert out.shape == z0.shape
  changed = [
    denoise(params, z0 + 0.1, time, cond),
    denoise(params, z0, time + 50, cond),
    denoise(params, z0, time, cond._replace(label=cond.label - 1)),
    denoise(params, z0, time, cond._replace(frame=cond.frame + 0.1)),
  ]
  if cond.coarse is not None:
    changed.append(denoise(params, z0, time, cond._replace(coarse=cond.coarse + 0.1)))
  for other in changed:
    assert np.abs(other - out).max() > 1e-4


@pytest.fixture(scope="module")
def captioned():
  """The quickstart's system, shaken, and a batch with captions."""
  config = quickstart.get_config("smoke").to_dict()
  config["system"]["latte"] |= {"width": 16, "depth": 2, "heads": 2}
  config["system"]["text"] |= {"width": 16, "heads": 2}
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(system.init, jax.random.key(0))
  shake = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape, np.float32))  # noqa: E731
  params = jax.tree.map(shake, shapes)
  video = rng.integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
  batch = {"video": video, "tokens": tokenizer(["moves left", "moves right"])}
  return system, params, jax.tree.map(jnp.asarray, batch)


def test_a_latte_hears_its_caption_to_the_last_word(captioned):
  system, params, batch = captioned
  assert system.conditions == {"text"}

  @jax.jit
  def run(tokens):
    z0, _, cond = system.encode({}, batch | {"tokens": tokens}, keys())
    return system.denoise(params, z0, jnp.array([10.0, 500.0]), system.embed(params, cond))

  tokens = batch["tokens"]
  out = run(tokens)
  swapped = run(tokens[::-1])
  assert np.abs(swapped - out).max() > 1e-3
  first = run(tokens.at[1].set(tokens[0]))
  np.testing.assert_allclose(first[0], out[0], atol=1e-5)  # each clip its own


def test_a_dropped_caption_is_the_empty_one_before_and_after_embedding(captioned):
  system, params, batch = captioned
  _, _, cond = system.encode({}, batch, keys())
  drop = jnp.array([True, False])
  before = system.embed(params, system.drop(cond, drop, jnp.zeros(2, bool))).text
  after = system.drop(system.embed(params, cond), drop, jnp.zeros(2, bool)).text
  np.testing.assert_allclose(before, after, atol=1e-6)
  read = system.embed(params, cond)
  np.testing.assert_array_equal(after[0], read.null_text[0])
  np.testing.assert_array_equal(after[1], read.text[1])


def test_a_text_to_lead_away_from_is_read_as_a_caption_is(captioned):
  system, _, batch = captioned
  away = batch | {"null_tokens": batch["tokens"][::-1]}
  _, _, cond = system.encode({}, away, keys())
  dropped = system.drop(cond, jnp.ones(2, bool), jnp.zeros(2, bool))
  np.testing.assert_array_equal(dropped.text, cond.text[::-1])
  assert not np.array_equal(cond.text[0], cond.text[1])


def test_the_neural_prior_looks_at_neither_state_nor_time(batch):
  system, params, frozen = make(ucf101_prior)
  z0, _, cond = system.encode(frozen, batch, keys())
  out = system.denoise(params, z0, jnp.array([10.0, 500.0]), cond)
  again = system.denoise(params, z0 + 1, jnp.array([900.0, 1.0]), cond)
  np.testing.assert_array_equal(out, again)


def test_its_loss_is_regression_on_the_video(batch):
  config = ucf101_prior.get_config("smoke").to_dict()
  config["objective"]["drop_text"] = 0.0
  system, params, frozen = make(ucf101_prior)
  loss = build.make_loss(config, system, build.make_formulation(config))
  value, _ = loss(params, frozen, batch, keys())
  z0, _, cond = system.encode(frozen, batch, keys())
  expected = np.mean((np.asarray(system.denoise(params, z0, jnp.zeros(2), cond)) - z0) ** 2)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
