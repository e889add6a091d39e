"""Every system behind a neural prior of its own family, frozen or trained along."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ucf101_bridge_prior, ucf101_prior, webvid_saf, webvid_saf_cogvideox
from fbjax import build
from fbjax.systems import base, neural_prior

BRIDGES = [
  (ucf101_bridge_prior, "smoke", ["prior_latte"]),
  pytest.param(
    *(webvid_saf, "from_prior+smoke", ["prior_unet", "prior_resampler"]),
    marks=pytest.mark.thorough,
  ),
  (webvid_saf_cogvideox, "from_prior+smoke", ["prior_transformer"]),
]
PRIORS = [
  (ucf101_prior, "smoke"),
  pytest.param(webvid_saf, "prior+smoke", marks=pytest.mark.thorough),
  (webvid_saf_cogvideox, "prior+smoke"),
]
name = lambda x: x.__name__ if hasattr(x, "__name__") else None  # noqa: E731


def config_of(module, arg, **prior):
  config = module.get_config(arg).to_dict()
  config["system"]["dtype"] = "float32"
  config["prior"] |= prior
  return config


def make(config, seed=0):
  """System, weights of which none is zero, and a batch."""
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  rng = np.random.default_rng(seed)

  def draw(shapes):
    scale = lambda s: 0.3 if len(s) < 2 else float(np.prod(s[:-1])) ** -0.5  # noqa: E731
    return jax.tree.map(
      lambda x: jnp.asarray(scale(x.shape) * rng.standard_normal(x.shape), x.dtype), shapes
    )

  key = jax.random.key(0)
  params, frozen = (draw(jax.eval_shape(f, key)) for f in (system.init, system.init_frozen))
  frames, size = config["data"]["frames"], config["data"]["size"]
  batch = {
    "video": rng.integers(0, 256, (2, frames, size, size, 3), np.uint8),
    "tokens": tokenizer(["a red star moves up", "a blue circle moves down"]),
    "stride": np.array([1, 3], np.int32),
    "label": np.array([3, -1], np.int32),
  }
  return system, params, frozen, jax.tree.map(jnp.asarray, batch)


def keys():
  return jax.random.split(jax.random.key(0), 2)


@pytest.mark.parametrize(("module", "arg", "networks"), BRIDGES, ids=name)
def test_the_coarse_video_is_prior_and_condition_or_condition_alone(module, arg, networks):
  config = config_of(module, arg)
  system, params, frozen, batch = make(config)
  assert isinstance(system, base.System)
  assert neural_prior.names_in(system.networks) == networks and not neural_prior.names_in(params)
  z0, z1, cond = jax.jit(system.encode)(frozen, batch, keys())
  assert z1.shape == z0.shape
  np.testing.assert_array_equal(z1, cond.coarse)
  assert np.abs(z1 - z1[:, :1]).max() > 1e-3  # no still image

  config["prior"]["use"] = "condition"
  other, *_ = make(config)
  _, still, told = jax.jit(other.encode)(frozen, batch, keys())
  np.testing.assert_allclose(told.coarse, cond.coarse, atol=1e-5)
  inner = jax.jit(system.system.encode)(frozen, batch, keys())
  np.testing.assert_allclose(still, inner.z1, atol=1e-6)

  time = jnp.array([10.0, 500.0])
  denoise = jax.jit(lambda x, cond: system.denoise(params, x, time, system.embed(params, cond)))
  out = denoise(z0, cond)
  assert out.shape == z0.shape
  assert np.abs(denoise(z0, cond._replace(coarse=cond.coarse + 0.1)) - out).max() > 1e-4


@pytest.mark.parametrize(("module", "arg"), PRIORS, ids=name)
def test_a_prior_looks_at_neither_state_nor_time_and_its_loss_is_regression(module, arg):
  config = config_of(module, arg)
  config["objective"] |= dict.fromkeys(("drop_text", "drop_image", "drop_both"), 0.0)
  config["system"] |= {k: False for k in ("noisy_frame", "noisy_prior") if k in config["system"]}
  system, params, frozen, batch = make(config)
  loss = build.make_loss(config, system, build.make_formulation(config))
  value, _ = jax.jit(loss)(params, frozen, batch, keys())

  @jax.jit
  def regression(params):
    purposes = jax.vmap(lambda key: jax.random.split(key, 5))(keys())
    z0, _, cond = system.encode(frozen, batch, purposes[:, 0])
    cond = system.embed(params, cond)
    outs = [system.denoise(params, z0 + i, jnp.full(2, 9.0 * i), cond) for i in range(2)]
    return jnp.mean(jnp.square(outs[0] - z0)), outs

  expected, outs = regression(params)
  np.testing.assert_array_equal(*outs)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("arg", ["denoising", "combination"])
def test_a_prior_trained_along_is_moved_by_the_loss_of_the_network_that_is_told_it(arg):
  config = config_of(ucf101_prior, f"{arg}+smoke")
  system, params, frozen, batch = make(config)
  assert (
    set(params) == {"latte", "prior_latte"}
    and "coarse" in system.embed(params, system.encode(frozen, batch, keys()).cond)._fields
  )
  loss = build.make_loss(config, system, build.make_formulation(config))
  (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    params, frozen, batch, keys()
  )
  moved = jax.tree.map(lambda g: float(jnp.abs(g).max()), grads["prior_latte"]["latte"]["head"])
  assert moved["out"]["kernel"] > 1e-6
  if arg == "denoising":
    assert metrics == {}
  else:
    config["objective"]["regression"] = 0.0
    alone = build.make_loss(config, system, build.make_formulation(config))
    rest, _ = jax.jit(alone)(params, frozen, batch, keys())
    np.testing.assert_allclose(value, rest + metrics["coarse"], rtol=1e-5)
    assert metrics["coarse"] > 0


def test_what_cannot_be_is_refused_in_the_configs_words():
  config = config_of(ucf101_bridge_prior, "smoke", use="nowhere")
  with pytest.raises(ValueError, match="config.prior.use is 'nowhere'; expected"):
    make(config)
  with pytest.raises(ValueError, match="set config.prior.use=condition"):
    make(config_of(ucf101_bridge_prior, "smoke", trained=True))
  with pytest.raises(ValueError, match="config.prior has no key 'hats'; it takes use, trained"):
    make(config_of(ucf101_bridge_prior, "smoke", hats=3))
  config = config_of(ucf101_bridge_prior, "smoke")
  config["objective"]["regression"] = 1.0
  with pytest.raises(ValueError, match="set config.prior.trained too"):
    build.make_loss(config, make(config)[0], build.make_formulation(config))
