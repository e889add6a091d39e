"""The denoiser: align, predict, guide, read z0 back, with nothing lost between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.bridge import (
  alignment,
  denoiser,
  diffusion,
  grids,
  guidance,
  prediction,
  process,
  samplers,
)

GMAX = process.Gmax()


def clips(n=4):
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.standard_normal((n, 3, 2)), jnp.float32) for _ in range(3))


@pytest.mark.parametrize("kind", ["v", "noise", "z0"])
@pytest.mark.parametrize("diffused", ["videocrafter", "dynamic_rescale"])
def test_a_pretrained_network_denoises_the_bridge_as_it_stands(kind, diffused):
  """A perfect network of the diffusion, which sees x and t_net alone, finds z0 of a bridge state."""
  d = diffusion.videocrafter()
  d = diffusion.dynamic_rescale(d) if diffused == "dynamic_rescale" else d
  z0, z1, noise = clips()
  time = jnp.asarray([0.05, 0.3, 0.6, 0.85], jnp.float32)
  zt = process.sample_marginal(GMAX, z0, z1, time, noise)

  def network(x, t_net, cond):
    a, _, c = (process.per_clip(m, x) for m in d.marginal(t_net))
    eps = (x - a * cond) / c
    return prediction.target(kind, d, cond, cond, eps, t_net, d.rescale_at(t_net))

  denoise = denoiser.denoiser(GMAX, network, kind, z1, (z0,), diffusion=d)
  np.testing.assert_allclose(denoise(zt, time), z0, atol=2e-4)
  if kind != "noise":  # which is completed with the prior's guess
    denoise = denoiser.denoiser(GMAX, network, "psi", z1, (z0,), diffusion=d, pretrained=kind)
    np.testing.assert_allclose(denoise(zt, time), z0, atol=2e-4)


def test_guidance_is_by_the_bridge_s_time_and_in_one_call():
  z0, z1, noise = clips()
  time = jnp.asarray([0.1, 0.4, 0.6, 0.9], jnp.float32)
  calls = []

  def network(x, t_net, cond):
    calls.append(x.shape[0])
    return x * cond[:, None, None]

  ones = jnp.ones(4)
  combine = guidance.text(guidance.interval(7.5, 0.3, 0.7))
  denoise = denoiser.denoiser(GMAX, network, "z0", z1, (ones, 0 * ones), combine)
  guided = denoise(noise, time)
  np.testing.assert_allclose(
    guided, jnp.asarray([1, 7.5, 7.5, 1])[:, None, None] * noise, rtol=1e-5
  )
  assert calls == [8]


def test_the_baseline_is_its_own_diffusion():
  d = diffusion.cogvideox()
  z0, _, noise = clips()
  zero = jnp.zeros_like(z0)
  time = jnp.asarray([10.0, 300, 700, 950], jnp.float32)
  x = process.sample_marginal(d, z0, zero, time, noise)
  told = []

  def network(x, t_net, cond):
    told.append(t_net)
    return prediction.target("v", d, z0, zero, noise, t_net)

  denoise = denoiser.denoiser(d, network, "v", zero, (None,), diffusion=d)
  np.testing.assert_allclose(denoise(x, time), z0, atol=1e-4)
  np.testing.assert_array_equal(told[0], time)


def test_gradients_pass_through(dtype):
  z0, z1, noise = (x.astype(dtype) for x in clips(3))
  time = jnp.asarray([0.0, 0.5, 1.0], dtype)

  def loss(z1):
    denoise = denoiser.denoiser(
      GMAX, lambda x, t, c: x, "psi", z1, (None,), diffusion=diffusion.videocrafter()
    )
    zt = process.sample_marginal(GMAX, z0, z1, time, noise)
    return jnp.sum(denoise(zt, time) ** 2)

  assert np.isfinite(jax.jit(jax.grad(loss))(z1)).all()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["z0", "noise", "v", "psi", "residual"])
def test_an_aligned_bridge_is_a_diffusion_where_its_prediction_does_not_name_the_prior(kind, eta):
  """One network, the same noises: sampled as a bridge and as a diffusion at the times of equal SNR.

  The prior cancels from every step and is left in the condition alone, unless the network is read against it.
  """
  d, times = diffusion.cogvideox(), grids.trailing(12)
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    z1, other, noise = jnp.asarray(rng.standard_normal((3, 2, 4, 3)))
    noises = rng.standard_normal((len(times), 2, 4, 3))
    kernel = rng.standard_normal((3, 3))

    def network(x, t_net, cond):
      return jnp.tanh(x @ kernel + t_net[:, None, None] / 1000)

    def sampled(path, kind, times, z1, start):
      denoise = denoiser.denoiser(path, network, kind, z1, (None,), diffusion=d)
      table = samplers.first_order.table(path, times, eta=eta)
      return samplers.run(table, denoise, start, z1, jnp.asarray(noises))

    a, b, c = GMAX.marginal(times[0])
    of_bridge = sampled(GMAX, kind, times, z1, b * z1 + np.hypot(a, c) * noise)
    if kind in ("z0", "noise", "v"):
      of_diffusion = sampled(d, kind, alignment.net_time(GMAX, d, times), z1, noise)
      np.testing.assert_allclose(of_bridge, of_diffusion, atol=1e-12)
    another = sampled(GMAX, kind, times, other, b * other + np.hypot(a, c) * noise)
    depends = np.abs(of_bridge - another).max()
    assert depends > 0.1 if kind in ("psi", "residual") else depends < 1e-12
