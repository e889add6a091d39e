import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.systems import base
from fbjax.train import optim, step


def noisy_square(params, frozen, batch, keys):
  noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
  error = batch["x"] * params["w"][None] + noise - frozen["target"][None]
  return jnp.mean(error**2), {"largest": jnp.mean(jnp.abs(error))}


@pytest.fixture
def setting():
  rng = np.random.default_rng(0)
  batch = {"x": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)}
  return {"w": jnp.ones(3)}, {"target": jnp.arange(3.0)}, batch


def make(accumulate=1, ema_decay=0.9, lr=0.1):
  tx = optim.make_optimizer(name="sgd", lr=lr, steps=1)
  fn = step.make_train_step(noisy_square, tx, ema_decay=ema_decay, seed=3, accumulate=accumulate)
  return jax.jit(fn), tx


def test_a_step_follows_the_gradient(setting):
  params, frozen, batch = setting
  fn, tx = make()
  state, metrics = fn(step.init_state(params, tx), frozen, batch)
  key = jax.random.fold_in(jax.random.key(3), 0)
  loss, grads = jax.value_and_grad(
    lambda p: noisy_square(p, frozen, batch, base.clip_keys(key, jnp.arange(8)))[0]
  )(params)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
  np.testing.assert_allclose(state.params["w"], params["w"] - 0.1 * grads["w"], rtol=1e-6)
  np.testing.assert_allclose(metrics["grad_norm"], jnp.linalg.norm(grads["w"]), rtol=1e-6)
  assert int(state.step) == 1


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing_but_memory(setting, accumulate):
  params, frozen, batch = setting
  (whole, tx), (parts, _) = make(), make(accumulate)
  a, b = step.init_state(params, tx), step.init_state(params, tx)
  for _ in range(3):
    (a, m), (b, n) = whole(a, frozen, batch), parts(b, frozen, batch)
  np.testing.assert_allclose(a.params["w"], b.params["w"], rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), m, n)


def test_every_step_draws_new_noise_and_a_restart_the_same(setting):
  params, frozen, batch = setting
  fn, tx = make(lr=0.0)
  first, m1 = fn(step.init_state(params, tx), frozen, batch)
  _, m2 = fn(first, frozen, batch)
  _, again = fn(step.init_state(params, tx)._replace(step=jnp.int32(1)), frozen, batch)
  assert float(m1["loss"]) != float(m2["loss"])
  assert float(m2["loss"]) == float(again["loss"])


def test_the_average_warms_up_and_then_decays(setting):
  params, frozen, batch = setting
  fn, tx = make(ema_decay=0.3)
  state = step.init_state(params, tx)
  expected = np.ones(3)
  for i in range(8):
    state, _ = fn(state, frozen, batch)
    decay = min(0.3, (1 + i) / (10 + i))
    expected = decay * expected + (1 - decay) * np.asarray(state.params["w"])
  np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-5)


def test_a_clips_key_depends_on_its_place_alone():
  key = jax.random.key(0)
  long = jax.random.key_data(base.clip_keys(key, jnp.arange(8)))
  short = jax.random.key_data(base.clip_keys(key, jnp.arange(3)))
  np.testing.assert_array_equal(long[:3], short)
  assert len(np.unique(long, axis=0)) == 8
