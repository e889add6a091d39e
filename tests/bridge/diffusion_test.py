"""Pretrained diffusions: tables, their continuation between integers, inverse log-SNR, posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.bridge import diffusion

DIFFUSIONS = {
  "videocrafter": diffusion.videocrafter(),
  "cogvideox": diffusion.cogvideox(),
  "latte": diffusion.linear(),
  "cosine": diffusion.cosine(),
  "shifted": diffusion.shift_snr(diffusion.linear(), 2.0),
  "zero_terminal_snr": diffusion.zero_terminal_snr(diffusion.cosine()),
  "dynamic_rescale": diffusion.dynamic_rescale(diffusion.videocrafter()),
  "short": diffusion.linear(50, 0.01, 0.3),
}
every_diffusion = pytest.mark.parametrize("name", DIFFUSIONS)


def test_published_ratios():
  """d_0, d_1, d_998 and d_999 of the three published schedules."""
  ratio = lambda d: d.signal / d.noise  # noqa: E731
  vc, cog, latte = (ratio(DIFFUSIONS[name]) for name in ("videocrafter", "cogvideox", "latte"))
  np.testing.assert_allclose(vc[[0, 1, 999]], [34.2851, 24.2046, 0.068425], rtol=1e-5)
  np.testing.assert_allclose(cog[[0, 1, 998, 999]], [19.7945, 13.8322, 2.4962e-4, 0], rtol=2e-5)
  np.testing.assert_allclose(latte[[0, 1, 999]], [99.995, 67.427, 0.006353], rtol=7e-5)


def test_snr_shift_divides_the_snr():
  plain, shifted = diffusion.linear(), diffusion.shift_snr(diffusion.linear(), 3.0)
  np.testing.assert_allclose(shifted.log_snrs, plain.log_snrs - np.log(3), atol=1e-12)
  np.testing.assert_allclose(shifted.signal**2 + shifted.noise**2, 1, rtol=1e-14)


def test_zero_terminal_snr_ends_without_signal_and_begins_as_before():
  plain, zero = diffusion.scaled_linear(), diffusion.zero_terminal_snr(diffusion.scaled_linear())
  assert zero.signal[-1] == 0 and zero.noise[-1] == 1
  np.testing.assert_allclose(zero.signal[0], plain.signal[0], rtol=1e-14)


def test_dynamic_rescale_shrinks_the_data_to_its_base():
  d = diffusion.dynamic_rescale(diffusion.videocrafter(), base=0.7, turning=400)
  np.testing.assert_allclose(d.rescale[[0, 399, 400, 999]], [1, 0.7, 0.7, 0.7])
  np.testing.assert_allclose(d.rescale_at(np.array([199.5])), 0.85)
  np.testing.assert_allclose(d.signal[500], 0.7 * diffusion.videocrafter().signal[500])


@every_diffusion
def test_at_integers_the_marginal_is_the_table(name, dtype):
  d = DIFFUSIONS[name]
  a, b, c = d.marginal(jnp.arange(d.last + 1, dtype=dtype))
  tolerance = 2e-6 if dtype == np.float32 else 1e-12
  np.testing.assert_allclose(a[:-1], d.signal[:-1], rtol=tolerance)
  np.testing.assert_allclose(c, d.noise, rtol=tolerance, atol=1e-7 * (d.signal[-1] == 0))
  np.testing.assert_allclose(a[-1], d.signal[-1], rtol=tolerance, atol=3e-7)
  assert not np.any(b)


@every_diffusion
def test_log_snr_falls_and_has_its_inverse(name, dtype):
  d, rng = DIFFUSIONS[name], np.random.default_rng(0)
  assert np.all(np.diff(d.log_snrs) < 0)
  time = np.sort(rng.uniform(0, d.last, 500)).astype(dtype)
  back = d.time_of_log_snr(d.log_snr(jnp.asarray(time)))
  # One unit in the last place of the log-SNR, over its slope there.
  slope = np.interp(np.float64(time), np.arange(d.last) + 0.5, -np.diff(d.log_snrs))
  eps = np.finfo(dtype).eps
  bound = 4 * eps * (np.abs(d.log_snr(np.float64(time))) + 1) / slope + 4 * eps * time
  np.testing.assert_array_less(np.abs(np.asarray(back) - time), bound)


@every_diffusion
def test_beyond_the_ends_the_inverse_stays_at_the_ends(name, dtype):
  d = DIFFUSIONS[name]
  far = jnp.asarray([90.0, -90.0], dtype)
  np.testing.assert_array_equal(d.time_of_log_snr(far), [0, d.last])
  np.testing.assert_array_equal(d.met(np.array([90.0, -90.0])), [False, d.signal[-1] == 0])


@pytest.mark.parametrize("name", ["videocrafter", "latte", "cosine", "cogvideox"])
def test_posterior_is_that_of_ddpm(name, dtype):
  """Variance and both mean coefficients by the textbook's formulas, from neighbouring times."""
  d = DIFFUSIONS[name]
  k = np.arange(1, d.last + (d.signal[-1] > 0))
  abar, before = d.signal[k] ** 2, d.signal[k - 1] ** 2
  beta = 1 - abar / before
  posterior = d.posterior(jnp.asarray(k, dtype), jnp.asarray(k - 1, dtype))
  rtol = 1e-9 if dtype == np.float64 else 2e-4
  variance = beta * (1 - before) / (1 - abar)
  np.testing.assert_allclose(posterior.std**2, variance, rtol=rtol)
  np.testing.assert_allclose(posterior.z0, beta * np.sqrt(before) / (1 - abar), rtol=rtol)
  zs = np.sqrt(1 - beta) * (1 - before) / (1 - abar)
  np.testing.assert_allclose(posterior.zs, zs, rtol=rtol)


@every_diffusion
def test_gradients_are_finite_from_end_to_end(name, dtype):
  d = DIFFUSIONS[name]
  times = jnp.asarray([0, 0.5, d.last / 2, d.last - 0.5, d.last], dtype)
  for f in (d.marginal, d.rotation, d.log_snr, lambda t: d.time_of_log_snr(d.log_snr(t))):
    total = lambda t: sum(jnp.sum(x) for x in jax.tree.leaves(f(t)))  # noqa: B023, E731
    assert np.isfinite(jax.grad(total)(times)).all()


def test_jit_and_vmap_change_nothing(dtype):
  d, times = DIFFUSIONS["dynamic_rescale"], np.linspace(0, 999, 37).astype(dtype)
  eps = np.finfo(dtype).eps
  for f in (d.marginal, d.log_snr, lambda t: d.posterior(t[..., 1:], t[..., :-1])):
    mapped = jax.tree.map(lambda x: x[0], jax.vmap(f)(jnp.asarray(times)[None]))
    for got in (jax.jit(f)(times), mapped, f(times)):
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=400 * eps, atol=eps),
        got,
        f(jnp.asarray(times)),
      )
