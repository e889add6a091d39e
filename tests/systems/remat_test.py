import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fbjax import errors, flops, partition
from fbjax.models import layers
from fbjax.systems import remat


def loss_of(name, x):
  """Of eight blocks, by their weights."""
  keys = layers.Keys(jax.random.key(0))
  blocks = nnx.List([layers.Geglu(16, dtype=jnp.float32, rngs=keys) for _ in range(8)])
  graph, params = nnx.split(blocks)
  run = partition.blockwise(lambda block, x: x + block(jnp.sin(x)), remat.wrap(name))

  def loss(params):
    h = x
    for block in nnx.merge(graph, params):
      h = run(block, h)
    return jnp.sum(jnp.square(h))

  return loss, params


def gradient(name, x):
  loss, params = loss_of(name, x)
  return jax.jit(jax.grad(loss)), params


@pytest.fixture(scope="module")
def x():
  return jnp.asarray(np.random.default_rng(0).standard_normal((8, 64, 16)), jnp.float32)


@pytest.mark.parametrize("name", ["products", "full", True])
def test_the_gradient_is_the_same(name, x):
  (f, params), (g, _) = gradient(name, x), gradient("none", x)
  for ours, theirs in zip(*map(jax.tree.leaves, (f(params), g(params))), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-3)


def test_each_does_again_what_it_does_not_keep(x):
  again = {
    name: flops.of(f.trace(params).jaxpr)
    for name in ("none", "products", "full")
    for f, params in [gradient(name, x)]
  }
  assert again["none"].recomputed == again["products"].recomputed == 0
  # Of each block, the product up: that down is not needed for any gradient.
  assert again["full"].recomputed == 8 * 2 * 8 * 64 * 16 * 128
  assert len({found.model for found in again.values()}) == 1


def test_between_forward_and_backward_each_keeps_what_it_says(x):
  kept = {}
  for name in ("none", "products", "full"):
    loss, params = loss_of(name, x)
    shapes = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
    kept[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / x.size
  # Of each block its input, and its weights; "products" besides value and gate, four times as wide.
  assert kept["full"] < 8 + 5
  assert 8 * 8 < kept["products"] < kept["full"] + 8 * (8 + 1)
  assert kept["none"] > kept["products"] + 8 * 4


def test_inputs_wait_in_the_memory_of_the_host(x):
  f, params = gradient("offload", x)
  assert "pinned_host" in f.lower(params).as_text() or "host" in str(f.trace(params).jaxpr)


def test_another_name_is_refused():
  with pytest.raises(errors.UserError, match="config.system.remat is 'some'; expected 'none'"):
    remat.wrap("some")
