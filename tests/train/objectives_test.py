from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden
import toy
from fbjax import build
from fbjax.bridge import diffusion, prediction, process
from fbjax.systems import base, formulation, networks
from fbjax.train import objectives, optim, step


class Cond(NamedTuple):
  z0: jax.Array
  z1: jax.Array
  text: jax.Array
  image: jax.Array


class Oracle(toy.Uncached, networks.NetworkSet):
  """Knows the clean latent and answers what the formulation asks, `off` by a constant in z0."""

  conditions = frozenset({"text", "image"})

  def __init__(self, form, off=0.0):
    super().__init__({})
    self.form, self.off = form, off
    self.seen = {}

  def encode(self, frozen, batch, keys):
    z0, z1 = batch["z0"], batch["z1"]
    ones = jnp.ones(len(z0))
    return base.Example(z0, z1, Cond(z0, z1, ones, ones))

  def decode(self, frozen, z):
    return z

  def check_clip(self, frames, size): ...

  def for_clips(self, frames, size):
    return self

  def drop(self, cond, text, image):
    return cond._replace(text=cond.text * ~text, image=cond.image * ~image)

  def embed(self, params, cond):
    self.seen = {"text": cond.text, "image": cond.image}
    return cond

  def denoise(self, params, x, t_net, cond, keys=None):
    self.seen |= {"x": x, "t_net": t_net}
    # Without alignment the published index tells the time: (i + 1) / 1001.
    time = (t_net + 1) / 1001
    marginal = self.form.process.marginal(time)
    a, b, c = (process.per_clip(v, x) for v in marginal)
    z0 = cond.z0 + self.off
    # The state that would have held this z0: the target is affine in (z0, z1, noise).
    return prediction.target(
      self.form.predict, self.form.process, z0, cond.z1, (x - a * z0 - b * cond.z1) / c, time
    )


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  shape = (256, 1, 2, 2, 3)
  return {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k in ("z0", "z1")}


def loss_of(form, batch, off=0.0, seed=0, **kwargs):
  system = Oracle(form, off)
  loss_fn = objectives.bridge_loss(system, form, **kwargs)
  keys = jax.random.split(jax.random.key(seed), len(batch["z0"]))
  loss, _ = loss_fn({}, {}, batch, keys)
  return float(loss), system.seen


@pytest.mark.parametrize("kind", ["z0", "psi", "velocity", "v"])
def test_who_knows_the_clip_has_no_loss(kind, batch):
  form = formulation.Formulation(process.Gmax(beta_max=2.0), kind)
  assert loss_of(form, batch)[0] < 1e-4


@pytest.mark.parametrize("kind", ["psi", "velocity"])
def test_weighted_like_z0_the_loss_is_the_error_of_z0(kind, batch):
  form = formulation.Formulation(process.Gmax(beta_max=2.0), kind)
  loss, _ = loss_of(form, batch, off=0.5, weight_like="z0")
  assert loss == pytest.approx(0.25, rel=1e-2)
  assert loss_of(form, batch, off=0.5)[0] != pytest.approx(0.25, rel=0.1)


def test_times_cover_the_published_grid_and_shift_towards_the_prior(batch):
  form = formulation.Formulation(process.Gmax(), "z0")
  _, seen = loss_of(form, batch)
  index = np.asarray(seen["t_net"])
  assert index.min() >= -1e-3 and index.max() <= 999.001
  assert abs(index.mean() - 499.5) < 60
  _, seen = loss_of(form._replace(steps=50), batch)
  np.testing.assert_allclose(seen["t_net"], np.round(seen["t_net"]), atol=1e-3)
  assert 45 < np.max(seen["t_net"]) < 49.01
  _, seen = loss_of(form, batch, shift=20.0)
  # u = 1/2 lands at 20/21.
  assert np.median((np.asarray(seen["t_net"]) + 1) / 1001) == pytest.approx(20 / 21, abs=0.02)


def test_shares_of_dropped_conditions_are_as_asked(batch):
  form = formulation.Formulation(process.Gmax(), "z0")
  _, seen = loss_of(form, batch, drop_text=0.3, drop_both=0.2, drop_image=0.1)
  text, image = np.asarray(seen["text"]) == 0, np.asarray(seen["image"]) == 0
  for share, expected in [
    ((text & ~image).mean(), 0.3),
    ((text & image).mean(), 0.2),
    ((~text & image).mean(), 0.1),
  ]:
    assert share == pytest.approx(expected, abs=0.09)


def test_shares_beyond_all_clips_are_refused():
  form = formulation.Formulation(process.Gmax(), "z0")
  with pytest.raises(ValueError, match="together at most 1"):
    objectives.bridge_loss(Oracle(form), form, drop_text=0.7, drop_both=0.4)


@pytest.mark.parametrize(
  ("told", "dropped"),
  [
    ({"text"}, "drop_image"),
    ({"text"}, "drop_both"),
    ({"image", "stride"}, "drop_text"),
    (set(), "drop_text"),
  ],
)
def test_what_a_system_is_not_told_cannot_be_dropped(told, dropped):
  form = formulation.Formulation(process.Gmax(), "z0")
  system = Oracle(form)
  system.conditions = frozenset(told)
  with pytest.raises(ValueError, match=rf"objective.{dropped}=0.5 drops a condition"):
    objectives.bridge_loss(system, form, **{dropped: 0.5})
  objectives.bridge_loss(system, form, **{dropped: 0.0})


@pytest.mark.parametrize(
  "wrong", [{"shift": 0}, {"regression": -1}, {"drop_text": float("nan")}, {"drop_image": 1.5}]
)
def test_numbers_that_make_no_sense_are_named_by_their_key(wrong):
  form = formulation.Formulation(process.Gmax(), "z0")
  ((name, value),) = wrong.items()
  with pytest.raises(ValueError, match=f"objective.{name} is {value}; expected a number"):
    objectives.bridge_loss(Oracle(form), form, **wrong)


def test_a_diffusion_is_not_weighted_as_what_only_a_bridge_predicts():
  process_ = diffusion.linear()
  form = formulation.Formulation(process_, "noise", process_)
  with pytest.raises(ValueError, match="psi needs a bridge"):
    objectives.bridge_loss(Oracle(form), form, weight_like="psi")


def test_aligned_input_has_unit_variance_where_the_data_has(batch):
  form = formulation.Formulation(process.Gmax(), "v", diffusion.videocrafter())
  system = Oracle(form)
  system.denoise = lambda params, x, t_net, cond, keys=None: (
    system.seen.update(x=x, t_net=t_net) or x
  )
  keys = jax.random.split(jax.random.key(0), 256)
  objectives.bridge_loss(system, form)({}, {}, batch, keys)
  assert float(jnp.std(system.seen["x"])) == pytest.approx(1.0, abs=0.05)
  assert float(system.seen["t_net"].min()) >= 0 and float(system.seen["t_net"].max()) <= 999


def test_a_clips_loss_does_not_depend_on_its_batch(batch):
  form = formulation.Formulation(process.Gmax(beta_max=2.0), "psi")
  system = Oracle(form, 0.3)
  loss_fn = objectives.bridge_loss(system, form)
  keys = jax.random.split(jax.random.key(1), 4)
  part = {k: v[:4] for k, v in batch.items()}
  with jax.debug_key_reuse(False):  # the same keys again is the point
    whole = float(loss_fn({}, {}, part, keys)[0])
    alone = [
      float(loss_fn({}, {}, {k: v[i : i + 1] for k, v in part.items()}, keys[i : i + 1])[0])
      for i in range(4)
    ]
  assert whole == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.thorough
def test_dropout_does_not_depend_on_accumulation():
  """The gradients of a batch are the same in one part and in two."""
  config = toy.config()
  config["system"]["unet"]["dropout"] = 0.5
  tokenizer = build.make_tokenizer(config)
  system, form = build.make_system(config, tokenizer), build.make_formulation(config)
  rng = np.random.default_rng(0)
  batch = {
    "video": jnp.asarray(rng.integers(0, 256, (4, 3, 8, 8, 3), np.uint8)),
    "tokens": jnp.asarray(tokenizer(["up", "down", "left", "right"])),
    "stride": jnp.ones(4, jnp.int32),
  }
  params = jax.tree.map(
    lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype),
    jax.eval_shape(system.init, jax.random.key(0)),
  )
  tx = optim.make_optimizer(name="sgd", lr=1.0, steps=1)

  def moved(dropout, accumulate):
    config["system"]["unet"]["dropout"] = dropout
    system = build.make_system(config, tokenizer)
    loss = objectives.bridge_loss(system, form)
    train = step.make_train_step(loss, tx, ema_decay=0.0, seed=0, accumulate=accumulate)
    state, _ = jax.jit(train)(step.init_state(params, tx), {}, batch)
    return jax.tree.leaves(
      jax.tree.map(lambda new, old: np.asarray(new - old), state.params, params)
    )

  whole, parts, without = moved(0.5, 1), moved(0.5, 2), moved(0.0, 1)
  largest = max(np.abs(x).max() for x in whole)
  for one, two in zip(whole, parts, strict=True):
    np.testing.assert_allclose(one, two, atol=1e-4 * largest)
  difference = max(np.abs(x - y).max() for x, y in zip(whole, without, strict=True))
  assert difference > 0.01 * largest


def test_conditions_are_dropped_as_published(shared):
  file = golden.arrays(shared, "schedule_videocrafter")
  p = float(file["dropmask.uncond_prob"])
  text, image = objectives.dropped(jnp.asarray(file["dropmask.random_num"]), p, p, p)
  np.testing.assert_array_equal(text, file["dropmask.text_dropped"].astype(bool))
  np.testing.assert_array_equal(~image, file["dropmask.image_kept"].astype(bool))
