"""Each way to compute attention gives what the textbook gives, and each platform gets the one meant for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax import compiled, flops, partition, sharding
from fbjax.models import attention, layers


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (7, 3), (300, 300)])
def test_attention_is_the_softmax_average_of_the_values(n, m):
  q, k, v = normal(2, n, 3, 4), normal(2, m, 3, 4, seed=1), normal(2, m, 3, 4, seed=2)
  ours = jax.jit(attention.attention)(q, k, v)
  np.testing.assert_allclose(ours, jax.nn.dot_product_attention(q, k, v), atol=2e-6)


def test_attention_with_a_causal_bias_sees_no_later_token():
  q, k, v = (normal(1, 6, 2, 4, seed=i) for i in range(3))
  ours = attention.attention(q, k, v, bias=layers.causal_bias(6))
  np.testing.assert_allclose(ours, jax.nn.dot_product_attention(q, k, v, is_causal=True), atol=2e-6)


def test_the_gradient_of_attention_is_that_of_the_textbook_form():
  q, k, v = (normal(2, 9, 2, 4, seed=i) for i in range(3))

  def loss(f):
    return lambda *args: jnp.sum(jnp.sin(f(*args)))

  ours = jax.grad(loss(attention.attention), (0, 1, 2))(q, k, v)
  theirs = jax.grad(loss(jax.nn.dot_product_attention), (0, 1, 2))(q, k, v)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_softmax_of_bfloat16_queries_is_taken_in_float32():
  q = 5 * normal(1, 64, 1, 8)
  k, v = normal(1, 64, 1, 8, seed=1), normal(1, 64, 1, 8, seed=2)
  half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  exact = attention.attention(*(x.astype(jnp.float32) for x in half))
  ours = attention.attention(*half)
  assert ours.dtype == jnp.bfloat16
  assert np.abs(ours.astype(jnp.float32) - exact).max() < 0.02


def qkv(rows, n, m, heads, d):
  return (
    normal(rows, n, heads, d),
    normal(rows, m, heads, d, seed=1),
    normal(rows, m, heads, d, seed=2),
  )


def agree(f, theirs, args, atol):
  """Of the output and of all gradients."""
  loss = lambda f: lambda *args: jnp.sum(jnp.sin(f(*args)))  # noqa: E731
  np.testing.assert_allclose(f(*args), theirs(*args), atol=atol)
  ours, known = (jax.grad(loss(g), (0, 1, 2))(*args) for g in (f, theirs))
  for a, b in zip(ours, known, strict=True):
    np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("biased", [False, True])
def test_blocks_of_queries_are_the_whole_and_keep_few_logits_in_memory(biased):
  args = qkv(2, 100, 64, 2, 8)
  bias = normal(1, 2, 100, 64, seed=3) if biased else None
  large = 4 * 2 * 2 * 64 * 30  # 30 queries: four blocks of 25
  blocks = lambda q, k, v: attention.blocks(q, k, v, 0.3, bias, large=large)  # noqa: E731
  agree(blocks, lambda q, k, v: attention.plain(q, k, v, 0.3, bias), args, 5e-6)

  def held(f):
    grad = jax.grad(lambda q: f(q, *args[1:]).sum())
    return compiled.memory(jax.jit(grad).lower(args[0]).compile()).temporaries

  whole = held(lambda q, k, v: attention.plain(q, k, v, 0.3, bias))
  assert held(blocks) < 0.6 * whole


def test_queries_that_devices_share_are_in_blocks_of_their_own():
  mesh = sharding.make_mesh(data=2, context=2, tensor=2)
  args = qkv(2, 100, 64, 2, 8)
  blocks = lambda q, k, v: attention.blocks(  # noqa: E731
    q, k, v, 0.3, spread=partition.OF_CLIPS, large=4 * 64 * 30
  )
  f = jax.jit(partition.over(mesh, blocks))
  np.testing.assert_allclose(f(*args), attention.plain(*args, 0.3), atol=5e-6)
  spec = partition.over(mesh, lambda: partition.of_attention(partition.OF_CLIPS, (2, 100, 2)))()
  args = [
    jax.device_put(x, jax.NamedSharding(mesh, at)) for x, at in zip(args, spec.specs, strict=True)
  ]
  assert not compiled.collectives(f.lower(*args).compile())


@pytest.mark.parametrize(("n", "causal"), [(16, True), (64, False)])
def test_packed_sequences_do_not_see_each_other(n, causal):
  args = qkv(16, n, n, 2, 8)
  bias = layers.causal_bias(n) if causal else None
  packed = lambda q, k, v: attention.packed(q, k, v, 0.3, bias)  # noqa: E731
  agree(packed, lambda q, k, v: attention.plain(q, k, v, 0.3, bias), args, 5e-6)


@pytest.mark.parametrize(("n", "m"), [
  pytest.param(256, 256, marks=pytest.mark.thorough), (300, 140),
])  # fmt: skip
def test_the_kernel_of_tpus_gives_the_same_also_where_it_fills_up(n, m):
  args = qkv(1, n, m, 2, 8)
  kernel = lambda q, k, v: attention.splash(q, k, v, 0.3, interpret=True)  # noqa: E731
  agree(kernel, lambda q, k, v: attention.plain(q, k, v, 0.3), args, 1e-5)


HALF, FULL = jnp.bfloat16, jnp.float32


@pytest.mark.parametrize(
  ("platform", "shape", "dtype", "biased", "kind"),
  [
    ("tpu", (64, 1024, 1024, 5, 64), HALF, False, "splash"),
    ("tpu", (64, 1024, 1024, 5, 64), FULL, False, "blocks"),
    ("tpu", (64, 1024, 77, 5, 64), HALF, False, "plain"),
    ("tpu", (4096, 16, 16, 5, 64), HALF, False, "packed"),
    ("tpu", (4095, 16, 16, 5, 64), HALF, False, "plain"),
    ("tpu", (4096, 17, 17, 5, 64), HALF, False, "plain"),
    ("gpu", (64, 1024, 1024, 5, 64), HALF, False, "cudnn"),
    ("gpu", (64, 1025, 1025, 5, 64), HALF, False, "blocks"),
    ("gpu", (64, 1024, 1024, 5, 64), HALF, True, "blocks"),
    ("gpu", (4096, 16, 16, 5, 64), HALF, False, "plain"),
    ("cpu", (64, 1024, 1024, 5, 64), HALF, False, "blocks"),
    ("cpu", (2, 1024, 1024, 5, 64), HALF, False, "plain"),
  ],
)
def test_each_platform_gets_its_own(platform, shape, dtype, biased, kind):
  assert attention.choose(attention.Sizes(*shape), dtype, platform, biased=biased) == kind


def test_what_is_large_is_told_by_the_share_of_a_device():
  mesh = sharding.make_mesh(fsdp=8)

  def kind():
    share = partition.of_attention(partition.APART, (64, 1024, 5, 64))
    of = attention.Sizes(share.rows, share.queries, 1024, share.heads, 64)
    return attention.choose(of, HALF, "cpu")

  assert [partition.over(on, kind)() for on in (None, mesh)] == ["blocks", "plain"]


def test_a_kernel_splits_over_the_devices():
  """Left to the partitioner, each device would gather all rows and do all of the work."""
  mesh = sharding.make_mesh(data=2, fsdp=4)
  q, k, v = (jax.device_put(x, sharding.batch(mesh)) for x in qkv(16, 128, 128, 1, 8))
  f = jax.jit(partition.over(mesh, each))
  assert not compiled.collectives(f.lower(q, k, v).compile())
  np.testing.assert_allclose(f(q, k, v), attention.plain(q, k, v, 0.3), atol=1e-5)


def each(q, k, v):
  share = partition.of_attention(partition.APART, q.shape)
  return partition.per_device(share, splash, q, k, v)


def splash(q, k, v):
  return attention.splash(q, k, v, 0.3, interpret=True)


def counted(f, mesh=None):
  """FLOPs of the gradient of f."""
  args = [jax.ShapeDtypeStruct((8, 256, 2, 64), jnp.bfloat16)] * 3
  loss = lambda *args: f(*args).astype(jnp.float32).sum()  # noqa: E731
  return flops.of(jax.jit(partition.over(mesh, jax.grad(loss, (0, 1, 2)))).trace(*args).jaxpr)


def test_the_work_of_a_kernel_is_counted_and_what_it_does_again_is_told_apart():
  plain = counted(lambda q, k, v: attention.plain(q, k, v, 0.3))
  alone, product = counted(splash), 2 * 8 * 2 * 256 * 256 * 64
  assert plain == (6 * product, 0)
  np.testing.assert_allclose(alone, (6 * product, 3 * product), rtol=0.01)
  mesh = sharding.make_mesh(data=2, fsdp=4)
  assert counted(each, mesh) == alone


def test_the_work_of_cudnn_is_counted(monkeypatch):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
  fused = counted(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="cudnn"))
  assert fused == (6 * 2 * 8 * 2 * 256 * 256 * 64, 2 * 8 * 2 * 256 * 256 * 64)
