import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax import flops, hardware


def traced(f, *args, **options) -> flops.Flops:
  return flops.of(jax.jit(f).trace(*args).jaxpr, **options)


def of_xla(f, *args) -> float:
  return jax.jit(f).lower(*args).cost_analysis()["flops"]


def test_a_product_counts_as_written():
  a, b = jnp.ones((3, 5, 7)), jnp.ones((3, 7, 11))
  assert traced(lambda a, b: jnp.einsum("kij,kjl->kil", a, b), a, b).model == 2 * 3 * 5 * 7 * 11


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 1))])
def test_a_convolution_and_its_gradients_count_as_xla_counts_them(stride, groups, padding):
  x, kernel = jnp.ones((2, 9, 8, 4)), jnp.ones((3, 3, 4 // groups, 6))

  def f(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )

  assert traced(f, x, kernel).model == of_xla(f, x, kernel)
  g = jnp.ones(jax.eval_shape(f, x, kernel).shape)
  back = lambda x, kernel, g: jax.vjp(f, x, kernel)[1](g)  # noqa: E731
  ours, theirs = traced(back, x, kernel, g).model, of_xla(back, x, kernel, g)
  np.testing.assert_allclose(ours, theirs, rtol=0.02)


def test_a_loop_counts_as_often_as_it_runs():
  w, x = jnp.ones((5, 8, 8)), jnp.ones((3, 8))
  looped = lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]  # noqa: E731

  def unrolled(w, x):
    for i in range(5):
      x = jnp.tanh(x @ w[i])
    return x

  grad = lambda f: jax.grad(lambda w, x: f(w, x).sum(), argnums=(0, 1))  # noqa: E731
  for a, b in ((looped, unrolled), (grad(looped), grad(unrolled))):
    assert traced(a, w, x).model == traced(b, w, x).model
  assert of_xla(looped, w, x) < traced(looped, w, x).model / 4  # why this module is there


def test_what_a_checkpoint_computes_again_is_told_apart():
  w, x = jnp.ones((2, 8, 8)), jnp.ones((3, 8))
  block = lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w)  # noqa: E731

  def loss(block):
    return lambda w, x: jax.lax.scan(lambda x, w: (block(x, w), None), x, w)[0].sum()

  plain = traced(jax.grad(loss(block)), w, x)
  again = traced(jax.grad(loss(jax.checkpoint(block))), w, x)
  assert plain.recomputed == 0 and again.model == plain.model
  assert again.recomputed == plain.model / 3  # the forward half, once more


def test_of_a_condition_the_longest_branch_counts():
  x = jnp.ones((4, 4))
  f = lambda p, x: jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)  # noqa: E731
  assert traced(f, True, x).model == 2 * 2 * 4**3


def test_what_nobody_uses_does_not_count():
  x = jnp.ones((4, 4))
  assert traced(lambda x: (x @ x, x @ x @ x)[0], x).model == 2 * 4**3


@pytest.mark.parametrize(
  ("precision", "times"), [("default", (1, 1, 1)), ("high", (1, 2, 3)), ("highest", (1, 3, 6))]
)
def test_products_of_float32_count_as_the_passes_that_a_tpu_makes_of_each(precision, times):
  """Of two arrays of bfloat16, of one and one of float32, of two: so much longer do its compiler's cycles get."""
  dims = ("NWC", "WIO", "NWC")
  conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=dims)  # noqa: E731
  both = lambda x, w: jnp.sum(conv(x, w)) + jnp.sum(x @ w[0])  # noqa: E731
  step = jax.grad(jax.checkpoint(lambda x, w: jnp.tanh(both(x, w))), argnums=(0, 1))
  wide = {"preferred_element_type": jnp.float32}
  mixed = lambda x, w: jax.lax.dot(x[0], w[0].astype(jnp.float32), **wide)  # noqa: E731

  def counted(f, dtype):
    args = jnp.ones((2, 9, 4), dtype), jnp.ones((3, 4, 6), dtype)
    once, passes = traced(f, *args), traced(f, *args, passes=hardware.BF16)
    assert once.total and passes == once.times(passes.total / once.total)
    return passes.total / once.total

  with jax.default_matmul_precision(precision):
    found = counted(step, jnp.bfloat16), counted(mixed, jnp.bfloat16), counted(step, jnp.float32)
  assert found == times
