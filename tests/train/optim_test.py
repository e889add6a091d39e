import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.train import optim


def test_the_rate_warms_up_and_stays():
  rate = optim.learning_rate(0.5, steps=100, warmup=10)
  np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(99)], [0, 0.25, 0.5, 0.5])


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


def test_adamw_decays_weights():
  tx = optim.make_optimizer(steps=10, lr=0.1, weight_decay=0.5)
  params = {"a": jnp.full(1, 2.0)}
  updates, _ = tx.update({"a": jnp.zeros(1)}, tx.init(params), params)
  np.testing.assert_allclose(updates["a"], -0.1 * 0.5 * 2.0, rtol=1e-6)


@pytest.mark.parametrize("spec", [{"name": "lion"}, {"schedule": "linear"}])
def test_an_unknown_name_says_what_is_expected(spec):
  with pytest.raises(ValueError, match="expected '"):
    optim.make_optimizer(steps=10, **spec)
