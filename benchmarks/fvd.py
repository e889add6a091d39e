"""Seconds that FVD takes, and those of its network beside the same network in PyTorch.

python -m benchmarks.fvd [--clips=256] [--batch=4] [--rounds=3] [--out=x.json]

The weights are random, which costs as much as trained ones. The two networks run in turn, and the ratio of their
fastest calls is printed with the largest difference of their logits. Needs torch, of requirements-dev.txt.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from flax import nnx

from benchmarks import torch_networks
from fbjax import sharding
from fbjax.evaluation import frechet, fvd, networks
from fbjax.models import i3d, layers

CLIPS = flags.DEFINE_integer("clips", 256, "Clips of each of the two sets")
BATCH = flags.DEFINE_integer("batch", 4, "Clips of a call")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Calls of each network to time; the fastest counts")
OUT = flags.DEFINE_string("out", None, "File to write the figures to")
SHAPE = (16, 64, 64, 3)  # of a clip


def main(_: list[str]) -> None:
  graph, state = nnx.split(i3d.I3D(rngs=layers.Keys(jax.random.key(0))))
  params = nnx.to_pure_dict(state)
  figures = beside_torch(graph, params) | of_sets(params)
  print(
    f"{BATCH.value} clips of 16x224x224: {figures['jax_seconds']:.2f} s here, {figures['torch_seconds']:.2f} s "
    f"in PyTorch, ratio {figures['ratio']:.2f}; logits differ by {figures['difference']:.1e} of their rms\n"
    f"FVD of {CLIPS.value} against {CLIPS.value} clips: {figures['features_seconds']:.0f} s of features, "
    f"{figures['distance_seconds']:.1f} s of distance and error bar"
  )
  if OUT.value:
    with open(OUT.value, "w") as out:
      json.dump(figures, out, indent=2)


def beside_torch(graph: nnx.GraphDef, params: dict) -> dict[str, float]:
  """The forward call of both, with as many threads as there are cores."""
  x = np.random.default_rng(0).uniform(-1, 1, (BATCH.value, 16, 224, 224, 3)).astype(np.float32)
  leaves = jax.tree.map(lambda p: torch.from_numpy(np.array(p)), params)
  forward = jax.jit(lambda params, x: nnx.merge(graph, params)(x)[1])

  def theirs() -> np.ndarray:
    with torch.inference_mode():
      return torch_networks.i3d(leaves, torch.from_numpy(x), i3d.BLOCKS, i3d.POOLED).numpy()

  there = jnp.asarray(x)
  calls = {"jax": lambda: np.asarray(forward(params, there)), "torch": theirs}
  logits = {name: call() for name, call in calls.items()}
  taken = {name: [] for name in calls}
  for _ in range(ROUNDS.value):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      taken[name].append(time.perf_counter() - start)
  ours, other = (min(taken[name]) for name in calls)
  apart = np.abs(logits["jax"] - logits["torch"]).max() / logits["torch"].std()
  return {
    "jax_seconds": ours,
    "torch_seconds": other,
    "ratio": ours / other,
    "difference": float(apart),
  }


def of_sets(params: dict) -> dict[str, float]:
  """Two sets of clips to their distance; the compilation does not count."""
  features = networks.i3d_logits(params, fvd.PROTOCOLS["styleganv"], sharding.make_mesh())
  rng = np.random.default_rng(0)
  sets = [rng.integers(0, 256, (CLIPS.value, *SHAPE), np.uint8) for _ in range(2)]
  features(sets[0][: BATCH.value])
  start = time.perf_counter()
  found = [
    np.concatenate(
      [features(clips[i : i + BATCH.value]) for i in range(0, len(clips), BATCH.value)]
    )
    for clips in sets
  ]
  between = time.perf_counter()
  frechet.distance(*map(frechet.statistics, found), unbiased=False)
  frechet.error_bar(*found, unbiased=False)
  return {
    "features_seconds": between - start,
    "distance_seconds": time.perf_counter() - between,
  }


if __name__ == "__main__":
  app.run(main)
