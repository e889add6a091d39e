"""Self-check of SNR alignment: aligned inputs against the pretrained diffusion's marginals (§2.1).

For any process, diffusion and rule, `errors` probes `alignment.align` from outside. The aligned
input is linear in z0, z1 and the noise, so three probes give its whole distribution, to be
compared with the pretrained diffusion's at the network time t_net.

  python -m fbjax.bridge.check --process=gmax --diffusion=cogvideox --rule=published
"""

import argparse
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fbjax.bridge import alignment, grids
from fbjax.bridge import diffusion as diffusion_lib
from fbjax.bridge import process as process_lib

Column = Float[np.ndarray, "n"]


class Errors(NamedTuple):
  """Aligned input against pretrained marginal, one row per bridge time.

  mean      error of the coefficient of z0
  prior     coefficient of z1 that is left, 0 in the diffusion
  variance  error of the variance of the noise
  snr       relative error of the signal-to-noise ratio (SNR)
  met       whether the bridge's SNR is in the diffusion's range
  """

  time: Column
  t_net: Column
  mean: Column
  prior: Column
  variance: Column
  snr: Column
  met: Column


def errors(
  process: process_lib.Bridge,
  diffusion: diffusion_lib.Diffusion,
  time: Column,
  rule: alignment.Rule = "exact",
  steps: int = grids.STEPS,
) -> Errors:
  """Errors of the aligned marginal (§2.2) at bridge times, in the precision of `time`."""
  a, b, c = process.marginal(time)
  zero, one = np.zeros_like(time), np.ones_like(time)
  mean, t_net = alignment.align(process, diffusion, a, zero, time, rule, steps)
  prior, _ = alignment.align(process, diffusion, b, one, time, rule, steps)
  noise, _ = alignment.align(process, diffusion, c, zero, time, rule, steps)
  known = diffusion.marginal(t_net)
  met = diffusion.met(process.log_snr(time))
  snr = (mean * known.c / (noise * known.a)) ** 2 - 1
  variance = noise**2 - known.c**2
  return Errors(time, t_net, mean - known.a, prior, variance, snr, met)


def report(errors: Errors, rows: int = 11) -> str:
  """A text table of `rows` of the times, and the largest errors inside and beyond the SNR range."""
  chosen = np.unique(np.linspace(0, len(errors.time) - 1, rows).astype(int))
  lines = ["    time     t_net  mean error  prior leak  variance error   SNR error  in range"]
  for i in chosen:
    t, k, mean, prior, variance, snr, met = (column[i] for column in errors)
    inside = "yes" if met else "no"
    lines.append(
      f"{t:8.6f}  {k:8.3f}  {mean:10.2e}  {prior:10.2e}  {variance:14.2e}  {snr:10.2e}  {inside}"
    )
  met = errors.met.astype(bool)
  for name, where in (("in range", met), ("beyond", ~met)):
    if where.any():
      worst = [np.abs(x[where]).max() for x in (errors.mean, errors.prior, errors.variance)]
      lines.append(
        f"{name}: {where.sum()} of {len(met)} times; largest error of the mean {worst[0]:.1e},"
        f" of the prior {worst[1]:.1e}, of the variance {worst[2]:.1e},"
        f" of the SNR {np.abs(errors.snr[where]).max():.1e}"
      )
  return "\n".join(lines)


PROCESSES = {
  "gmax": process_lib.Gmax,
  "constant": process_lib.constant,
  "vp": process_lib.VP,
  "ve": process_lib.ve,
}
DIFFUSIONS = {
  "videocrafter": diffusion_lib.videocrafter,
  "cogvideox": diffusion_lib.cogvideox,
  "linear": diffusion_lib.linear,
  "scaled_linear": diffusion_lib.scaled_linear,
  "cosine": diffusion_lib.cosine,
  "zero_terminal_snr": lambda: diffusion_lib.zero_terminal_snr(diffusion_lib.scaled_linear()),
  "dynamic_rescale": lambda: diffusion_lib.dynamic_rescale(diffusion_lib.scaled_linear()),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--process", choices=PROCESSES, default="gmax")
  parser.add_argument("--diffusion", choices=DIFFUSIONS, default="videocrafter")
  parser.add_argument("--rule", choices=alignment.Rule.__args__, default="exact")
  parser.add_argument("--steps", type=int, default=grids.STEPS)
  flags = parser.parse_args()
  process, diffusion = PROCESSES[flags.process](), DIFFUSIONS[flags.diffusion]()
  times = grids.time_of(np.arange(flags.steps, dtype=np.float64), flags.steps)
  print(f"{flags.process} aligned with {flags.diffusion}, rule {flags.rule}")
  print(report(errors(process, diffusion, times, flags.rule, flags.steps)))


if __name__ == "__main__":
  main()
