"""SNR-aligned fine-tuning: a bridge state as input and time of a pretrained diffusion (§2).

  x      = (zt - b z1) / n      the bridge state less its prior, at unit norm
         = cos z0 + sin noise   a diffusion state, of signal-to-noise ratio (SNR) a^2 / c^2
  t_net                         the time at which the pretrained diffusion has that SNR

so a diffusion network meets, at step 0 of fine-tuning, inputs it was trained on.
"""

from typing import Literal

import numpy as np

from fbjax.bridge import diffusion as diffusion_lib
from fbjax.bridge import grids
from fbjax.bridge import process as process_lib

Clips = process_lib.Clips
PerClip = process_lib.PerClip
Diffusion = diffusion_lib.Diffusion
Process = process_lib.Process
Rule = Literal["exact", "published", "published_latte"]
Times = process_lib.Times


def align(
  process: Process,
  diffusion: Diffusion | None,
  zt: Clips,
  z1: Clips,
  time: PerClip,
  rule: Rule = "exact",
  steps: int = grids.STEPS,
) -> tuple[Clips, PerClip]:
  """Returns (x, t_net), the input and the time of the network (§2.1, §2.2).

  exact            t_net of equal log-SNR, clamped to the diffusion's range; x keeps the SNR of the
                   bridge and has the diffusion's norm at t_net
  published        interpolation in the reference's table, for released checkpoints
  published_latte  the same in the table of the reference's Latte code

  Without a diffusion (training from scratch) x is zt and t_net its index among the bridge's
  `steps`; if the process is the diffusion itself, x is zt and t_net is `time`.
  At time 1 exactly zt is z1 and holds no trace of the noise: x is 0 there, the mean of its limit.
  """
  if diffusion is None:
    return zt, grids.index_of(time, steps)
  if process is diffusion:
    return zt, time
  b, norm = process.marginal(time).b, process.rotation(time).norm
  t_net = net_time(process, diffusion, time, rule, steps)
  # The reference looks the norm up at the bridge's index; it matters with dynamic rescale only.
  known = diffusion.rotation(t_net if rule == "exact" else grids.index_of(time, steps)).norm
  scale = process_lib.per_clip(process_lib.divide(known, norm), zt)
  return scale * (zt - process_lib.per_clip(b, z1) * z1), t_net


def net_time(
  process: Process,
  diffusion: Diffusion,
  time: Times,
  rule: Rule = "exact",
  steps: int = grids.STEPS,
) -> Times:
  """Network time t_net that a rule assigns to a bridge time (§2.1, §2.2).

  Raises:
    ValueError: for another rule.
  """
  if rule == "exact":
    return diffusion.time_of_log_snr(process.log_snr(time))
  # The published rules are linear in sqrt(SNR) between knots (t_net, sqrt(SNR)).
  knots = diffusion.signal / diffusion.noise
  at = np.arange(len(knots), dtype=np.float64)
  if rule == "published":
    # The first cell is stretched to an invented point (0, d_0 + r_0), so that every ratio of a
    # bridge of `steps` lies under it; a last cell is added down to no signal at all.
    first = np.exp(0.5 * process.log_snr(grids.time_of(np.zeros(1), steps)))
    knots = np.concatenate([knots[:1] + first, knots[1:]])
    if knots[-1] > 0:
      knots, at = np.append(knots, 0.0), np.append(at, len(at))
  elif rule != "published_latte":
    raise ValueError(f"no alignment rule named {rule!r}; use exact, published or published_latte")
  xp = time.__array_namespace__()
  ratio = xp.exp(0.5 * process.log_snr(time))
  return diffusion_lib.interpolate(-ratio, -knots, at)
