"""Predictions: targets, recoveries, conversions, and what their errors cost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.bridge import diffusion, grids, prediction, process

KINDS = ("z0", "residual", "noise", "v", "psi", "velocity")
PROCESSES = {"gmax": process.Gmax(), "vp": process.VP(), "constant": process.constant(1.0)}
TIMES = (1e-5, 0.02, 0.5, 0.98, 1 - 1e-5)


def clips(dtype, batch=5):
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.standard_normal((batch, 6, 7)), dtype) for _ in range(3))


def test_targets_are_their_definitions():
  """psi = (zt - z0) / sigma, v = (a noise - c z0) / n, velocity = g^2 (zt - z0) / sigma^2."""
  p = process.Gmax()
  with jax.enable_x64(True):
    z0, z1, noise = clips(np.float64)
    time = jnp.asarray(TIMES, jnp.float64)
    zt = process.sample_marginal(p, z0, z1, time, noise)
    a, _, c = (process.per_clip(x, z0) for x in p.marginal(time))
    sigma = process.per_clip(jnp.sqrt(p.variance(time)), z0)
    g2 = process.per_clip(p.diffusion(time), z0)
    want = {
      "z0": z0,
      "residual": z0 - z1,
      "noise": noise,
      "v": (a * noise - c * z0) / jnp.sqrt(a**2 + c**2),
      "psi": (zt - z0) / sigma,
      "velocity": g2 * (zt - z0) / sigma**2,
    }
    for kind, target in want.items():
      got = prediction.target(kind, p, z0, z1, noise, time)
      np.testing.assert_allclose(got, target, rtol=1e-9, atol=1e-9)


def test_velocity_is_the_drift_of_the_reverse_sde_also_with_drift():
  p, time = process.VP(), jnp.asarray(TIMES, jnp.float32)
  z0, z1, noise = clips(np.float32)
  zt = process.sample_marginal(p, z0, z1, time, noise)
  drift = p.reverse_drift(time)
  want = process.per_clip(drift.zt, z0) * zt + process.per_clip(drift.z0, z0) * z0
  got = prediction.target("velocity", p, z0, z1, noise, time)
  np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


def condition(coefficients, inputs, output):
  """How much of its inputs' relative rounding an affine map hands on, clip by clip."""
  rms = lambda x: np.sqrt(np.mean(np.square(x, dtype=np.float64), (1, 2)))  # noqa: E731
  return sum(np.abs(k) * rms(x) for k, x in zip(coefficients, inputs, strict=True)) / rms(output)


PAIRS = list(itertools.permutations(KINDS, 2))


@jax.jit
def convert_all(p, z0, z1, noise, time):
  """zt, the targets, every target said as every other, and z0 recovered from each."""
  zt = process.sample_marginal(p, z0, z1, time, noise)
  target = {kind: prediction.target(kind, p, z0, z1, noise, time) for kind in KINDS}
  pairwise = {
    (kind, to): prediction.convert(kind, to, p, target[kind], zt, z1, time) for kind, to in PAIRS
  }
  own = {kind: prediction.recover(kind, p, target[kind], zt, z1, time) for kind in KINDS}
  return zt, target, pairwise, own


@pytest.mark.parametrize("name", PROCESSES)
def test_every_pair_of_predictions_converts_both_ways(name, dtype):
  """At five times, both ends among them. Where the map is well conditioned float32 keeps 1e-4;
  where it is not, the condition number is printed, and the error stays below what it explains."""
  p, eps = PROCESSES[name], np.finfo(dtype).eps
  z0, z1, noise = clips(dtype)
  time = jnp.asarray(TIMES, dtype)
  exact = np.float64(time)
  if name == "vp":  # the numpy path, which compiles nothing
    numbers = (np.asarray(x) for x in (z0, z1, noise, time))
    zt, target, pairwise, own = convert_all.__wrapped__(p, *numbers)
  else:
    zt, target, pairwise, own = convert_all(p, z0, z1, noise, time)
  for kind, to in PAIRS:
    # to = forward . (z0, z1, noise), with z0 and noise rows of (zt, z1, F): the sizes of all terms.
    rows, (f0, f1, fn) = prediction.rows(kind, p, exact), prediction.rows(to, p, exact).forward
    terms = [
      np.abs(f0 * d) + np.abs(fn * n) + (i == 1) * np.abs(f1)
      for i, (d, n) in enumerate(zip(rows.data, rows.noise, strict=True))
    ]
    cond = condition(terms, (zt, z1, target[kind]), target[to])
    error = distance(pairwise[kind, to], target[to])
    np.testing.assert_array_less(error, 30 * eps * cond, err_msg=f"{name} {kind} to {to}")
    if dtype == np.float32:
      good = cond < 25
      np.testing.assert_array_less(error[good], 1e-4, err_msg=f"{name} {kind} to {to}")
      for t, k, e in zip(exact[~good], cond[~good], error[~good], strict=True):
        print(f"{name}: {kind} to {to} at {t:.5f}: condition {k:.1e}, error {e:.1e}")
  for kind in KINDS:
    terms = np.abs(prediction.rows(kind, p, exact).data)
    cond = condition(terms, (zt, z1, target[kind]), z0)
    np.testing.assert_array_less(distance(own[kind], z0), 30 * eps * cond)


def distance(got, want):
  """Largest deviation per clip, over the root mean square of what is wanted."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return np.abs(got - want).max((1, 2)) / np.sqrt(np.mean(want**2, (1, 2)))


def test_recovery_has_its_limits_at_the_ends(dtype):
  """At time 1: psi gives z1 - sigma_1 F, v gives -F; at time 0 all but the noise give zt."""
  p = process.Gmax()
  zt, z1, pred = clips(dtype, batch=2)
  time = jnp.asarray([0.0, 1.0], dtype)
  zt = zt.at[1].set(z1[1])
  recover = lambda kind: prediction.recover(kind, p, pred, zt, z1, time)  # noqa: E731
  eps = 8 * np.finfo(dtype).eps
  np.testing.assert_allclose(
    recover("psi")[1], z1[1] - np.sqrt(25.005) * pred[1], rtol=eps, atol=eps
  )
  np.testing.assert_allclose(recover("v")[1], -pred[1], rtol=eps, atol=eps)
  for kind in ("psi", "v", "velocity", "noise"):
    np.testing.assert_allclose(recover(kind)[0], zt[0], rtol=eps, atol=eps)


def test_gains_are_those_of_the_reference():
  """1, c / a, c / n, sigma: an error of the prediction, seen in z0."""
  p, time = process.Gmax(), grids.time_of(np.array([0.0, 499.0, 999.0]))
  (a, _, c), n = p.marginal(time), p.rotation(time).norm
  gain = lambda kind: prediction.gain(kind, p, jnp.asarray(time, jnp.float32))  # noqa: E731
  for kind, want in (
    ("z0", 1.0),
    ("noise", c / a),
    ("v", c / n),
    ("psi", np.sqrt(p.variance(time))),
  ):
    np.testing.assert_allclose(gain(kind), want * np.ones(3), rtol=1e-4)
  assert abs(float(gain("noise")[2]) - 111.8) < 0.1


def test_a_loss_weight_makes_one_loss_of_another():
  """An error of F as v, weighted, is the square error of the same mistake told as psi."""
  p, time = process.Gmax(), jnp.asarray(TIMES, jnp.float32)
  z0, z1, noise = clips(np.float32)
  zt = process.sample_marginal(p, z0, z1, time, noise)
  v = prediction.target("v", p, z0, z1, noise, time)
  wrong = v + 0.1
  as_psi = lambda pred: prediction.convert("v", "psi", p, pred, zt, z1, time)  # noqa: E731
  error = jnp.mean((as_psi(wrong) - as_psi(v)) ** 2, (1, 2))
  weight = prediction.loss_weight("v", "psi", p, time)
  np.testing.assert_allclose(weight[1:4] * 0.01, error[1:4], rtol=1e-3)


def test_diffusions_use_the_same_targets(dtype):
  d = diffusion.cogvideox()
  z0, _, noise = clips(dtype, batch=3)
  time = jnp.asarray([3.5, 500, 998], dtype)
  zt = process.sample_marginal(d, z0, jnp.zeros_like(z0), time, noise)
  a, _, c = (process.per_clip(x, z0) for x in d.marginal(time))
  v = prediction.target("v", d, z0, z0, noise, time)
  np.testing.assert_allclose(v, a * noise - c * z0, atol=2e-5)
  for kind in ("z0", "noise", "v"):
    target = prediction.target(kind, d, z0, z0, noise, time)
    back = prediction.recover(kind, d, target, zt, z0, time)
    np.testing.assert_allclose(back[:2], z0[:2], atol=2e-5)


def test_v_under_dynamic_rescale_is_that_of_the_shrunken_data(dtype):
  """sqrt(abar) noise - sqrt(1 - abar) s z0 of the diffusion, and z0 comes back whole."""
  d = diffusion.dynamic_rescale(diffusion.videocrafter())
  z0, _, noise = clips(dtype, batch=3)
  time = jnp.asarray([10, 250.5, 800], dtype)
  zt = process.sample_marginal(d, z0, jnp.zeros_like(z0), time, noise)
  s = d.rescale_at(time)
  a, _, c = (process.per_clip(x, z0) for x in d.marginal(time))
  v = prediction.target("v", d, z0, z0, noise, time, s)
  shrink = process.per_clip(s, z0)
  np.testing.assert_allclose(v, a / shrink * noise - c * shrink * z0, atol=1e-5)
  np.testing.assert_allclose(prediction.recover("v", d, v, zt, z0, time, s), z0, atol=2e-5)
  np.testing.assert_allclose(prediction.recover_noise("v", d, v, zt, z0, time, s), noise, atol=2e-4)


def test_gradients_are_finite_at_both_ends(dtype):
  """In every array and in time, at 0 and 1 exactly and next to them."""
  p = process.Gmax()
  z0, z1, noise = clips(dtype)
  time = jnp.asarray([0.0, 1e-5, 0.5, 1 - 1e-5, 1.0], dtype)

  @jax.jit
  @jax.grad
  def gradients(arguments):
    z0, z1, noise, time = arguments
    zt = process.sample_marginal(p, z0, z1, time, noise)
    total = 0.0
    for kind in KINDS:
      pred = prediction.target(kind, p, z0, z1, noise, time)
      total += jnp.sum(pred) + jnp.sum(prediction.gain(kind, p, time))
      total += jnp.sum(prediction.recover(kind, p, pred, zt, z1, time))
      total += jnp.sum(prediction.recover_noise(kind, p, pred, zt, z1, time))
      total += jnp.sum(prediction.loss_weight(kind, "psi", p, time))
    return total

  for gradient in gradients((z0, z1, noise, time)):
    assert np.isfinite(gradient).all()


def test_an_unknown_kind_is_named(unchecked):
  with pytest.raises(ValueError, match="no prediction named 'x0'"):
    prediction.rows("x0", process.Gmax(), np.array([0.5]))
  with pytest.raises(ValueError, match="psi needs a bridge"):
    prediction.rows("psi", diffusion.linear(), np.array([5.0]))
