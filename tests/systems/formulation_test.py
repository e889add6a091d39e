"""One formulation, read by training and sampling: both tell the network the same times."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from fbjax import build
from fbjax.systems import base, networks


class Cond(NamedTuple):
  text: jax.Array


class Listener(toy.Uncached, networks.NetworkSet):
  """Writes down the times it is told and answers what it sees."""

  def __init__(self):
    super().__init__({})
    self.told = []

  def encode(self, frozen, batch, keys):
    z = jnp.zeros((len(keys), 1, 2, 2, 3))
    return base.Example(z, z, Cond(jnp.zeros(len(keys))))

  def drop(self, cond, text, image):
    return cond

  def embed(self, weights, cond):
    return cond

  def denoise(self, weights, x, t_net, cond, keys=None):
    jax.debug.callback(lambda t: self.told.extend(np.asarray(t).tolist()), t_net)
    return x

  def decode(self, frozen, z):
    return z


def told_in_training_and_sampling(config):
  form, system = build.make_formulation(config), Listener()
  keys = jax.random.split(jax.random.key(0), 400)
  batch = {"tokens": jnp.zeros((400, 1), jnp.int32)}
  jax.block_until_ready(build.make_loss(config, system, form)({}, {}, batch, keys))
  jax.effects_barrier()
  training, system.told = np.array(system.told), []
  sample = build.make_sample(config, system, form, build.make_mesh(config))
  few = {"tokens": batch["tokens"][:2]}
  jax.block_until_ready(sample({}, {}, few, jax.random.split(jax.random.key(1), 2)))
  jax.effects_barrier()
  return training, np.array(system.told)


@pytest.mark.parametrize(("bridge", "diffusion", "grid", "steps"), [
  ({"name": "gmax", "steps": 20}, {"name": "none"}, "trailing", 20),
  ({"name": "gmax"}, {"name": "none"}, "trailing", 1000),
  ({"name": "diffusion"}, {"name": "linear"}, "latte_indices", 1000),
])  # fmt: skip
def test_sampling_tells_the_network_times_that_training_has_told_it(bridge, diffusion, grid, steps):
  config = toy.config() | {"bridge": bridge, "diffusion": diffusion}
  config["objective"] = {"name": "bridge", "predict": "z0", "shift": 1.0}
  config["sampling"] = config["sampling"] | {"grid": {"name": grid}, "steps": 5, "guidance": 1.0}
  if bridge["name"] == "diffusion":
    config["sampling"]["sampler"] = {"name": "ddim"}
    config["objective"]["predict"] = "noise"
  training, sampling = told_in_training_and_sampling(config)
  np.testing.assert_allclose(training, np.round(training), atol=0.01)
  assert training.min() >= -0.01 and 0.9 * (steps - 1) < training.max() <= steps - 1 + 0.01
  np.testing.assert_allclose(sampling, np.round(sampling), atol=0.01)
  assert sampling.max() == pytest.approx(steps - 1, abs=0.01)


@pytest.mark.parametrize("steps", [0, 2.5, "many"])
def test_a_number_of_steps_that_is_none_is_refused(steps):
  config = toy.config() | {"bridge": {"name": "gmax", "steps": steps}}
  with pytest.raises(ValueError, match="config.bridge.steps is"):
    build.make_formulation(config)


@pytest.mark.parametrize(
  "bridge", [{"name": "vp", "beta_max": 100.0}, {"name": "constant", "variance": 1e-38}]
)
def test_a_bridge_beyond_what_float32_holds_is_refused(bridge):
  with pytest.raises(ValueError, match="config.bridge is .* beyond what float32 holds"):
    build.make_formulation(toy.config() | {"bridge": bridge})
