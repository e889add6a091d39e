"""What a neural prior, trained by itself, never feels of its config, and so refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ucf101_prior, webvid_saf
from fbjax import build, errors, sharding
from fbjax.systems import base, networks, neural_prior

CLIPS = {"video": jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 3))}

# Changes of a config without any effect on loss and clip, and the key that the sentence names.
UNFELT = [
  ("bridge.name", {"bridge": {"name": "constant", "variance": 3.0}}),
  ("bridge.name", {"bridge": {"name": "vp"}}),
  ("bridge.name", {"bridge": {"name": "diffusion"}, "diffusion": {"name": "linear"}}),
  ("bridge.beta_max", {"bridge": {"name": "gmax", "beta_max": 3.0}}),
  ("bridge.steps", {"bridge": {"name": "gmax", "steps": 7}}),
  ("diffusion.name", {"diffusion": {"name": "videocrafter", "rule": "published"}}),
  ("objective.shift", {"objective": {"shift": 9.0}}),
  ("objective.weight_like", {"objective": {"weight_like": "z0"}}),
  ("sampling.grid.name", {"sampling": {"grid": {"name": "uniform", "first": 0.5}}}),
  ("sampling.sampler.start", {"sampling": {"sampler": {"name": "sde", "start": "published"}}}),
  *(
    ("sampling.sampler.name", {"sampling": {"sampler": {"name": name}}})
    for name in ("ode", "first_order", "heun", "dbim", "ddbm", "euler_maruyama", "ddim")
  ),
]


class Darkened(neural_prior.NeuralPrior, networks.NetworkSet):
  """A neural prior whose coarse video is the given frame, darkened."""

  conditions = frozenset({"text"})
  embed = staticmethod(lambda weights, cond: cond)
  drop = staticmethod(lambda cond, text, image: cond)
  decode = staticmethod(lambda frozen, z: z)
  decoders = ()
  features = nulls = draw = staticmethod(lambda *given: {})  # `encode` does without

  def encode(self, frozen, batch, keys):
    still = (batch["video"][:, 0] if "video" in batch else batch["image"])[:, None]
    z1 = jnp.repeat(still, 3, axis=1)
    return base.Example(batch.get("video", z1), z1, 0.5 * z1)

  def coarse(self, weights, cond, keys=None):
    return cond


def keys():
  return jax.random.split(jax.random.key(0), 2)


def changed(changes):
  config = ucf101_prior.get_config("smoke").to_dict()
  for group, own in changes.items():
    config[group] = own if "name" in own else config[group] | own
  return config


def loss_and_clips(config):
  """What training and sampling make of a config, whose check is left out."""
  form = build.make_formulation(config)
  loss, _ = build.make_loss(config, Darkened({}), form)({}, {}, CLIPS, keys())
  options = build.Sampling(**config["sampling"])
  sample = build.make_sample(config, Darkened({}), form, sharding.make_mesh(), options)
  return float(loss), np.asarray(sample({}, {}, CLIPS, keys())[0])


@pytest.fixture(scope="module")
def default():
  return loss_and_clips(changed({}))


@pytest.mark.parametrize(("key", "changes"), UNFELT, ids=str)
def test_what_it_never_feels_is_refused_by_its_key(key, changes, default):
  np.testing.assert_equal(loss_and_clips(changed(changes)), default)
  with pytest.raises(errors.UserError) as error:
    build.check(changed(changes))
  assert re.match(f"config.{key} is .* told neither state nor time", str(error.value))


def test_what_it_feels_may_be_set():
  felt = {"objective": {"drop_text": 0.3}, "sampling": {"guidance": 3.0, "rescale": 0.5}}
  build.check(changed(felt))


@pytest.mark.parametrize(
  "change", [{"steps": 3}, {"sampler": "heun"}, {"grid": "uniform"}], ids=str
)
def test_it_cannot_be_sampled_otherwise_either(change):
  with pytest.raises(errors.UserError, match="makes its video in one evaluation"):
    build.sampling_options(changed({}), **change)


def test_all_of_it_may_be_set_where_the_network_is_told_state_and_time():
  for key, changes in UNFELT:
    config = webvid_saf.get_config("smoke").to_dict()
    for group, own in changes.items():
      config[group] = own if "name" in own else config[group] | own
    if key != "bridge.name" and key != "objective.weight_like":
      build.check(config)
