"""Step 0 of fine-tuning: the widened network is the old one, the aligned head a denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.bridge import initialise, prediction, process

GMAX = process.Gmax()
TIMES = (1e-5, 0.02, 0.5, 0.98, 1 - 1e-5)


def test_a_widened_convolution_is_the_old_one_whatever_the_new_channels_hold():
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 8)), jnp.float32)
  x, more = (jnp.asarray(rng.standard_normal((2, 6, 6, 4)), jnp.float32) for _ in range(2))
  conv = lambda x, kernel: jax.lax.conv_general_dilated(  # noqa: E731
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  wide = initialise.widen_input(kernel, 4)
  assert wide.shape == (3, 3, 8, 8)
  got = conv(jnp.concatenate([x, more], -1), wide)
  np.testing.assert_allclose(got, conv(x, kernel), atol=1e-5)
  assert initialise.widen_input(jnp.ones((16, 32)), 16).shape == (32, 32)


def clips(n=5):
  rng = np.random.default_rng(1)
  return tuple(jnp.asarray(rng.standard_normal((n, 40)), jnp.float32) for _ in range(3))


def test_a_noise_head_becomes_a_psi_head_by_one_scale():
  """sigma_bar_t / sigma_1 times the prediction, for a bridge without drift."""
  _, z1, pred = clips()
  time = jnp.asarray(TIMES, jnp.float32)
  got = initialise.align_output("noise", "psi", GMAX, pred, z1, z1, time)
  scale = np.sqrt(GMAX.variance_to_go(np.float64(time)) / 25.005)
  np.testing.assert_allclose(got, scale[:, None] * pred, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["psi", "v", "noise", "z0"])
def test_an_aligned_noise_head_is_exact_for_a_clip_that_is_its_prior(kind):
  z0, _, noise = clips()
  time = jnp.asarray(TIMES, jnp.float32)
  zt = process.sample_marginal(GMAX, z0, z0, time, noise)
  got = initialise.align_output("noise", kind, GMAX, noise, zt, z0, time)
  want = prediction.target(kind, GMAX, z0, z0, noise, time)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_aligned_head_starts_far_below_the_plain_one():
  """Expected square error of psi at step 0, videos near their prior and noise well predicted."""
  rng = np.random.default_rng(2)
  time = jnp.asarray(np.linspace(0.01, 0.99, 50), jnp.float32)
  z1 = jnp.asarray(rng.standard_normal((50, 200)), jnp.float32)
  z0 = z1 + 0.3 * jnp.asarray(rng.standard_normal(z1.shape), jnp.float32)
  noise = jnp.asarray(rng.standard_normal(z1.shape), jnp.float32)
  zt = process.sample_marginal(GMAX, z0, z1, time, noise)
  target = prediction.target("psi", GMAX, z0, z1, noise, time)
  aligned = initialise.align_output("noise", "psi", GMAX, noise, zt, z1, time)
  plain, ours = (float(jnp.mean((pred - target) ** 2)) for pred in (noise, aligned))
  print(f"loss at step 0: {plain:.4f} plain, {ours:.4f} aligned")
  assert ours < 0.02 * plain


def test_a_v_head_needs_nothing_and_becomes_any_other_exactly():
  z0, z1, noise = clips()
  time = jnp.asarray([0.05, 0.2, 0.5, 0.8, 0.95], jnp.float32)
  zt = process.sample_marginal(GMAX, z0, z1, time, noise)
  v = prediction.target("v", GMAX, z0, z1, noise, time)
  np.testing.assert_array_equal(initialise.align_output("v", "v", GMAX, v, zt, z1, time), v)
  for kind in ("psi", "z0", "noise"):
    got = initialise.align_output("v", kind, GMAX, v, zt, z1, time)
    want = prediction.target(kind, GMAX, z0, z1, noise, time)
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_gradients_are_finite_at_both_ends():
  _, z1, pred = clips()
  time = jnp.asarray([0.0, 1e-5, 0.5, 1 - 1e-5, 1.0], jnp.float32)

  def total(pred, z1, time):
    return sum(
      jnp.sum(initialise.align_output(have, "psi", GMAX, pred, z1, z1, time))
      for have in ("noise", "v", "z0")
    )

  for gradient in jax.jit(jax.grad(total, (0, 1, 2)))(pred, z1, time):
    assert np.isfinite(gradient).all()
