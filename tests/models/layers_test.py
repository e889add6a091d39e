import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fbjax.models import layers


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize(("size", "stride", "t", "bias"), [(3, 1, 5, True), (7, 2, 9, False)])
def test_a_convolution_of_frames_is_the_one_over_time(size, stride, t, bias):
  conv = layers.Conv3d(
    2,
    3,
    size,
    stride=stride,
    bias=bias,
    dtype=jnp.float32,
    rngs=layers.Keys(jax.random.key(0)),
  )
  x = normal(2, t, 10, 11, 2)
  whole = nnx.Conv.__call__(conv, x)
  np.testing.assert_allclose(conv(x), whole, atol=1e-5)
  np.testing.assert_allclose(conv.of_frames(x), whole, atol=1e-5)


def test_group_norm_keeps_the_variance_next_to_a_large_mean():
  x = 1000 + 0.01 * np.random.default_rng(0).standard_normal((2, 16, 8))
  ours = layers.GroupNorm(8, groups=2)(jnp.asarray(x, jnp.float32))
  x = np.asarray(x, np.float32).astype(np.float64).reshape(2, 16, 2, 4)
  centred = x - x.mean((1, 3), keepdims=True)
  theirs = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + 1e-5)
  np.testing.assert_allclose(ours, theirs.reshape(2, 16, 8), atol=2e-2)


def test_group_norm_takes_statistics_over_every_middle_axis():
  x = normal(2, 3, 4, 5, 8)
  norm = layers.GroupNorm(8, groups=4)
  flat = norm(x.reshape(2, 60, 8)).reshape(x.shape)
  np.testing.assert_allclose(norm(x), flat, atol=1e-6)
  assert abs(float(norm(x)[0, ..., :2].mean())) < 1e-6
  np.testing.assert_allclose(float(norm(x)[0, ..., :2].std()), 1, atol=1e-4)


def test_channels_that_do_not_divide_into_groups_are_refused():
  with pytest.raises(ValueError, match="12 channels do not divide into 32 groups"):
    layers.GroupNorm(12)


def test_the_sinusoid_takes_fractions_and_puts_cosines_first():
  time = jnp.array([0.0, 0.5, 999.25])
  angle = np.asarray(time)[:, None] * 10_000.0 ** (-np.arange(4) / 4)
  theirs = np.concatenate([np.cos(angle), np.sin(angle)], 1)
  np.testing.assert_allclose(layers.sinusoid(time, 8), theirs, atol=1e-4)


def test_keys_never_repeat_and_follow_from_the_first():
  keys, again = layers.Keys(jax.random.key(3)), layers.Keys(jax.random.key(3))
  drawn = [jax.random.key_data(keys()).tolist() for _ in range(50)]
  assert len({tuple(k) for k in drawn}) == 50
  assert drawn == [jax.random.key_data(again.params()).tolist() for _ in range(50)]


@pytest.mark.parametrize("make", ["linear", "conv"])
def test_weights_and_biases_start_as_torch_starts_them(make):
  kwargs = {"dtype": jnp.float32, "rngs": layers.Keys(jax.random.key(0))}
  if make == "linear":
    layer, fan_in = layers.linear(100, 400, **kwargs), 100
  else:
    layer, fan_in = layers.conv(12, 300, 3, **kwargs), 108
  bound = fan_in**-0.5
  for leaf in (layer.kernel[...], layer.bias[...]):
    assert bound * 0.95 < float(jnp.abs(leaf).max()) <= bound
    np.testing.assert_allclose(float(leaf.std()), bound / 3**0.5, rtol=0.1)


def test_dropout_keeps_the_mean_and_does_nothing_without_a_key():
  x = jnp.ones((100, 100))
  assert layers.dropout(x, 0.3, None) is x
  y = layers.dropout(x, 0.3, jax.random.split(jax.random.key(0), 100))
  np.testing.assert_allclose(float((y == 0).mean()), 0.3, atol=0.02)
  np.testing.assert_allclose(float(y.mean()), 1, atol=0.03)


def test_the_mask_of_a_clip_does_not_depend_on_its_neighbours():
  keys, x = jax.random.split(jax.random.key(0), 6), jnp.ones((6, 4, 3, 5))
  with jax.debug_key_reuse(False):  # the same keys again is the point
    first, second = layers.split(keys, 2)
    together = layers.dropout(x, 0.5, first)
    for part in (slice(0, 1), slice(2, 5)):
      alone = layers.dropout(x[part], 0.5, layers.split(keys[part], 2)[0])
      np.testing.assert_array_equal(alone, together[part])
    other = layers.dropout(x, 0.5, second)
  masks = np.concatenate([together, other]).reshape(12, -1)
  assert len(np.unique(masks, axis=0)) == 12  # none is another's, by clip or by layer
