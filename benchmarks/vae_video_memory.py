"""Memory that the video autoencoder needs to encode and decode, by the length of the video.

  python -m benchmarks.vae_video_memory [--size=256] [--frames=17,49] [--execute] [--out=x.json]

Each figure comes from a process of its own, at the published widths with random weights on the CPU.
`planned` is what the compiled program sets aside beside its arguments and results. `--execute`
also runs it, and `peak` is how far the process grows meanwhile, results included.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from fbjax.models import layers, vae_video

SIZE = flags.DEFINE_integer("size", 256, "Height and width in pixels.")
FRAMES = flags.DEFINE_list("frames", ["17", "49"], "Lengths to compare with the first.")
WIDTHS = flags.DEFINE_list("widths", ["128", "256", "256", "512"], "Channels of the levels.")
BLOCKS = flags.DEFINE_integer("blocks", 3, "ResBlocks of a level.")
METHODS = flags.DEFINE_list("methods", ["encode", "decode"], "Which ways to measure.")
MODES = flags.DEFINE_list("modes", ["chunked"], "Of chunked, tiled and whole.")
EXECUTE = flags.DEFINE_bool("execute", False, "Also run what was compiled: minutes at full width.")
OUT = flags.DEFINE_string("out", None, "File to write the figures to.")
CASE = flags.DEFINE_string("case", None, "The one case that a process of its own measures.")

OPTIONS: dict[str, dict[str, bool]] = {
  "chunked": {},
  "tiled": {"tiled": True},
  "whole": {"chunked": False},
}


def measure(method: str, mode: str, frames: int) -> dict[str, float]:
  """Figures of one case, in MB and seconds."""
  sizes = {"widths": [int(width) for width in WIDTHS.value], "blocks": BLOCKS.value}

  def make(key: jax.Array) -> vae_video.CausalAutoencoder:
    return vae_video.CausalAutoencoder(3, 16, **sizes, rngs=layers.Keys(key))

  graph, state = nnx.split(nnx.eval_shape(make, jax.random.key(0)))
  params = nnx.to_pure_dict(state)
  shape = (1, frames, SIZE.value, SIZE.value, 3)
  if method == "decode":
    side = SIZE.value // 2 ** (len(WIDTHS.value) - 1)
    shape = (1, (frames + 3) // 4, side, side, 16)

  def f(params: Any, x: jax.Array) -> Any:
    return getattr(nnx.merge(graph, params), method)(x, **OPTIONS[mode])

  start = time.perf_counter()
  compiled = jax.jit(f).lower(params, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
  figures = {"compile_seconds": time.perf_counter() - start}
  memory = compiled.memory_analysis()
  figures["planned"] = memory.temp_size_in_bytes / 1e6
  figures["results"] = memory.output_size_in_bytes / 1e6
  if EXECUTE.value:
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
      x = rng.standard_normal(leaf.shape, np.float32)
      return jnp.asarray(x / np.float32(np.sqrt(np.prod(leaf.shape[:-1]))))

    args = jax.block_until_ready((jax.tree.map(draw, params), draw(jnp.zeros(shape))))
    before, start = resident(), time.perf_counter()
    jax.block_until_ready(compiled(*args))
    figures["seconds"] = time.perf_counter() - start
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures["peak"] = (highest - before) / 1e6
  return figures


def resident() -> int:
  """Bytes of this process in memory."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize()


def main(argv: list[str]) -> None:
  del argv
  if CASE.value:
    method, mode, frames = CASE.value.split(",")
    print(json.dumps(measure(method, mode, int(frames))))
    return
  figures: dict[str, dict[str, float]] = {}
  for method in METHODS.value:
    for mode in MODES.value:
      first = f"{method},{mode},{FRAMES.value[0]}"
      for frames in FRAMES.value:
        case = f"{method},{mode},{frames}"
        command = [
          sys.executable,
          "-m",
          "benchmarks.vae_video_memory",
          *sys.argv[1:],
          f"--case={case}",
        ]
        cpu = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=cpu)
        figures[case] = json.loads(done.stdout.splitlines()[-1])
        print(line(case, figures[case], figures[first]), flush=True)
  if OUT.value:
    pathlib.Path(OUT.value).write_text(json.dumps(figures, indent=2) + "\n")


def line(case: str, x: dict[str, float], first: dict[str, float]) -> str:
  method, mode, frames = case.split(",")
  text = f"{method} {mode:7} {frames:>3} frames: planned {x['planned']:7.0f} MB"
  text += f" ({x['planned'] / first['planned']:.2f} x), results {x['results']:5.1f} MB"
  if "peak" in x:
    text += f", peak {x['peak']:7.0f} MB ({x['peak'] / first['peak']:.2f} x)"
    text += f" in {x['seconds']:.1f} s"
  return text


if __name__ == "__main__":
  app.run(main)
