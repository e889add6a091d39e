"""Processes: closed forms against the definitions, in both precisions and at both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.bridge import grids, process

PROCESSES = {
  "gmax": process.Gmax(),
  "constant": process.constant(2.0),
  "ve": process.ve(),
  "vp": process.VP(),
  "vp_dbim": process.vp(),
}
every_process = pytest.mark.parametrize("name", PROCESSES)
NEAR_ENDS = np.array([1e-6, 1e-5, 1e-3, 0.02, 0.3, 0.5, 0.7, 0.98, 0.999, 1 - 1e-5, 1 - 1e-6])


def test_gmax_is_the_published_schedule():
  """Reference table of the schedule in use: sigma, a, b, c, norm and a / c at four indices."""
  table = np.array(
    [
      [0, 0.005911, 0.999999, 1.4e-6, 0.005911, 1.000016, 169.188],
      [99, 0.500450, 0.989984, 0.010016, 0.497937, 1.108156, 1.98817],
      [499, 2.498253, 0.750399, 0.249601, 2.164126, 2.290533, 0.346745],
      [999, 4.995505, 0.001997, 0.998003, 0.223216, 0.223225, 0.008945],
    ]
  )
  gmax = process.Gmax()
  time = grids.time_of(table[:, 0])
  a, b, c = gmax.marginal(time)
  ours = [np.sqrt(gmax.variance(time)), a, b, c, gmax.rotation(time).norm, a / c]
  np.testing.assert_allclose(np.stack(ours, 1), table[:, 1:], rtol=2e-5, atol=6e-7)


@every_process
def test_the_bridge_starts_at_z0_and_ends_at_z1(name, dtype):
  ends = np.array([0, 1], dtype)
  for time in (ends, jnp.asarray(ends)):
    a, b, c = PROCESSES[name].marginal(time)
    np.testing.assert_array_equal(np.asarray(a), [1, 0])
    np.testing.assert_array_equal(np.asarray(b), [0, 1])
    np.testing.assert_array_equal(np.asarray(c), [0, 0])


@every_process
def test_alpha_and_variance_integrate_the_reference_sde(name):
  """alpha' = f alpha and (sigma^2)' = g^2 / alpha^2, by central differences."""
  p, t, h = PROCESSES[name], np.linspace(0.05, 0.95, 19), 1e-5
  slope = lambda f: (f(t + h) - f(t - h)) / (2 * h)  # noqa: E731
  np.testing.assert_allclose(slope(p.alpha), p.drift(t) * p.alpha(t), atol=1e-7)
  np.testing.assert_allclose(slope(p.variance), p.diffusion(t) / p.alpha(t) ** 2, rtol=1e-7)


def conditioned(mean, cov, given, values):
  """Mean and variance of coordinate 0 of a joint Gaussian given some other coordinates."""
  weights = np.linalg.solve(cov[np.ix_(given, given)], cov[given, 0])
  return mean[0] + weights @ (values - mean[given]), cov[0, 0] - weights @ cov[given, 0]


@every_process
@pytest.mark.parametrize("end, start", [(0.1, 0.2), (0.3, 0.9), (0.5, 0.999), (1e-3, 0.5)])
def test_marginal_and_posterior_are_the_conditioned_joint_gaussian(name, end, start):
  """z at (end, start, 1) given z0 is Gaussian with covariance alpha alpha' sigma_earlier^2."""
  p, rng = PROCESSES[name], np.random.default_rng(0)
  z0, zs, z1 = rng.standard_normal(3)
  t = np.array([end, start, 1.0])
  alpha, variance = p.alpha(t), p.variance(t)
  cov = np.outer(alpha, alpha) * np.minimum.outer(variance, variance)
  t, s = np.array(end), np.array(start)

  mean, var = conditioned(alpha * z0, cov, [2], np.array([z1]))
  a, b, c = p.marginal(t)
  np.testing.assert_allclose(a * z0 + b * z1, mean, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(c**2, var, rtol=1e-9)

  # Markov: the posterior given zs and z1 is that given zs alone.
  mean, var = conditioned(alpha * z0, cov, [1, 2], np.array([zs, z1]))
  posterior = p.posterior(s, t)
  np.testing.assert_allclose(posterior.zs * zs + posterior.z0 * z0, mean, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(posterior.std**2, var, rtol=1e-9)


@every_process
def test_float32_is_exact_next_to_both_ends(name):
  """Against float64 at the same (rounded) times, coefficient by coefficient, relatively."""
  p, time = PROCESSES[name], np.float32(NEAR_ENDS)
  exact, ours = np.float64(time), jnp.asarray(time)
  for f in (p.marginal, p.rotation, p.flow, p.reverse_drift, p.variance_to_go):
    for want, got in zip(jax.tree.leaves(f(exact)), jax.tree.leaves(f(ours)), strict=True):
      scale = np.abs(want) if f not in (p.flow,) else np.maximum(np.abs(want), 1)
      np.testing.assert_array_less(np.abs(np.asarray(got, np.float64) - want), 5e-6 * scale + 1e-37)
  posterior, want = p.posterior(ours[1:], ours[:-1]), p.posterior(exact[1:], exact[:-1])
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-6), posterior, want)
  np.testing.assert_allclose(p.log_snr(ours), p.log_snr(exact), atol=1e-5)


@every_process
def test_log_snr_has_its_inverse(name, dtype):
  p, time = PROCESSES[name], NEAR_ENDS.astype(dtype)
  log_snr = p.log_snr(jnp.asarray(time))
  a, _, c = p.marginal(np.float64(time))
  eps = np.finfo(dtype).eps
  np.testing.assert_allclose(log_snr, 2 * np.log(a / c), rtol=0, atol=200 * eps)
  np.testing.assert_allclose(p.time_of_log_snr(log_snr), time, rtol=200 * eps)


@every_process
def test_rotation_is_the_marginal_at_unit_norm(name):
  p, time = PROCESSES[name], NEAR_ENDS
  (a, _, c), (cos, sin, norm, gain) = p.marginal(time), p.rotation(time)
  n = np.sqrt(a**2 + c**2)
  np.testing.assert_allclose(norm, n, rtol=1e-9)
  np.testing.assert_allclose(cos, a / n, rtol=1e-9)
  np.testing.assert_allclose(sin, c / n, rtol=1e-9)
  np.testing.assert_allclose(gain, a / n**2, rtol=1e-9)
  np.testing.assert_array_equal(p.rotation(np.array([0.0, 1.0])).cos, [1, 0])
  np.testing.assert_allclose(p.rotation(np.array([0.0, 1.0])).sin, [0, 1], rtol=1e-14)


@every_process
def test_the_flow_moves_every_point_along_its_own_interpolant(name):
  """d/dt (a z0 + b z1 + c noise) is the flow at that point: the flow keeps the marginals."""
  p, t, h = PROCESSES[name], np.linspace(0.05, 0.95, 19), 1e-5
  z0, z1, noise = np.random.default_rng(1).standard_normal(3)

  def point(time):
    a, b, c = p.marginal(time)
    return a * z0 + b * z1 + c * noise

  drift = p.flow(t)
  ours = drift.zt * point(t) + drift.z0 * z0 + drift.z1 * z1
  np.testing.assert_allclose(ours, (point(t + h) - point(t - h)) / (2 * h), rtol=1e-6, atol=1e-6)


@every_process
def test_drifts_are_those_of_the_scores(name):
  """f x - g^2 (s - h) and f x - g^2 (s / 2 - h), s the score and h that of the pinning."""
  p, t = PROCESSES[name], np.linspace(0.05, 0.95, 19)
  x, z0, z1 = np.random.default_rng(2).standard_normal(3)
  a, b, c = p.marginal(t)
  alpha, (alpha_1, _) = p.alpha(t), p.ends(t)
  s = -(x - a * z0 - b * z1) / c**2
  h = -(x - alpha / alpha_1 * z1) / (alpha**2 * p.variance_to_go(t))
  for drift, share in ((p.reverse_drift(t), 1.0), (p.flow(t), 0.5)):
    ours = drift.zt * x + drift.z0 * z0 + drift.z1 * z1
    want = p.drift(t) * x - p.diffusion(t) * (share * s - h)
    np.testing.assert_allclose(ours, want, rtol=1e-8, atol=1e-8)


@every_process
def test_gradients_in_time_are_finite_even_at_the_ends(name, dtype):
  p, times = PROCESSES[name], jnp.asarray([0.0, 1e-5, 0.5, 1 - 1e-5, 1.0], dtype)
  methods = (p.marginal, p.rotation, p.log_snr, p.flow, p.reverse_drift, p.variance_to_go)

  @jax.jit
  def gradients(times):
    total = lambda f: lambda x: sum(jnp.sum(y) for y in jax.tree.leaves(f(x)))  # noqa: E731
    inverse = jax.grad(total(p.time_of_log_snr))(p.log_snr(times))
    return [jax.grad(total(method))(times) for method in methods], inverse

  for gradient in jax.tree.leaves(gradients(times)):
    assert np.isfinite(gradient).all()


@every_process
def test_jit_vmap_and_numpy_change_nothing(name, dtype):
  p, time = PROCESSES[name], NEAR_ENDS.astype(dtype)

  def everything(p, t):
    return p.marginal(t), p.rotation(t), p.log_snr(t), p.posterior(t[..., 1:], t[..., :-1])

  # A process is itself a tree, so it may be an argument of a jitted function.
  want = jax.jit(everything)(p, time)
  mapped = jax.jit(jax.vmap(lambda t: everything(p, t)))(time[None])
  for got in (
    jax.tree.map(lambda x: x[0], mapped),
    everything(p, time),
    everything(p, jnp.asarray(time)),
  ):
    tolerance = 20 * np.finfo(dtype).eps
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance), got, want)  # noqa: B023
    assert all(x.dtype == dtype for x in jax.tree.leaves(got))


def test_sample_marginal_has_the_marginal():
  rng, p = np.random.default_rng(3), process.Gmax()
  z0, z1 = (np.full((4, 2, 50, 50, 1), x, np.float32) for x in (0.5, -1.0))
  noise = rng.standard_normal(z0.shape).astype(np.float32)
  time = np.float32([0.05, 0.4, 0.7, 0.99])
  zt = process.sample_marginal(*(p, *map(jnp.asarray, (z0, z1, time, noise))))
  a, b, c = p.marginal(np.float64(time))
  np.testing.assert_allclose(zt.mean((1, 2, 3, 4)), a * 0.5 - b, atol=0.12)
  np.testing.assert_allclose(zt.std((1, 2, 3, 4)), c, rtol=0.03)
