"""Samplers: what each step keeps, how fast each converges, what a clip's noise depends on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.bridge import alignment, diffusion, grids, prediction, process, samplers

GMAX = process.Gmax()
PROCESSES = {"gmax": GMAX, "vp": process.VP(), "constant": process.constant(1.0)}
BRIDGE_SAMPLERS = {
  "sde": (samplers.sde, {}, lambda n: n),
  "ode": (samplers.ode, {}, lambda n: n),
  "first_order": (samplers.first_order, {"eta": 0.4}, lambda n: n),
  "euler_maruyama": (samplers.euler_maruyama, {}, lambda n: n),
  "heun": (samplers.heun, {}, lambda n: 2 * n - 1),
  "dbim1": (samplers.dbim, {"order": 1}, lambda n: n),
  "dbim2": (samplers.dbim, {"order": 2}, lambda n: n),
  "dbim3": (samplers.dbim, {"order": 3}, lambda n: n),
  "ddbm": (samplers.ddbm, {}, lambda n: 3 * n - 2),
  "ddbm_without_churn": (samplers.ddbm, {"churn": 0.0}, lambda n: 2 * n - 1),
}
every_sampler = pytest.mark.parametrize("name", BRIDGE_SAMPLERS)
TIMES = grids.trailing(12)


# What one step does to a marginal


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("path", [*PROCESSES.values(), diffusion.videocrafter()])
def test_a_step_of_any_eta_maps_marginal_onto_marginal(path, eta):
  """With the true z0: k a_s + pred = a_t, k b_s + z1 = b_t, k^2 c_s^2 + noise^2 = c_t^2."""
  times = TIMES if isinstance(path, process.Bridge) else grids.trailing_indices(12).astype(float)
  table = samplers.first_order.table(path, times, eta=eta)
  a, b, c = path.marginal(times)
  k, pred, z1, noise = (x[:-1] for x in (table.zt, table.pred, table.z1, table.noise))
  np.testing.assert_allclose(k * a[:-1] + pred, a[1:], rtol=1e-13)
  np.testing.assert_allclose(k * b[:-1] + z1, b[1:], rtol=1e-13, atol=1e-15)
  np.testing.assert_allclose((k * c[:-1]) ** 2 + noise**2, c[1:] ** 2, rtol=1e-11)
  assert np.all(k >= 0) and np.any(noise) == (eta > 0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_marginal_is_preserved_by_a_step_as_it_is_run(eta, dtype):
  """Drawn from q(zs | z0, z1), stepped by the scan with the true z0: distributed as q(zt | ...)."""
  clips, times = 40000, np.array([0.8, 0.5])
  z0, z1 = jnp.full((clips, 1), 0.6, dtype), jnp.full((clips, 1), -0.9, dtype)
  noise = jax.random.normal(jax.random.key(0), z0.shape, dtype)
  zs = process.sample_marginal(GMAX, z0, z1, jnp.full(clips, times[0], dtype), noise)
  step = jax.tree.map(lambda column: column[:1], samplers.first_order.table(GMAX, times, eta=eta))
  keys = jax.random.split(jax.random.key(1), clips)
  zt = np.asarray(samplers.run(step, lambda zt, time: z0, zs, z1, keys))
  a, b, c = GMAX.marginal(times[1])
  np.testing.assert_allclose(zt.mean(), a * 0.6 - b * 0.9, atol=4 * c / np.sqrt(clips))
  np.testing.assert_allclose(zt.std(), c, rtol=0.015)


@pytest.mark.parametrize("name", PROCESSES)
def test_eta_one_is_the_posterior_and_eta_zero_the_published_ode(name):
  p, s, t = PROCESSES[name], TIMES[:-1], TIMES[1:]
  sde, ode = (f.table(p, TIMES) for f in (samplers.sde, samplers.ode))
  posterior = p.posterior(s, t)
  for got, want in ((sde.zt, posterior.zs), (sde.pred, posterior.z0), (sde.noise, posterior.std)):
    np.testing.assert_allclose(got[:-1], want, rtol=1e-12)
  np.testing.assert_allclose(sde.z1[:-1], 0, atol=1e-15)

  # The reference's ODE coefficients.
  root = lambda f: (np.sqrt(f(s)), np.sqrt(f(t)))  # noqa: E731
  (sigma_s, sigma_t), (bar_s, bar_t) = root(p.variance), root(p.variance_to_go)
  alpha_s, alpha_t, (alpha_1, total) = p.alpha(s), p.alpha(t), p.ends(t)
  k = alpha_t * sigma_t * bar_t / (alpha_s * sigma_s * bar_s)
  z1 = alpha_t / (alpha_1 * total) * (sigma_t**2 - sigma_s * sigma_t * bar_t / bar_s)
  z0 = alpha_t / total * (bar_t**2 - bar_s * sigma_t * bar_t / sigma_s)
  np.testing.assert_allclose(ode.zt[:-1], k, rtol=1e-12)
  np.testing.assert_allclose(ode.z1[:-1], z1, rtol=1e-9, atol=1e-14)
  np.testing.assert_allclose(ode.pred[:-1], z0, rtol=1e-9, atol=1e-14)
  assert not np.any(ode.noise)


def test_published_coefficients_of_fifty_steps():
  """k, coefficient of z0_hat and noise at four transitions of the reference."""
  table = samplers.sde.table(GMAX, grids.trailing(50))
  got = np.stack([table.zt, table.pred, table.noise], 1)[[0, 24, 47, 48]]
  want = [[0.9604, 0.0396, 0.974], [0.925, 0.075, 0.686], [0.446, 0.554, 0.150]]
  np.testing.assert_allclose(got, [*want, [0.2525, 0.7475, 0.0872]], atol=6e-4)


def test_corrected_euler_maruyama_has_the_bridge_s_variance_and_is_exact_for_brownian_motion():
  for p in (GMAX, process.constant(1.0)):
    table = samplers.euler_maruyama.table(p, grids.uniform(40, 0.95, 0.2))
    c = p.marginal(table.time).c
    k, noise = table.zt[:-1], table.noise[:-1]
    np.testing.assert_allclose((k * c[:-1]) ** 2 + noise**2, c[1:] ** 2, rtol=1e-12)
  p = process.constant(1.0)
  exact, ours = samplers.sde.table(p, TIMES), samplers.euler_maruyama.table(p, TIMES)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), ours, exact)


def test_dbim_of_order_one_is_the_ode():
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12),
    samplers.dbim.table(GMAX, TIMES, order=1),
    samplers.ode.table(GMAX, TIMES),
  )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dbim_integrates_polynomials_of_its_order_exactly(order):
  """z0_hat a polynomial in log-SNR of degree order - 1: the state equals the flow's, by quadrature."""
  times = grids.log_snr(GMAX, 8, 0.9, 0.2) ** 1.1  # uneven on purpose
  half = lambda t: 0.5 * GMAX.log_snr(t)  # noqa: E731
  poly = lambda t: sum((half(t) - 0.3) ** i for i in range(order))  # noqa: E731
  table = samplers.dbim.table(GMAX, times, order=order)
  i = len(times) - 2  # all of its history is there
  row = jax.tree.map(lambda column: column[i], table)
  moved = sum(x * poly(times[i - j]) for j, x in enumerate((row.pred, row.pred1, row.pred2)))
  a, _, c = GMAX.marginal(times)
  nodes, weights = np.polynomial.legendre.leggauss(40)
  r = (a[i] / c[i] + a[i + 1] / c[i + 1]) / 2 + (a[i + 1] / c[i + 1] - a[i] / c[i]) / 2 * nodes
  at = GMAX.time_of_log_snr(2 * np.log(r))
  integral = (a[i + 1] / c[i + 1] - a[i] / c[i]) / 2 * np.sum(weights * poly(at))
  np.testing.assert_allclose(moved, c[i + 1] * integral, rtol=1e-10)


# Convergence


MEAN, STD = 0.7, 0.5


def gaussian_denoise(p, z1):
  """E[z0 | zt, z1] for z0 ~ N(MEAN, STD^2), whatever z1."""

  def denoise(zt, time):
    a, b, c = (process.per_clip(x, zt) for x in p.marginal(time))
    return (MEAN * c**2 + STD**2 * a * (zt - b * z1)) / (c**2 + a**2 * STD**2)

  return denoise


def exact_flow(p, z1, zt, start, end):
  """Where the probability flow of that Gaussian takes zt."""
  a, b, c = p.marginal(np.array(start))
  white = (zt - b * z1 - a * MEAN) / np.sqrt(a**2 * STD**2 + c**2)
  a, b, c = p.marginal(np.array(end))
  return a * MEAN + b * z1 + np.sqrt(a**2 * STD**2 + c**2) * white


@pytest.mark.parametrize("path", ["gmax", "vp"])
@pytest.mark.parametrize(
  "name, order", [("ode", 1), ("heun", 2), ("dbim2", 2), ("dbim3", 3), ("ddbm_without_churn", 2)]
)
def test_order_of_convergence(name, order, path):
  """Slopes of the error against the number of steps, doubling: 0.95, 1.9, 2.8 at least."""
  p, (sampler, options, _) = PROCESSES[path], BRIDGE_SAMPLERS[name]
  with jax.enable_x64(True):
    z1 = jnp.full((3, 2), -0.3)
    zt = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2)))
    denoise, errors = gaussian_denoise(p, z1), []
    for n in (80, 160, 320):
      times = grids.log_snr(p, n, 0.95, 0.05)
      z0 = sampler(
        p, denoise, z1, times, jax.random.split(jax.random.key(0), 3), start=zt, **options
      )
      end = exact_flow(p, z1, zt, times[0], times[-1])
      errors.append(float(jnp.abs(z0 - denoise(end, jnp.full(3, times[-1]))).max()))
  slopes = np.log2(np.divide(errors[:-1], errors[1:]))
  print(f"{path} {name}: errors {errors}, slopes {slopes.round(3)}")
  assert slopes.min() > {1: 0.95, 2: 1.9, 3: 2.8}[order]


@pytest.mark.parametrize("name", ["sde", "first_order", "euler_maruyama"])
def test_stochastic_samplers_converge_in_law(name):
  """The toy is linear, so the law of z0 is carried along exactly: its variance has order 1."""
  sampler, options, _ = BRIDGE_SAMPLERS[name]
  errors = []
  for n in (100, 200, 400):
    table = sampler.table(GMAX, grids.log_snr(GMAX, n, 0.999, 0.01), **options)
    a, _, c = GMAX.marginal(table.time)
    slope = STD**2 * a / (c**2 + a**2 * STD**2)  # of z0_hat in zt
    variance = c[0] ** 2 + a[0] ** 2 * STD**2
    for row, gain in zip(zip(*table, strict=True), slope, strict=True):
      row = samplers.Table(*row)
      variance = (row.zt + row.pred * gain) ** 2 * variance + row.noise**2
    end = slope[-1] ** 2 * (c[-1] ** 2 + a[-1] ** 2 * STD**2)
    errors.append(abs(variance - end))
  slopes = np.log2(np.divide(errors[:-1], errors[1:]))
  print(f"{name}: errors of the variance {errors}, slopes {slopes.round(3)}")
  assert slopes.min() > 0.95


def test_diffusion_samplers_converge_to_the_data():
  """DDIM and DDPM of the baseline, through the same scan: mean and spread of the Gaussian."""
  d, clips = diffusion.videocrafter(), 4000
  z1 = jnp.zeros((clips, 1))
  keys = jax.random.split(jax.random.key(0), clips)
  times = grids.trailing_indices(200).astype(float)
  denoise = gaussian_denoise(d, z1)
  for sampler, options in (
    (samplers.ddim, {}),
    (samplers.ddim, {"eta": 1.0}),
    (samplers.ddim, {"last": 0.0}),
    (samplers.ddpm, {"variance": "small"}),
    (samplers.ddpm, {"variance": "large"}),
  ):
    z0 = np.asarray(sampler(d, denoise, z1, times, keys, **options))
    np.testing.assert_allclose(z0.mean(), MEAN, atol=0.03)
    np.testing.assert_allclose(z0.std(), STD, rtol=0.05)


def test_ddim_and_ddpm_are_the_textbook_s():
  d, times = diffusion.videocrafter(), grids.trailing_indices(20).astype(float)
  abar = d.marginal(times).a ** 2
  now, then = abar[:-1], abar[1:]
  for eta in (0.0, 0.6, 1.0):
    table = samplers.ddim.table(d, times, eta=eta)
    sigma = eta * np.sqrt((1 - then) / (1 - now)) * np.sqrt(1 - now / then)
    direction = np.sqrt(1 - then - sigma**2)
    np.testing.assert_allclose(table.noise[:-1], sigma, atol=1e-12)
    np.testing.assert_allclose(table.zt[:-1], direction / np.sqrt(1 - now), rtol=1e-9)
    pred = np.sqrt(then) - direction * np.sqrt(now) / np.sqrt(1 - now)
    np.testing.assert_allclose(table.pred[:-1], pred, rtol=1e-9)
  large = samplers.ddpm.table(d, times)
  np.testing.assert_allclose(large.noise[:-1], np.sqrt(1 - now / then), rtol=1e-9)
  small = samplers.ddpm.table(d, times, variance="small")
  beta_tilde = (1 - now / then) * (1 - then) / (1 - now)
  np.testing.assert_allclose(small.noise[:-1], np.sqrt(beta_tilde), rtol=1e-9)
  assert samplers.ddim.table(d, times, last=0.0).pred[-1] < 1


# Running


@every_sampler
def test_a_sampler_evaluates_as_often_as_it_says_and_finds_z0(name):
  """The denoiser that knows z0 is asked NFE times and believed at the end."""
  sampler, options, nfe = BRIDGE_SAMPLERS[name]
  z0, z1 = jnp.full((2, 3, 4, 4, 1), 0.5), jnp.zeros((2, 3, 4, 4, 1))
  asked = []

  def denoise(zt, time):
    asked.append(float(time[0]))
    return z0

  keys = jax.random.split(jax.random.key(0), 2)
  with jax.disable_jit():
    out = sampler(GMAX, denoise, z1, TIMES[:5], keys, **options)
  assert len(asked) == nfe(5) and np.all(np.diff(asked) <= 0)
  np.testing.assert_array_equal(out, z0)


def nonlinear(zt, time):
  return jnp.tanh(zt) * (1 - time).reshape(-1, *[1] * (zt.ndim - 1))


@pytest.mark.parametrize("name", ["sde", "heun", "dbim3", "ddbm"])
def test_a_clip_depends_on_its_own_key_alone(name):
  """Not on its place in the batch, nor on the batch; jitted or not."""
  sampler, options, _ = BRIDGE_SAMPLERS[name]
  times = grids.uniform(5, 0.9, 0.3)
  z1 = jax.random.normal(jax.random.key(7), (3, 2, 2))
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(3))
  sample = jax.jit(lambda z1, keys: sampler(GMAX, nonlinear, z1, times, keys, **options))
  together = sample(z1, keys)
  order = jnp.array([2, 0, 1])
  np.testing.assert_allclose(sample(z1[order], keys[order]), together[order], rtol=1e-5, atol=1e-6)
  alone = sample(z1[1:2], keys[1:2])
  np.testing.assert_allclose(alone[0], together[1], rtol=1e-5, atol=1e-6)
  mapped = jax.vmap(lambda z, k: sample(z[None], k[None])[0])(z1, keys)
  np.testing.assert_allclose(mapped, together, rtol=1e-5, atol=1e-6)
  eager = sampler(GMAX, nonlinear, z1, times, keys, **options)
  np.testing.assert_allclose(eager, together, rtol=1e-5, atol=1e-6)
  other = sample(z1, jax.random.split(jax.random.key(1), 3))
  assert np.abs(other - together).max() > 1e-2


@every_sampler
def test_gradients_of_a_sampler_are_finite_on_the_published_grid(name):
  sampler, options, _ = BRIDGE_SAMPLERS[name]
  keys = jax.random.split(jax.random.key(0), 2)

  def loss(z1):
    return jnp.sum(sampler(GMAX, nonlinear, z1, grids.trailing(4), keys, **options) ** 2)

  assert np.isfinite(jax.jit(jax.grad(loss))(jnp.ones((2, 3)))).all()


def test_each_sampler_is_one_program():
  """New keys, new latents and even a new grid of the same length compile nothing."""
  compiled = []

  def count(event, *_, **__):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(event)

  z1 = [jax.random.normal(jax.random.key(i), (2, 3)) for i in range(3)]
  keys = [jax.random.split(jax.random.key(10 + i), 2) for i in range(3)]
  programs = []
  for sampler, options, _ in BRIDGE_SAMPLERS.values():

    def one(z1, keys, sampler=sampler, options=options):
      return sampler(GMAX, nonlinear, z1, TIMES, keys, **options)

    programs.append(jax.jit(one))
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    for i, program in enumerate(programs):
      for latent, key in zip(z1, keys, strict=True):
        program(latent, key)
      assert len(compiled) == i + 1
    # With the table as an argument one program serves every grid and every sampler of its NFE.
    compiled.clear()
    run = jax.jit(lambda table, zt, keys: samplers.run(table, nonlinear, zt, zt, keys))
    for sampler, times in itertools.product(
      (samplers.sde, samplers.dbim, samplers.euler_maruyama), (TIMES, grids.karras(12))
    ):
      run(jax.tree.map(np.float32, sampler.table(GMAX, times)), z1[0], keys[0])
    assert len(compiled) == 1
  finally:
    jax.monitoring.unregister_event_duration_listener(count)


def test_recorded_noise_repeats_a_run():
  noise = jnp.asarray(np.random.default_rng(0).standard_normal((11, 2, 3)), jnp.float32)
  z1 = jnp.ones((2, 3))
  out = samplers.sde(GMAX, nonlinear, z1, TIMES, noise, start="published")
  zt, table = z1, samplers.sde.table(GMAX, np.float64(np.float32(TIMES)))
  for i in range(11):
    pred = nonlinear(zt, jnp.full(2, table.time[i], jnp.float32))
    zt = table.zt[i] * zt + table.pred[i] * pred + table.noise[i] * noise[i]
  want = nonlinear(zt, jnp.full(2, table.time[-1], jnp.float32))
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


def test_starts():
  """From noise the state has the marginal's spread around z1; the published start has none."""
  z1 = jnp.ones((5000, 2))
  keys = jax.random.split(jax.random.key(0), 5000)
  time = grids.time_of(np.array(999.0))
  zt = samplers.start_state(GMAX, z1, float(time), keys, "noise")
  np.testing.assert_allclose(zt.mean(), 1, atol=0.01)
  np.testing.assert_allclose(zt.std(), GMAX.marginal(time).c, rtol=0.03)
  np.testing.assert_array_equal(samplers.start_state(GMAX, z1, 0.9, keys, "published"), z1)
  assert abs(samplers.start_state(diffusion.linear(), z1, 999.0, keys, "noise").std() - 1) < 0.02


def test_a_booted_start_is_the_noise_the_network_knows():
  """The first input is the noise at the noisiest time, and the flow carries that same noise on."""
  d, grid = diffusion.videocrafter(), grids.boot(grids.uniform(6))
  z1, keys = jnp.full((2, 3), 0.8), jax.random.split(jax.random.key(0), 2)
  zt = samplers.start_state(GMAX, z1, grid[0], keys, "noise")
  noise = samplers.draw(keys, 2**31 - 1, z1)
  x, t_net = alignment.align(GMAX, d, zt, z1, jnp.full(2, grid[0], jnp.float32))
  np.testing.assert_allclose(x, noise, atol=5e-3)
  np.testing.assert_array_equal(t_net, 999)
  z0_hat = jnp.full((2, 3), -0.4)
  step = jax.tree.map(lambda column: column[:1], samplers.ode.table(GMAX, grid))
  booted = samplers.run(step, lambda zt, time: z0_hat, zt, z1, keys)
  a, b, c = GMAX.marginal(grid[1])
  np.testing.assert_allclose(booted, a * z0_hat + b * z1 + c * noise, atol=2e-3)


def test_a_network_in_bfloat16_leaves_the_state_in_float32():
  z1, keys = jnp.ones((2, 3), jnp.bfloat16), jax.random.split(jax.random.key(0), 2)
  seen = []

  def denoise(zt, time):
    seen.append((zt.dtype, time.dtype))
    return nonlinear(zt, time).astype(jnp.bfloat16)

  assert samplers.dbim(GMAX, denoise, z1, TIMES, keys, order=3).dtype == jnp.float32
  assert seen[0] == (jnp.float32, jnp.float32)


def test_mistakes_are_named(unchecked):
  z1, keys = jnp.ones((2, 3)), jax.random.split(jax.random.key(0), 2)
  sample = lambda times=TIMES, **options: samplers.dbim(  # noqa: E731
    GMAX, nonlinear, z1, times, keys, **options
  )
  with pytest.raises(ValueError, match="inside \\(0, 1\\)"):
    sample(np.linspace(1, 0.1, 5))
  with pytest.raises(ValueError, match="decreasing"):
    sample(TIMES[::-1])
  with pytest.raises(ValueError, match="no start named 'prior'"):
    sample(start="prior")
  with pytest.raises(ValueError, match="orders 1, 2 and 3"):
    sample(order=4)
  with pytest.raises(TypeError, match="eta"):
    sample(eta=1.0)
  for sampler, option in ((samplers.first_order, "eta"), (samplers.ddbm, "churn")):
    for value in (-0.1, 1.1, np.nan):
      with pytest.raises(ValueError, match=f"{option} is {value}; expected a number from 0 to 1"):
        sampler.table(GMAX, TIMES, **{option: value})
  with pytest.raises(ValueError, match="no variance named 'fixed'"):
    samplers.ddpm.table(diffusion.linear(), np.array([9.0, 3.0]), variance="fixed")
  with pytest.raises(ValueError, match="2 clips need one key each"):
    samplers.sde(GMAX, nonlinear, z1, TIMES, keys[:1])
  with pytest.raises(ValueError, match="recorded noise"):
    samplers.sde(GMAX, nonlinear, z1, TIMES, jnp.ones((11, 2, 3)))


@pytest.mark.parametrize("nfe, order", [(1, 2), (4, 2), (8, 3), (16, 3), (50, 3)])
def test_the_default_spends_its_budget_on_dbim(nfe, order):
  sampler, times = samplers.default(nfe)
  assert len(times) == nfe
  z1, keys = jnp.ones((2, 3)), jax.random.split(jax.random.key(0), 2)
  got = sampler(GMAX, nonlinear, z1, times, keys)
  want = samplers.dbim(GMAX, nonlinear, z1, grids.karras(nfe), keys, order=order)
  np.testing.assert_array_equal(got, want)


def test_the_default_is_nearer_to_the_data_than_the_published_sampler():
  """A narrow two-sided mixture with its exact denoiser, 8 evaluations."""
  clips, modes, width = 4000, jnp.array([[-1.0, 1.0]]), 0.1
  z1 = jnp.zeros((clips, 1))

  def denoise(zt, time):
    a, b, c = (process.per_clip(x, zt) for x in GMAX.marginal(time))
    variance = a**2 * width**2 + c**2
    y = zt - b * z1
    weights = jax.nn.softmax(-((y - a * modes) ** 2) / (2 * variance), axis=1)
    mean = jnp.sum(weights * modes, axis=1, keepdims=True)
    return (mean * c**2 + width**2 * a * y) / variance

  keys = jax.random.split(jax.random.key(0), clips)
  spread = lambda z0: abs(np.abs(np.asarray(z0)).std() - width)  # noqa: E731
  ours, times = samplers.default(8)
  published = samplers.sde(GMAX, denoise, z1, grids.trailing(8), keys, start="published")
  assert spread(ours(GMAX, denoise, z1, times, keys)) < 0.5 * spread(published)


@pytest.mark.parametrize("kind", ["noise", "v", "psi", "velocity"])
def test_every_prediction_samples_alike(kind):
  """A network of any kind that knows as much as another leads to the same z0."""
  keys, times = jax.random.split(jax.random.key(0), 2), grids.karras(6, 0.98, 0.05)
  z1 = jnp.ones((2, 3))

  def through(zt, time):
    a, b, c = (process.per_clip(x, zt) for x in GMAX.marginal(time))
    z0 = nonlinear(zt, time)
    pred = prediction.target(kind, GMAX, z0, z1, (zt - a * z0 - b * z1) / c, time)
    return prediction.recover(kind, GMAX, pred, zt, z1, time)

  got, want = (samplers.sde(GMAX, f, z1, times, keys) for f in (through, nonlinear))
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
