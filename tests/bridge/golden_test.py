"""The bridge against numbers recorded from the published PyTorch code, with analytic networks.

Tolerances are those of the recordings' own README: max |ours - theirs| / rms(theirs).
"""

import jax
import jax.experimental
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
INDEX = np.arange(1000.0)
TIME = grids.time_of(INDEX)


def close(ours, theirs, tolerance):
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape
  scale = np.sqrt(np.mean(theirs**2))
  np.testing.assert_array_less(np.abs(ours - theirs).max(), tolerance * scale)


@pytest.fixture(scope="module")
def load(shared):
  return lambda name: np.load(shared / "golden" / f"{name}.npz")


# Schedules


def check_bridge_tables(file, rtol=1e-6):
  """The registered buffers of the bridge, index by index."""
  a, b, c = GMAX.marginal(TIME)
  ends = 1e-4  # theirs form 1 - x in places
  for name, ours, tolerance in (
    ("bridge_coef_x0", a, ends),
    ("bridge_coef_x1", b, rtol),
    ("bridge_sqrt_var", c, ends),
    ("bridge_alphas", GMAX.alpha(TIME), rtol),
    ("bridge_sigmas", np.sqrt(GMAX.variance(TIME)), rtol),
    ("bridge_sigmas_bar", np.sqrt(GMAX.variance_to_go(TIME)), ends),
  ):
    np.testing.assert_allclose(ours, file[f"sched.{name}"], rtol=tolerance, err_msg=name)


def test_float64_schedules_of_the_reference(load):
  file = load("schedule_reference")
  np.testing.assert_allclose(TIME, file["t"], rtol=1e-14)
  a, b, c = GMAX.marginal(TIME)
  for name, ours in (("a", a), ("b", b), ("c", c), ("sigma", np.sqrt(GMAX.variance(TIME)))):
    np.testing.assert_allclose(ours, file[name], rtol=1e-12)
  np.testing.assert_allclose(np.sqrt(GMAX.variance_to_go(TIME)), file["sigma_bar"], rtol=1e-12)
  np.testing.assert_allclose(GMAX.ends(TIME)[1], file["sigma_1"] ** 2, rtol=1e-14)
  vc, cog = diffusion.videocrafter(), diffusion.cogvideox()
  np.testing.assert_allclose(vc.signal**2, file["ldm_alphas_cumprod"], rtol=1e-12)
  np.testing.assert_allclose(cog.signal**2, file["cog_alphas_cumprod"], rtol=1e-9, atol=1e-20)
  published = lambda d: alignment.net_time(GMAX, d, TIME, "published")  # noqa: E731
  np.testing.assert_allclose(published(vc), file["ldm_aligned_t_f64"], rtol=1e-10)
  np.testing.assert_allclose(published(vc), file["ldm_aligned_t_official_f32"], atol=2e-4)
  np.testing.assert_allclose(published(cog), file["cog_aligned_t_official"], atol=2e-4)


def test_schedules_of_videocrafter(load):
  file, d = load("schedule_videocrafter"), diffusion.videocrafter()
  check_bridge_tables(file)
  sched = {k.removeprefix("sched."): file[k] for k in file.files if k.startswith("sched.")}
  np.testing.assert_allclose(GMAX.alpha(TIME), sched["bridge_alphas_bar"], rtol=1e-6)
  abar = d.signal**2
  for name, ours in (
    ("alphas_cumprod", abar),
    ("alphas_cumprod_prev", np.append(1, abar[:-1])),
    ("sqrt_alphas_cumprod", d.signal),
    ("sqrt_one_minus_alphas_cumprod", d.noise),
    ("log_one_minus_alphas_cumprod", 2 * np.log(d.noise)),
    ("sqrt_recip_alphas_cumprod", 1 / d.signal),
    ("sqrt_recipm1_alphas_cumprod", d.noise / d.signal),
    ("betas", 1 - abar / np.append(1, abar[:-1])),
    ("bridge_sqrt_snr", np.exp(0.5 * GMAX.log_snr(TIME))),
    ("diffusion_sqrt_snr", np.exp(0.5 * d.log_snr(INDEX))),
  ):
    np.testing.assert_allclose(ours, sched[name], rtol=1e-4, err_msg=name)
    inner = slice(2, 998)
    np.testing.assert_allclose(ours[inner], sched[name][inner], rtol=3e-6, err_msg=name)
  # At index 0 the reference steps to no noise at all: the samplers' last row, which returns z0.
  posterior = d.posterior(INDEX[1:], INDEX[:-1])
  np.testing.assert_allclose(np.append(0, posterior.std**2), sched["posterior_variance"], rtol=1e-4)
  np.testing.assert_allclose(np.append(1, posterior.z0), sched["posterior_mean_coef1"], rtol=1e-4)
  np.testing.assert_allclose(np.append(0, posterior.zs), sched["posterior_mean_coef2"], rtol=1e-4)
  clipped = np.log(np.maximum(np.append(0, posterior.std**2), 1e-20))
  np.testing.assert_allclose(clipped, sched["posterior_log_variance_clipped"], rtol=1e-5)
  # Weight of the variational bound: square of the posterior mean's slope in the noise.
  slope = posterior.z0 * prediction.rows("noise", d, INDEX[1:]).data[2]
  bound = slope**2 / (2 * posterior.std**2)
  np.testing.assert_allclose(np.append(bound[:1], bound), sched["lvlb_weights"], rtol=1e-4)


def test_published_alignment_of_videocrafter(load):
  file = load("schedule_videocrafter")
  plain = diffusion.videocrafter()
  zero, shrunk = diffusion.zero_terminal_snr(plain), diffusion.dynamic_rescale(plain)
  for name, d in (("sched", plain), ("zerosnr", zero), ("dynres", shrunk)):
    ours = alignment.net_time(GMAX, d, TIME, "published")
    np.testing.assert_allclose(ours, file[f"{name}.bridge_aligned_t"], atol=2e-4, err_msg=name)
  np.testing.assert_allclose(zero.signal**2, file["zerosnr.alphas_cumprod"], rtol=1e-4, atol=1e-9)
  before = np.append(1, zero.signal[:-1] ** 2)
  np.testing.assert_allclose(1 - zero.signal**2 / before, file["zerosnr.betas"], rtol=2e-4)
  np.testing.assert_allclose(shrunk.rescale, file["dynres.scale_arr"][:1000], rtol=1e-6)
  np.testing.assert_allclose(shrunk.rotation(INDEX).norm, file["dynres.diffusion_scale"], rtol=1e-6)
  t_net = alignment.net_time(GMAX, shrunk, TIME, "published")
  s = published_rescale(shrunk, t_net)
  np.testing.assert_allclose(s, file["dynres.original_diffusion_rescale"], rtol=1e-5)
  assert np.all(file["dynres.lvlb_weights"] == 1)


def published_rescale(d, t_net):
  """The reference's s at the aligned time: 1 in the first cell."""
  return np.where(t_net < 1, 1.0, d.rescale_at(t_net))


def test_schedules_of_cogvideox(load):
  file, d = load("schedule_cogvideox"), diffusion.cogvideox()
  check_bridge_tables(file)
  np.testing.assert_allclose(d.signal**2, file["sched.alphas_cumprod_f64"], rtol=1e-9, atol=1e-20)
  np.testing.assert_allclose(d.signal, file["sched.diffusion_alphas"], rtol=1e-6)
  np.testing.assert_allclose(d.noise, file["sched.diffusion_sigmas"], rtol=1e-6)
  ratio = file["sched.diffusion_sqrt_snr_f64"]
  np.testing.assert_allclose(d.signal / d.noise, ratio, rtol=1e-9, atol=1e-20)
  np.testing.assert_allclose(
    np.exp(0.5 * GMAX.log_snr(TIME)), file["sched.bridge_sqrt_snr"], rtol=1e-4
  )
  ours = alignment.net_time(GMAX, d, TIME, "published")
  np.testing.assert_allclose(ours, file["sched.bridge_aligned_t"], atol=2e-4)
  for n in (10, 50):
    np.testing.assert_array_equal(grids.trailing_indices(n), file[f"timesteps_trailing_{n}"])


def test_schedules_of_latte(load):
  file, d = load("latte_bridge"), diffusion.linear()
  np.testing.assert_allclose(TIME, file["sched.bridge_timesteps"], rtol=1e-6)
  np.testing.assert_allclose(np.sqrt(25.005), file["sched.bridge_sigma_T"], rtol=1e-6)
  check_bridge_tables(file, rtol=2e-6)
  for name, ours in (
    ("alphas_cumprod", d.signal**2),
    ("sqrt_alphas_cumprod", d.signal),
    ("sqrt_one_minus_alphas_cumprod", d.noise),
    ("diffusion_snr", d.signal / d.noise),
    ("bridge_snr", np.exp(0.5 * GMAX.log_snr(TIME))),
    ("betas", 1 - d.signal**2 / np.append(1, d.signal[:-1] ** 2)),
  ):
    np.testing.assert_allclose(ours, file[f"sched.{name}"], rtol=1e-4, err_msg=name)
  ours = alignment.net_time(GMAX, d, TIME, "published_latte")
  np.testing.assert_allclose(ours, file["sched.bridge_aligned_t"], atol=1e-2)


# Training


def bridge_batch(file, prior, latent="x0"):
  """(z0, z1, noise, time) of a recorded batch."""
  arrays = (jnp.asarray(file[name]) for name in (latent, prior, "noise"))
  return *arrays, jnp.asarray(grids.time_of(file["t"].astype(np.float64)), jnp.float32)


def videocrafter_net(file):
  a, b, d, e = (jnp.asarray(file[f"net.{name}"]) for name in "ABDE")

  def predict(x, t_net, cond):
    xc = jnp.concatenate([x, cond["concat"]], 1)
    row = t_net[:, None] * b / 1000 + cond["context"].mean(1) @ d.T + cond["fs"][:, None] * e / 10
    return jnp.tanh(jnp.einsum("oc,bcthw->bothw", a, xc) + row[:, :, None, None, None])

  return predict


def test_training_of_videocrafter(load):
  """Network input, told time, target and loss of psi, of the noise, and of v with dynamic rescale."""
  file = load("schedule_videocrafter")
  z0, z1, noise, time = bridge_batch(file, "prior")
  predict = with_ranks(videocrafter_net(file))
  cond = {"concat": z1, "context": file["context"], "fs": file["fs"].astype(np.float32)}
  zt = process.sample_marginal(GMAX, z0, z1, time, noise)
  close(zt, file["x_t"], 1e-4)
  close(prediction.target("psi", GMAX, z0, z1, noise, time), file["target.eps_psi"], 1e-4)
  close(prediction.target("noise", GMAX, z0, z1, noise, time), file["target.eps_psi_new"], 1e-4)
  to_zt = prediction.rows("noise", GMAX, time).data[0]
  np.testing.assert_allclose(to_zt, file["target.eps_psi_new_weight"], rtol=1e-4)

  plain = diffusion.videocrafter()
  x, t_net = alignment.align(GMAX, plain, zt, z1, time, "published")
  close(jnp.concatenate([x, z1], 1), file["p_losses.eps_psi.net_input"], 1e-4)
  np.testing.assert_allclose(t_net, file["p_losses.eps_psi.net_time"], atol=3e-4)
  pred = predict(x, t_net, cond)
  close(pred, file["p_losses.eps_psi.net_output"], 1e-4)
  close(pred, file["p_losses.eps_psi_new.net_output"], 1e-4)
  bound = file["sched.lvlb_weights"][file["t"]]
  for kind, name in (("psi", "eps_psi"), ("noise", "eps_psi_new")):
    square = (pred - prediction.target(kind, GMAX, z0, z1, noise, time)) ** 2
    np.testing.assert_allclose(jnp.mean(square), file[f"p_losses.{name}.loss"], rtol=1e-5)
    weighted = np.mean(bound * square.mean((1, 2, 3, 4)))
    np.testing.assert_allclose(weighted, file[f"p_losses.{name}.loss_vlb"], rtol=1e-4)

  shrunk = diffusion.dynamic_rescale(plain)
  x, t_net = alignment.align(GMAX, shrunk, zt, z1, time, "published")
  close(jnp.concatenate([x, z1], 1), file["p_losses.v_psi_dynres.net_input"], 1e-4)
  np.testing.assert_allclose(t_net, file["p_losses.v_psi_dynres.net_time"], atol=3e-4)
  pred = predict(x, t_net, cond)
  close(pred, file["p_losses.v_psi_dynres.net_output"], 1e-4)
  # The reference shrinks z0 and keeps the angle of the whole one; `rescale` turns both.
  cos, sin, *_ = (process.per_clip(r, z0) for r in GMAX.rotation(time))
  s = process.per_clip(jnp.asarray(published_rescale(shrunk, t_net), jnp.float32), z0)
  target = cos * noise - sin * s * z0
  close(target, file["target.v_psi_dynres"], 1e-4)
  loss = jnp.mean((pred - target) ** 2)
  np.testing.assert_allclose(loss, file["p_losses.v_psi_dynres.loss"], rtol=1e-5)
  np.testing.assert_allclose(loss, file["p_losses.v_psi_dynres.loss_vlb"], rtol=1e-5)


def test_training_and_steps_of_cogvideox(load):
  file, d = load("schedule_cogvideox"), diffusion.cogvideox()
  z0, z1, noise, time = bridge_batch(file, "prior")
  zt = process.sample_marginal(GMAX, z0, z1, time, noise)
  close(zt, file["x_t"], 1e-4)
  v = prediction.target("v", GMAX, z0, z1, noise, time)
  close(v, file["v_target"], 1e-4)
  pred = jnp.asarray(file["v_pred"])
  close(prediction.recover("v", GMAX, pred, zt, z1, time), file["x0_from_v"], 1e-4)
  close(prediction.recover("v", GMAX, v, zt, z1, time), file["x0_roundtrip"], 1e-4)
  weight = prediction.loss_weight("v", "psi", GMAX, time)
  np.testing.assert_allclose(weight, file["training_weights"], rtol=1e-4)
  x, t_net = alignment.align(GMAX, d, zt, z1, time, "published")
  close(x, file["aligned_x"], 1e-4)
  close(x, file["aligned_x_from_x0_noise"], 1e-4)
  # In float32 next to time 1 the last place of the time is worth 4e-4 of a step.
  np.testing.assert_allclose(t_net, file["aligned_t"], atol=6e-4)
  exact = alignment.net_time(GMAX, d, TIME[file["t"]], "published")
  np.testing.assert_allclose(exact, file["aligned_t"], atol=2e-4)

  for i in range(3):
    now, then = file[f"step{i}.t"]
    at = jnp.full(len(z0), grids.time_of(np.float64(now)), jnp.float32)
    z0_hat = prediction.recover("v", GMAX, pred, zt, z1, at)
    if then < 0:
      close(z0_hat, file[f"step{i}.out"], 1e-4)
      continue
    times = grids.time_of(np.array([now, then], np.float64))
    table = jax.tree.map(lambda x: x[:1], samplers.sde.table(GMAX, times))
    recorded = jnp.asarray(file[f"step{i}.noise"])[None]
    out = samplers.run(table, lambda zt, time, z0_hat=z0_hat: z0_hat, zt, z1, recorded)
    close(out, file[f"step{i}.out"], 1e-4)


def test_training_of_latte(load):
  """psi without alignment, psi aligned, and psi with a coarse video as the prior."""
  file, d = load("latte_bridge"), diffusion.linear()
  frame = jnp.asarray(file["condition_frame"])
  z0, noise = jnp.asarray(file["x0"]), jnp.asarray(file["noise"])
  time = jnp.asarray(grids.time_of(file["t"].astype(np.float64)), jnp.float32)
  z1 = jnp.broadcast_to(frame, z0.shape)
  zt = process.sample_marginal(GMAX, z0, z1, time, noise)
  close(zt, file["x_t"], 1e-4)
  target = prediction.target("psi", GMAX, z0, z1, noise, time)
  close(target, file["target.eps_psi"], 1e-4)
  for name, aligned in (("plain", None), ("aligned", d)):
    x, t_net = alignment.align(GMAX, aligned, zt, z1, time, "published_latte")
    close(jnp.concatenate([frame, x], 1), file[f"train.{name}.net_input"], 1e-4)
    told = file[f"train.{name}.net_time"]
    np.testing.assert_allclose(t_net, told, atol=1e-2 if aligned else 1e-4)
    pred = latte_net(file, "net4")(x, t_net, jnp.asarray(file["y"]))
    loss = ((pred - target) ** 2).mean((1, 2, 3, 4))
    np.testing.assert_allclose(loss, file[f"train.{name}.analytic.loss"], rtol=2e-5)

  coarse = jnp.asarray(file["coarse_video"])
  zt = process.sample_marginal(GMAX, z0, coarse, time, noise)
  x, t_net = alignment.align(GMAX, None, zt, coarse, time)
  beside = lambda video: jnp.concatenate([frame, video], 1)  # noqa: E731
  wide = jnp.concatenate([beside(x), beside(coarse)], 2)
  close(wide, file["train.nprior.net_input"], 1e-4)
  pred = latte_net(file, "net8")(wide[:, 1:], t_net, jnp.asarray(file["y"]))
  target = prediction.target("psi", GMAX, z0, coarse, noise, time)
  loss = ((pred - target) ** 2).mean((1, 2, 3, 4))
  np.testing.assert_allclose(loss, file["train.nprior.analytic.loss"], rtol=2e-5)


# Sampling


def with_ranks(predict):
  """Analytic networks broadcast freely."""

  def free(*arguments):
    with jax.numpy_rank_promotion("allow"):
      return predict(*arguments)

  return free


def trajectory(sampler, denoise, z1, times, noise, start, **options):
  """Every state a sampler passed through, the last being z0, and every z0_hat."""
  states, preds, recording = recorder(denoise)
  sample = jax.jit(
    lambda z1, noise: sampler(GMAX, recording, z1, times, noise, start=start, **options)
  )
  z0 = np.asarray(sample(z1, noise))
  jax.effects_barrier()
  return np.stack([*states, z0]), np.stack(preds)


def recorder(denoise):
  """The denoiser, and the lists that fill with its inputs and outputs as it runs."""
  states, preds = [], []

  def record(zt, pred):
    states.append(np.asarray(zt))
    preds.append(np.asarray(pred))

  def recording(zt, time):
    pred = denoise(zt, time)
    jax.experimental.io_callback(record, None, zt, pred, ordered=True)
    return pred

  return states, preds, recording


@pytest.mark.parametrize(
  "run, kind", [("traj0", "psi"), ("traj1", "psi"), ("traj2", "psi"), ("traj3", "noise")]
)
def test_sampling_of_videocrafter(load, run, kind):
  """Two grids, with and without guidance, psi and noise: every state and every z0_hat."""
  file = load("schedule_videocrafter")
  z1, fs = jnp.asarray(file["prior"][:2]), jnp.asarray(file["fs"][:2], jnp.float32)
  cond, uncond = (
    {"concat": z1, "context": jnp.asarray(file[name][:2]), "fs": fs}
    for name in ("context", "uncond_context")
  )
  scale = float(file[f"{run}.guidance"])
  indices = (grids.uniform_indices if run == "traj1" else grids.trailing_indices)(10)
  np.testing.assert_array_equal(indices[::-1], file[f"{run}.timesteps"])
  denoise = denoiser.denoiser(
    GMAX,
    with_ranks(videocrafter_net(file)),
    kind,
    z1,
    (cond,) if scale == 1 else (cond, uncond),
    None if scale == 1 else guidance.text(scale),
    diffusion=diffusion.videocrafter(),
    rule="published",
  )
  times, noise = grids.time_of(indices.astype(np.float64)), jnp.asarray(file[f"{run}.noises"])
  states, preds = trajectory(samplers.sde, denoise, z1, times, noise, "published")
  for ours, theirs in zip(states, file[f"{run}.x_inter"], strict=True):
    close(ours, theirs, 2e-4)
  for ours, theirs in zip(preds, file[f"{run}.pred_x0"][1:], strict=True):
    close(ours, theirs, 2e-4)
  close(states[-1], file[f"{run}.final"], 2e-4)


def test_sampling_of_cogvideox(load):
  file = load("schedule_cogvideox")
  a, b, d = (jnp.asarray(file[f"net.{name}"]) for name in "ABD")

  def predict(x, t_net, cond):
    xc = jnp.concatenate([x, cond["image"]], 2)
    row = t_net[:, None] * b / 1000 + cond["text"].mean(1) @ d.T
    return jnp.tanh(jnp.einsum("oc,btchw->btohw", a, xc) + row[:, None, :, None, None])

  z1, image = jnp.asarray(file["prior"][:2]), jnp.asarray(file["image_cond"][:2])
  conds = [
    {"image": image, "text": jnp.asarray(file[name][:2])} for name in ("text", "uncond_text")
  ]
  denoise = denoiser.denoiser(
    GMAX,
    with_ranks(predict),
    "v",
    z1,
    conds,
    guidance.text(float(file["traj.guidance"])),
    diffusion=diffusion.cogvideox(),
    rule="published",
  )
  np.testing.assert_array_equal(grids.trailing_indices(10), file["traj.timesteps"])
  # The reference starts its first three frames from another draw of the image's latent.
  start = jnp.concatenate([image[:, :3], z1[:, 3:]], 1)
  noise = jnp.asarray(file["traj.noises"])
  states, preds = trajectory(samplers.sde, denoise, z1, grids.trailing(10), noise, start)
  for ours, theirs in zip(states, file["traj.x_inter"], strict=True):
    close(ours, theirs, 2e-4)
  for ours, theirs in zip(preds, file["traj.pred_x0"], strict=True):
    close(ours, theirs, 2e-4)


def latte_net(file, name):
  a, b, c = (jnp.asarray(file[f"{name}.{part}"]) for part in "ABC")

  def predict(x, t_net, y):
    row = t_net[:, None] * b / 1000 + c[y]
    return jnp.tanh(jnp.einsum("oc,bfchw->bfohw", a, x) + row[:, None, :, None, None])

  return with_ranks(predict)


def latte_denoise(file, process_, z1, scale, name="net4", extra=None, aligned=False):
  """The recorded labels are the class and the null class; both halves see the first half's state."""
  predict = latte_net(file, name)
  if extra is not None:
    narrow = predict
    predict = lambda x, t, y: narrow(  # noqa: E731
      jnp.concatenate([x, jnp.repeat(extra, len(x), 0)], 2), t, y
    )
  return denoiser.denoiser(
    process_,
    predict,
    "psi",
    z1,
    [jnp.asarray(file["sample.y"][i : i + 1]) for i in range(2)],
    guidance.text(scale),
    diffusion=diffusion.linear() if aligned else None,
    rule="published_latte",
  )


@pytest.mark.parametrize("run", ["sde_analytic", "sde_aligned_analytic", "sde_nprior_analytic"])
def test_sde_sampling_of_latte(load, run):
  file = load("latte_bridge")
  row = int(file["sample.row"])
  frame = jnp.asarray(file["condition_frame"][row : row + 1])
  coarse = jnp.asarray(file["coarse_video"][row : row + 1])
  neural = "nprior" in run
  z1 = coarse if neural else jnp.broadcast_to(frame, coarse.shape)
  denoise = latte_denoise(
    file,
    GMAX,
    z1,
    float(file[f"{run}.cfg_scale"]),
    "net8" if neural else "net4",
    coarse if neural else None,
    "aligned" in run,
  )
  indices = grids.latte_indices(10)
  np.testing.assert_array_equal(indices[::-1], file[f"{run}.timestep_map"])
  times = grids.time_of(indices.astype(np.float64))
  sigmas = np.sqrt(GMAX.variance(times))[::-1]
  np.testing.assert_allclose(sigmas, file[f"{run}.bridge_sigmas"], rtol=1e-5)
  noise = jnp.asarray(file[f"{run}.noises"][:, :1])
  states, _ = trajectory(samplers.sde, denoise, z1, times, noise, "published")
  for ours, theirs in zip(states[1:], file[f"{run}.x_inter"][:, :1], strict=True):
    close(ours, theirs, 2e-4)


class Float32Gmax(process.Gmax):
  """gmax as Latte computes it, sigma_bar a float32 difference; only tests want its errors."""

  __slots__ = ()

  def accumulated(self, start, end):
    xp = start.__array_namespace__()

    def variance(time):
      time = xp.asarray(time, dtype=np.float32)
      return np.float32(0.5) * np.float32(49.99) * time**2 + np.float32(0.01) * time

    return xp.asarray(variance(end) - variance(start), dtype=start.dtype)


def latte_order_two(path, times):
  """The reference's second order as a table: the mean of two steps' slopes, one of them ahead.

  It is not Heun's rule (its order is 1), and no sampler of ours; a table can hold it all the same.
  """
  k, z1, a, h = samplers.flow(path, times[:-1], np.append(times[1:-1], times[-1]))
  pred = a * samplers.phis(h)[0]
  first = samplers.first_order_rows(path, times[:2], 1.0)
  rows = list(first)
  for i in range(1, len(times) - 1):
    rows.append(samplers.row(times[i], zt=k[i], z1=z1[i], pred=pred[i], keep=1))
    ahead = times[i + 2] if i + 2 < len(times) else 0.0
    ratio = 0.5 * (times[i + 1] - times[i]) / (ahead - times[i + 1])
    k2, z2, p2 = (k[i + 1], z1[i + 1], pred[i + 1]) if ahead else (0.0, 0.0, 1.0)
    rows.append(
      samplers.row(
        times[i + 1],
        zt=0.5 + ratio * (k2 - 1),
        base=0.5,
        z1=ratio * z2,
        pred=ratio * p2,
      )
    )
  return samplers.stack([*rows, samplers.row(times[-1], pred=1)])


@pytest.mark.parametrize("order", [1, 2])
def test_ode_sampling_of_latte(load, order):
  """One step of the SDE away from the prior, then the flow; the recorded second order is a table."""
  file, path = load("latte_bridge"), Float32Gmax()
  row, run = int(file["sample.row"]), f"ode{order}_aligned_analytic"
  frame = jnp.asarray(file["condition_frame"][row : row + 1])
  z1 = jnp.repeat(frame, file["coarse_video"].shape[1], 1)
  denoise = latte_denoise(
    file, path, z1, float(file["ode_aligned_analytic.cfg_scale"]), aligned=True
  )
  times = grids.time_of(file["ode_aligned_analytic.timestep_map"][::-1].astype(np.float64))
  told = alignment.net_time(path, diffusion.linear(), times, "published_latte")
  np.testing.assert_allclose(told[::-1], file["ode_aligned_analytic.aligned_t"], atol=1e-2)
  if order == 1:
    table = samplers.first_order.table(path, times, eta=np.eye(1, len(times) - 1)[0])
  else:
    table = latte_order_two(path, times)
  recorded = jnp.asarray(file[f"{run}.noises"][:, :1])
  states, _, recording = recorder(denoise)
  z0 = jax.jit(lambda z1: samplers.run(table, recording, z1, z1, recorded))(z1)
  z0 = np.asarray(z0)
  jax.effects_barrier()
  after = [*states[1:], z0] if order == 1 else [*states[1::2], z0]
  for ours, theirs in zip(after, file[f"{run}.x_inter"][:, :1], strict=True):
    close(ours, theirs, 2e-4)
