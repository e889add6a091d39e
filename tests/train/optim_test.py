import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax import errors, trees
from fbjax.train import optim


def test_the_rate_warms_up_and_stays():
  rate = optim.learning_rate(0.5, steps=100, warmup=10)
  np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(99)], [0, 0.25, 0.5, 0.5])


def test_a_wsd_schedule_is_constant_but_for_its_ends():
  rate = optim.learning_rate(0.5, steps=100, warmup=10, schedule="wsd")
  assert [float(rate(step)) for step in (0, 5, 10, 79, 80)] == [0.0, 0.25, 0.5, 0.5, 0.5]
  assert np.isclose(rate(90), 0.25) and rate(100) == 0 and rate(120) == 0
  longer = optim.learning_rate(0.5, steps=200, warmup=10, schedule="wsd")
  assert all(longer(step) == rate(step) for step in range(81))
  warm = optim.learning_rate(0.5, steps=100, warmup=90, schedule="wsd")
  assert warm(90) == 0.5 and np.isclose(warm(95), 0.25) and warm(100) == 0


def test_the_cosine_ends_at_zero():
  rate = optim.learning_rate(0.5, steps=100, warmup=10, schedule="cosine")
  np.testing.assert_allclose([rate(10), rate(55), rate(100)], [0.5, 0.25, 0.0], atol=1e-6)


def test_no_warm_up_starts_at_the_full_rate():
  assert float(optim.learning_rate(0.5, steps=100)(0)) == 0.5


@pytest.mark.parametrize(("clip", "expected"), [(0.0, 30.0), (1.0, 1.0)])
def test_the_gradient_is_clipped_by_its_global_norm(clip, expected):
  tx = optim.make_optimizer(steps=10, name="sgd", lr=1.0, clip=clip)
  params = {"a": jnp.zeros(1)}
  updates, _ = tx.update({"a": jnp.full(1, 30.0)}, tx.init(params), params)
  np.testing.assert_allclose(updates["a"], -expected)


def test_sgd_decays_matrices_alone_and_refuses_what_it_has_not():
  tx = optim.make_optimizer(steps=10, name="sgd", lr=0.5, weight_decay=0.1)
  params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose([updates["kernel"][0], updates["bias"][0]], [-0.05, 0], rtol=1e-6)
  with pytest.raises(errors.UserError, match="config.optim.b2 is 0.5, but SGD has none"):
    optim.make_optimizer(steps=10, name="sgd", b2=0.5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_in_half_precision_take_half_the_memory_and_move_weights_alike(name):
  params, grads = {"kernel": jnp.ones((4, 4))}, {"kernel": jnp.eye(4) + 0.1}
  moved, sizes = [], []
  for moments in ("float32", "bfloat16"):
    tx = optim.make_optimizer(steps=10, name=name, lr=0.1, moments=moments)
    state = tx.init(params)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sizes.append(sum(x.nbytes for path, x in leaves if ".mu" in jax.tree_util.keystr(path)))
    for _ in range(3):
      updates, state = tx.update(grads, state, params)
    moved.append(updates["kernel"])
  assert sizes[0] == 2 * sizes[1] > 0
  np.testing.assert_allclose(*moved, rtol=0.02, atol=1e-3)
  with pytest.raises(errors.UserError, match="config.optim.moments is 'half'; expected 'float32'"):
    optim.make_optimizer(steps=10, name=name, moments="half")


@pytest.mark.parametrize("spec", [{"name": "lion"}, {"schedule": "linear"}])
def test_an_unknown_name_says_what_is_expected(spec):
  with pytest.raises(ValueError, match="expected '"):
    optim.make_optimizer(steps=10, **spec)


def muon(params, grads, steps=1):
  tx = optim.make_optimizer(steps=10, name="muon", lr=0.1, weight_decay=0.0)
  state = tx.init(params)
  for _ in range(steps):
    updates, state = tx.update(grads, state, params)
  return updates


@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 4), (3, 3, 6, 4)])
def test_muon_turns_the_gradient_of_a_kernel_into_one_of_equal_singular_values(shape):
  """Each matrix of a stack by itself; that of a convolution has height and width among its inputs."""
  grad = np.random.default_rng(0).normal(size=shape) * np.geomspace(1, 0.1, 4)
  grads = {"kernel": jnp.asarray(grad, jnp.float32)}
  update = muon(jax.tree.map(jnp.zeros_like, grads), grads)["kernel"]
  matrices = np.asarray(update).reshape((1, 54, 4) if len(shape) == 4 else (-1, 6, 4))
  values = np.linalg.svd(matrices, compute_uv=False)
  assert np.all(values.max(-1) < 2 * values.min(-1))
  wanted = np.linalg.svd(grad.reshape(matrices.shape), compute_uv=False)
  assert np.all(wanted.max(-1) > 4 * wanted.min(-1))
  # As large as AdamW's: both take the same learning rate.
  np.testing.assert_allclose(np.sqrt(np.mean(matrices**2)), 0.1 * optim.MUON_RMS, rtol=0.3)


@pytest.mark.parametrize(
  "path", ["latte/patches/kernel", "latte/head/out/kernel", "text/token/embedding"]
)
def test_muon_leaves_pixels_and_words_to_adamw(path):
  grads = trees.nest({path: jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)})
  update = trees.flatten(muon(jax.tree.map(jnp.zeros_like, grads), grads))[path]
  # Its first step is as long for every number, whatever its gradient.
  np.testing.assert_allclose(np.abs(update), np.abs(update[0, 0]), rtol=1e-3)


def test_what_does_not_train_stays_and_has_no_state():
  tx = optim.make_optimizer(steps=10, lr=0.1, weight_decay=0.5, trains=lambda path: "b" not in path)
  params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(3)}}
  state = tx.init(params)
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
  assert np.all(updates["a"]["kernel"] < -0.01) and not np.any(updates["b"]["kernel"])
  moments = [x for x in jax.tree.leaves(state) if x.shape == (3,)]
  assert len(moments) == 2  # of a alone


def test_the_norm_that_is_clipped_is_that_of_what_trains():
  tx = optim.make_optimizer(steps=10, name="sgd", lr=1.0, clip=1.0, trains=lambda path: path == "a")
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  updates, _ = tx.update({"a": jnp.ones(1), "b": jnp.full(1, 100.0)}, tx.init(params), params)
  np.testing.assert_allclose(updates["a"], -1.0)


@pytest.mark.parametrize(("decays", "norm"), [("matrices", 0.0), ("all", -0.1)])
def test_decay_falls_on_matrices_alone_unless_as_published(decays, norm):
  tx = optim.make_optimizer(steps=10, lr=0.1, weight_decay=1.0, decays=decays)
  layer = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones((3, 2)), "bias": jnp.ones(2)}
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, layer), tx.init(layer), layer)
  np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)
  for name in ("scale", "bias"):
    np.testing.assert_allclose(updates[name], norm, rtol=1e-5)


def test_clipping_begins_at_its_step():
  tx = optim.make_optimizer(steps=10, name="sgd", lr=1.0, clip=1.0, clip_from=2)
  params = {"a": jnp.zeros(1)}
  state, moved = tx.init(params), []
  for _ in range(4):
    updates, state = tx.update({"a": jnp.full(1, 30.0)}, state, params)
    moved.append(float(updates["a"][0]))
  np.testing.assert_allclose(moved, [-30, -30, -1, -1])


def test_a_run_may_begin_to_clip_with_the_state_it_has():
  params = {"a": {"kernel": jnp.zeros(1)}}
  states = [optim.make_optimizer(steps=10, clip=clip).init(params) for clip in (0.0, 1.0)]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(
  "wrong",
  [
    {"lr": -1},
    {"lr": float("nan")},
    {"warmup": -3},
    {"b1": 1.0},
    {"b2": -0.1},
    {"eps": 0.0},
    {"weight_decay": -0.1},
    {"clip": -1.0},
    {"clip_from": -1},
  ],
)
def test_numbers_that_make_no_sense_are_named_by_their_key(wrong):
  ((name, value),) = wrong.items()
  with pytest.raises(ValueError, match=f"optim.{name} is {value!r}; expected a"):
    optim.make_optimizer(steps=10, **wrong)
