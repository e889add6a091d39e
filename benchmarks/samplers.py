"""Error of every sampler against the number of network evaluations, with an exact denoiser.

A mixture of eight Gaussians in the plane is the data, z1 a shrunken and noisy copy of z0 the
prior, so that E[z0 | zt, z1] has a closed form. What is left is the sampler's own error: the
sliced Wasserstein-2 distance between (z0 sampled, z1) and exact draws for the same z1. The floor
is that distance for exact draws. Samplers of the probability flow are also compared clip by clip
with its exact path, without and with classifier-free guidance towards four of the eight Gaussians.

  python benchmarks/samplers.py            # samplers.json here, samplers.png in docs/
  python benchmarks/samplers.py --small    # a minute
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from fbjax.bridge import diffusion, grids, guidance, process, samplers

HERE = pathlib.Path(__file__).resolve().parent
BUDGETS = (4, 6, 8, 12, 16, 25, 50, 100)
GUIDANCE = (1.0, 3.0, 7.5)
BRIDGE = process.Gmax()
DIFFUSION = diffusion.videocrafter()

# Name, sampler, options, evaluations per grid time.
METHODS = (
  ("sde, published start", samplers.sde, {}, "one"),
  ("sde", samplers.sde, {}, "one"),
  ("first order, eta 0.5", samplers.first_order, {"eta": 0.5}, "one"),
  ("ode", samplers.ode, {}, "one"),
  ("euler-maruyama", samplers.euler_maruyama, {}, "one"),
  ("dbim 2", samplers.dbim, {"order": 2}, "one"),
  ("dbim 3", samplers.dbim, {"order": 3}, "one"),
  ("heun", samplers.heun, {}, "two"),
  ("ddbm", samplers.ddbm, {}, "three"),
)
BASELINES = (
  ("ddim (diffusion)", samplers.ddim, {}),
  ("ddpm (diffusion)", samplers.ddpm, {}),
)
GRIDS = {
  "trailing": lambda n: grids.trailing(n),
  "uniform": lambda n: grids.uniform(n),
  "log_snr": lambda n: grids.log_snr(BRIDGE, n),
  "karras": lambda n: grids.karras(n),
}


class Mixture(NamedTuple):
  """p(z0 | z1) for each drawn z1: a mixture with its own means and weights, one variance."""

  z0: np.ndarray
  z1: np.ndarray
  means: np.ndarray
  log_weights: np.ndarray
  variance: float


def draw_mixture(n: int, rng: np.random.Generator) -> Mixture:
  """Eight narrow components on two rings; z1 = 0.7 z0 + 0.5 noise."""
  components, width, shrink, blur = 8, 0.08, 0.7, 0.5
  angle = 2 * np.pi * np.arange(components) / components
  radius = np.where(np.arange(components) % 2, 1.4, 0.8)
  centres = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
  z0 = centres[rng.integers(0, components, n)] + width * rng.standard_normal((n, 2))
  z1 = shrink * z0 + blur * rng.standard_normal((n, 2))
  variance = 1 / (1 / width**2 + shrink**2 / blur**2)
  means = variance * (centres / width**2 + shrink * z1[:, None] / blur**2)
  spread = blur**2 + shrink**2 * width**2
  log_weights = -((z1[:, None] - shrink * centres) ** 2).sum(-1) / (2 * spread)
  return Mixture(z0, z1, means, log_weights, variance)


def draw_exact(mixture: Mixture, rng: np.random.Generator) -> np.ndarray:
  """Another z0 ~ p(z0 | z1) for every z1."""
  gumbel = rng.gumbel(size=mixture.log_weights.shape)
  chosen = np.argmax(mixture.log_weights + gumbel, 1)
  means = mixture.means[np.arange(len(chosen)), chosen]
  return means + np.sqrt(mixture.variance) * rng.standard_normal(means.shape)


def make_denoise(path: process.Process, mixture: Mixture):
  """The exact E[z0 | zt, z1]."""
  z1, means, log_weights = (
    jnp.asarray(x, jnp.float32) for x in (mixture.z1, mixture.means, mixture.log_weights)
  )

  def denoise(zt, time):
    a, b, c = (process.per_clip(x, zt) for x in path.marginal(time))
    y = zt - b * z1
    variance = a**2 * mixture.variance + c**2
    distance = jnp.sum((y[:, None] - a[:, :, None] * means) ** 2, -1)
    weights = jax.nn.softmax(log_weights - distance / (2 * variance), axis=1)
    mean = jnp.sum(weights[:, :, None] * means, 1)
    return (mean * c**2 + mixture.variance * a * y) / variance

  return denoise


class Distance:
  """Sliced Wasserstein-2 to exact draws, jointly with z1."""

  def __init__(self, mixture: Mixture, rng: np.random.Generator, slices: int, draws: int):
    slices = rng.standard_normal((4, slices))
    self.slices = slices / np.linalg.norm(slices, axis=0)
    self.z1 = mixture.z1
    pooled = np.concatenate([self.project(draw_exact(mixture, rng)) for _ in range(draws)])
    self.quantiles = np.sort(pooled, 0).reshape(-1, draws, slices.shape[1]).mean(1)

  def project(self, z0: np.ndarray) -> np.ndarray:
    return np.concatenate([z0, self.z1], 1) @ self.slices

  def __call__(self, z0: np.ndarray) -> float:
    projected = np.sort(self.project(np.asarray(z0, np.float64)), 0)
    return float(np.sqrt(np.mean((projected - self.quantiles) ** 2)))


def times_for(cost: str, budget: int) -> int:
  """Grid times that `budget` evaluations pay for."""
  return {"one": budget, "two": (budget + 1) // 2, "three": (budget + 2) // 3}[cost]


def measure(clips: int, budgets: tuple[int, ...], slices: int = 64) -> dict:
  """{floor, errors: {method: {grid: {NFE: error}}}}."""
  rng = np.random.default_rng(0)
  mixture = draw_mixture(clips, rng)
  distance = Distance(mixture, rng, slices, draws=8)
  floor = float(np.mean([distance(draw_exact(mixture, rng)) for _ in range(8)]))
  z1 = jnp.asarray(mixture.z1, jnp.float32)
  keys = jax.random.split(jax.random.key(0), clips)

  def run_for(path):
    # The table is an argument: one program per number of evaluations serves every sampler.
    denoise = make_denoise(path, mixture)
    return jax.jit(lambda table, zt, keys: samplers.run(table, denoise, zt, z1, keys))

  def error(run, path, sampler, options, times, start="noise"):
    table = jax.tree.map(jnp.asarray, sampler.table(path, times, **options))
    zt = samplers.start_state(path, z1, times[0], keys, start)
    return distance(run(table, zt, keys))

  def sweep(run, path, sampler, options, cost, make, start="noise"):
    return {
      nfe: error(run, path, sampler, options, make(times_for(cost, nfe)), start) for nfe in budgets
    }

  errors = {}
  bridge, baseline = run_for(BRIDGE), run_for(DIFFUSION)
  for name, sampler, options, cost in METHODS:
    start = "published" if "published" in name else "noise"
    errors[name] = {
      grid: sweep(bridge, BRIDGE, sampler, options, cost, make, start)
      for grid, make in GRIDS.items()
    }
  for name, sampler, options in BASELINES:
    trailing = lambda n: grids.trailing_indices(n).astype(float)  # noqa: E731
    errors[name] = {"trailing": sweep(baseline, DIFFUSION, sampler, options, "one", trailing)}
  return {"clips": clips, "floor": floor, "errors": errors}


def measure_paths(clips: int, budgets: tuple[int, ...]) -> dict:
  """{guidance: {method: {NFE: rms distance to the exact path's end}}} on the Karras grid."""
  rng = np.random.default_rng(1)
  mixture = draw_mixture(clips, rng)
  half = np.where(np.arange(mixture.log_weights.shape[1]) < 4, 0.0, -50.0)
  everything = make_denoise(BRIDGE, mixture)
  one_class = make_denoise(BRIDGE, mixture._replace(log_weights=mixture.log_weights + half))
  z1 = jnp.asarray(mixture.z1, jnp.float32)
  keys = jax.random.split(jax.random.key(1), clips)
  zt = samplers.start_state(BRIDGE, z1, grids.FIRST, keys, "noise")
  flows = [m for m in METHODS if m[0] in ("ode", "dbim 2", "dbim 3", "heun")]
  paths = {}
  for scale in GUIDANCE:
    combine = guidance.text(scale)

    def run(table, combine=combine):
      both = lambda x, t: combine([one_class(x, t), everything(x, t)], t)  # noqa: E731
      return samplers.run(jax.tree.map(jnp.asarray, table), both, zt, z1, keys)

    run = jax.jit(run)
    exact = run(samplers.heun.table(BRIDGE, grids.karras(1000)))

    def error(sampler, options, n, run=run, exact=exact):
      z0 = run(sampler.table(BRIDGE, grids.karras(n), **options))
      return float(jnp.sqrt(jnp.mean((z0 - exact) ** 2)))

    paths[str(scale)] = {
      name: {nfe: error(sampler, options, times_for(cost, nfe)) for nfe in budgets}
      for name, sampler, options, cost in flows
    }
  return paths


def best(sweeps: dict[str, dict[int, float]]) -> dict[int, tuple[float, str]]:
  """{NFE: (error, grid)} of the best grid."""
  budgets = next(iter(sweeps.values()))
  return {nfe: min((errors[nfe], grid) for grid, errors in sweeps.items()) for nfe in budgets}


def table(result: dict) -> str:
  """Markdown: the best grid's error per sampler and NFE."""
  budgets = list(next(iter(next(iter(result["errors"].values())).values())))
  lines = [
    "| sampler | " + " | ".join(f"{nfe}" for nfe in budgets) + " |",
    "|---" * (len(budgets) + 1) + "|",
  ]
  for name, sweeps in result["errors"].items():
    cells = [f"{error:.4f} {grid}" for error, grid in best(sweeps).values()]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join([*lines, f"\nfloor (exact draws): {result['floor']:.4f}"])


def path_table(paths: dict) -> str:
  """Markdown: distance to the exact path per guidance, sampler and NFE."""
  budgets = list(next(iter(next(iter(paths.values())).values())))
  lines = [
    "| guidance | sampler | " + " | ".join(f"{nfe}" for nfe in budgets) + " |",
    "|---" * (len(budgets) + 2) + "|",
  ]
  for scale, methods in paths.items():
    for name, errors in methods.items():
      lines.append(
        f"| {scale} | {name} | " + " | ".join(f"{e:.4f}" for e in errors.values()) + " |"
      )
  return "\n".join(lines)


def plot(result: dict, path: pathlib.Path):
  """Left: error against NFE, every sampler on its best grid. Right: guided flows, clip by clip."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
  names = [name for name in result["errors"] if name != "sde, published start"]
  lines = {name: {n: e for n, (e, _) in best(result["errors"][name]).items()} for name in names}
  published = {
    "sde, published start and grid": result["errors"]["sde, published start"]["trailing"]
  }
  look = {}
  for i, (name, errors) in enumerate((lines | published).items()):
    style = "--" if "diffusion" in name else ":" if "published" in name else "-"
    look[name] = dict(color=f"C{i}" if i < 10 else "k", marker="osv^DXp*P.h"[i], markersize=5)
    left.plot(list(errors), list(errors.values()), style, label=name, **look[name])
  left.axhline(result["floor"], color="0.6", linewidth=1)
  left.text(4, result["floor"] * 1.04, "exact draws", color="0.4", fontsize=8)
  left.set(
    ylim=(result["floor"] * 0.8, 0.2),
    ylabel="sliced Wasserstein-2 of (z0, z1)",
    title="distribution, best of four grids",
  )
  for name, errors in result["paths"][str(GUIDANCE[-1])].items():
    right.plot(list(errors), list(errors.values()), label=name, **look[name])
  right.set(ylabel="rms distance to the exact path", title=f"guidance {GUIDANCE[-1]}, Karras grid")
  for axes in (left, right):
    axes.set(xscale="log", yscale="log", xlabel="network evaluations")
    axes.set_xticks(BUDGETS, [str(nfe) for nfe in BUDGETS], minor=False)
    axes.set_xticks([], minor=True)
  figure.legend(*left.get_legend_handles_labels(), fontsize=8, ncols=6, loc="outside lower center")
  figure.suptitle("bridge-gmax with an exact denoiser")
  figure.savefig(path, dpi=150)


def numbered(tree):
  """JSON made strings of the NFE; numbers again."""
  if not isinstance(tree, dict):
    return tree
  return {int(k) if k.isdigit() else k: numbered(v) for k, v in tree.items()}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--small", action="store_true", help="a quick look; writes nothing")
  parser.add_argument(
    "--part", choices=("all", "paths", "none"), default="all", help="what to measure anew"
  )
  flags = parser.parse_args()
  file = HERE / "samplers.json"
  if flags.small:
    print(table(measure(2048, (4, 8, 16))))
    print(path_table(measure_paths(512, (4, 8, 16))))
    return
  result = measure(32768, BUDGETS) if flags.part == "all" else json.loads(file.read_text())
  if flags.part != "none":
    result["paths"] = measure_paths(8192, BUDGETS)
    file.write_text(json.dumps(result, indent=1) + "\n")
  result = numbered(json.loads(file.read_text()))
  print(table(result))
  print(path_table(result["paths"]))
  plot(result, HERE.parent / "docs" / "samplers.png")


if __name__ == "__main__":
  main()
