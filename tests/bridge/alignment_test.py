"""SNR alignment: the aligned input is the pretrained diffusion, wherever it can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.bridge import alignment, check, diffusion, grids, process

PROCESSES = {
  "gmax": process.Gmax(),
  "vp": process.VP(),
  "constant": process.constant(1.0),
}
PLAIN = diffusion.scaled_linear()
DIFFUSIONS = {
  "linear": diffusion.linear(),
  "scaled_linear": PLAIN,
  "cosine": diffusion.cosine(),
  "snr_shift": diffusion.shift_snr(PLAIN, 3.0),
  "zero_terminal_snr": diffusion.zero_terminal_snr(PLAIN),
  "cogvideox": diffusion.cogvideox(),
  "dynamic_rescale": diffusion.dynamic_rescale(PLAIN),
}
TIMES = np.concatenate([[1e-5, 1e-4], np.linspace(1e-3, 1 - 1e-3, 200), [1 - 1e-4, 1 - 1e-5]])


@pytest.mark.parametrize("diffused", DIFFUSIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_aligned_marginal_is_the_pretrained_one(name, diffused):
  """Mean, variance and SNR below 1e-11 (float32: 1e-6) wherever the diffusion has that SNR."""
  p, d = PROCESSES[name], DIFFUSIONS[diffused]
  errors = check.errors(p, d, TIMES)
  met = errors.met
  assert met.sum() > 100
  for error in (errors.mean, errors.prior, errors.variance, errors.snr):
    assert np.abs(error[met]).max() < 1e-11
  # Beyond, the network is told its nearest time and sees the norm it knows.
  beyond = ~met
  assert set(np.asarray(errors.t_net)[beyond]) <= {0.0, float(d.last)}
  known = d.marginal(errors.t_net)
  norm2 = (errors.mean + known.a) ** 2 + errors.variance + known.c**2
  np.testing.assert_allclose(norm2, known.a**2 + known.c**2, rtol=1e-12)

  single = check.errors(p, d, np.float32(TIMES))
  met = met & single.met
  for error in (single.mean, single.prior, single.variance):
    assert np.abs(error[met]).max() < 1e-6
  # The network's time is a float32 too: its last place, times the slope of the log-SNR there.
  slope = -np.diff(d.log_snrs)[np.clip(np.floor(single.t_net).astype(int), 0, d.last - 1)]
  resolution = np.spacing(single.t_net) * slope
  np.testing.assert_array_less(np.abs(single.snr[met]), (4e-6 + resolution)[met])


def test_published_times_of_videocrafter_and_cogvideox():
  """The reference's table of aligned times at 13 indices, first cell and last cell included."""
  index = np.array([0, 1, 7, 8, 9, 19, 99, 199, 499, 899, 949, 979, 999.0])
  vc = [0.1913, 0.6253, 0.9988, 1.545, 2.037, 10.588, 170.61, 359.99, 662.91, 938.35, 999.03]
  vc += [999.392, 999.869]
  cog = [0.1130, 0.5573, 0.9395, 0.9547, 0.9669, 2.863, 73.746, 199.25, 482.08, 762.08, 818.59]
  cog += [872.64, 965.72]
  p, time = process.Gmax(), grids.time_of(index)
  for d, want in ((diffusion.videocrafter(), vc), (diffusion.cogvideox(), cog)):
    np.testing.assert_allclose(alignment.net_time(p, d, time, "published"), want, atol=6e-3)


def test_exact_and_published_agree_inside_and_part_at_the_ends():
  """0.026 of a step inside; the published rule's first cell and last cell are its own."""
  p, time = process.Gmax(), grids.time_of(np.arange(1000.0))
  for d, first, last in ((diffusion.videocrafter(), 8, 947), (diffusion.cogvideox(), 14, 1000)):
    exact, published = (alignment.net_time(p, d, time, rule) for rule in ("exact", "published"))
    apart = np.abs(exact - published)
    assert apart[first:last].max() < 0.027
    assert 0.1 < apart[:first].max() < 0.97
    assert np.all(np.diff(published) > 0) and np.all(np.diff(exact) >= 0)
    assert exact.min() == 0 and exact.max() <= d.last
  assert alignment.net_time(p, diffusion.videocrafter(), time, "published").max() > 999


def arrays(dtype, n):
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.standard_normal((n, 3, 2)), dtype) for _ in range(3))


def test_the_ends_are_the_limits(dtype):
  """At 0 the input is z0 at time 0; next to 1 it is the noise at the noisiest time."""
  p, d = process.Gmax(), diffusion.videocrafter()
  z0, z1, noise = arrays(dtype, 3)
  time = jnp.asarray([0.0, 1 - 2.0**-22, 1.0], dtype)
  zt = process.sample_marginal(p, z0, z1, time, noise)
  x, t_net = alignment.align(p, d, zt, z1, time)
  np.testing.assert_array_equal(t_net, [0, 999, 999])
  np.testing.assert_allclose(x[0], z0[0], rtol=1e-6)
  np.testing.assert_allclose(x[1], noise[1], atol=2e-3)
  np.testing.assert_array_equal(x[2], 0)


def test_gradients_are_finite_at_both_ends(dtype):
  time = jnp.asarray([0.0, 1e-5, 0.5, 1 - 1e-5, 1.0], dtype)
  z0, z1, noise = arrays(dtype, 5)
  d = diffusion.dynamic_rescale(diffusion.cogvideox())
  for rule in ("exact", "published", "published_latte"):

    def total(arguments, rule=rule):
      z0, z1, noise, time = arguments
      zt = process.sample_marginal(process.Gmax(), z0, z1, time, noise)
      x, t_net = alignment.align(process.Gmax(), d, zt, z1, time, rule)
      return jnp.sum(x) + jnp.sum(t_net)

    for gradient in jax.jit(jax.grad(total))((z0, z1, noise, time)):
      assert np.isfinite(gradient).all()


def test_jit_and_vmap_change_nothing(dtype):
  p, d = process.Gmax(), diffusion.videocrafter()
  zt, z1, _ = arrays(dtype, 4)
  time = jnp.asarray([0.01, 0.3, 0.7, 0.99], dtype)
  align = lambda *arguments: alignment.align(p, d, *arguments)  # noqa: E731
  want = align(zt, z1, time)
  one_by_one = jax.vmap(lambda *a: align(*(x[None] for x in a)))(zt, z1, time)
  eps = np.finfo(dtype).eps
  for got in (jax.jit(align)(zt, z1, time), jax.tree.map(lambda x: x[:, 0], one_by_one)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e3 * eps), got, want)


def test_without_a_diffusion_the_network_sees_the_bridge_itself():
  zt, z1, _ = arrays(np.float32, 2)
  time = jnp.asarray(grids.time_of(np.array([0.0, 999.0])), jnp.float32)
  x, t_net = alignment.align(process.Gmax(), None, zt, z1, time)
  np.testing.assert_array_equal(x, zt)
  np.testing.assert_allclose(t_net, [0, 999], atol=1e-4)
  d = diffusion.linear()
  _, t_net = alignment.align(process.Gmax(), None, zt, z1, jnp.array([1 / 51, 50 / 51]), steps=50)
  np.testing.assert_allclose(t_net, [0, 49], atol=1e-4)
  x, t_net = alignment.align(d, d, zt, z1, time)
  np.testing.assert_array_equal(x, zt)
  np.testing.assert_array_equal(t_net, time)


def test_an_unknown_rule_is_named(unchecked):
  with pytest.raises(ValueError, match="no alignment rule named 'official'"):
    alignment.net_time(process.Gmax(), diffusion.linear(), np.array([0.5]), "official")


def test_the_published_table_holds_every_time_of_a_bridge_of_other_steps():
  """Its invented first knot lies beyond the first time of the bridge, whatever the number of times."""
  p, d = process.Gmax(), diffusion.videocrafter()
  for steps in (1000, 100_000):
    first = grids.time_of(np.zeros(1), steps)
    told = alignment.net_time(p, d, first, "published", steps)
    assert told[0] > 0
  assert alignment.net_time(p, d, first, "published")[0] == 0  # the table of 1000 ends before
