"""The figure of docs/concepts.md: one clip along a diffusion, a bridge, and that bridge aligned.

python -m benchmarks.concepts        # docs/concepts.png
"""

import pathlib

import matplotlib.figure
import numpy as np
import PIL.Image
from jaxtyping import UInt8

from fbjax.bridge import alignment, diffusion, process
from fbjax.data import synthetic

OUT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "concepts.png"
TIMES = np.array([0.0, 0.1, 0.3, 0.6, 0.9, 0.999])
CLIP = 3  # of the held-out ones


def main() -> None:
  source = synthetic.Shapes(8, 64, split="val", motions=("right",), speeds=("quick",))
  video = source[CLIP].video
  draw(video[0], video[-1]).savefig(OUT, dpi=80)
  # Noise hardly compresses.
  PIL.Image.open(OUT).convert("RGB").quantize(96).save(OUT, optimize=True)


def draw(
  first: UInt8[np.ndarray, "h w 3"], last: UInt8[np.ndarray, "h w 3"]
) -> matplotlib.figure.Figure:
  """States between the last frame of a clip, at time 0, and its first one, which is the prior."""
  z1, z0 = (np.repeat(x[None] / 127.5 - 1, len(TIMES), axis=0) for x in (first, last))
  noise = np.repeat(np.random.default_rng(0).standard_normal(z0[:1].shape), len(TIMES), axis=0)
  bridge, narrow, pretrained = process.Gmax(), process.constant(0.02), diffusion.cogvideox()
  wide = process.sample_marginal(bridge, z0, z1, TIMES, noise)
  aligned, told = alignment.align(bridge, pretrained, wide, z1, TIMES)
  rows = {
    "diffusion": process.sample_marginal(pretrained, z0, z1, 999 * TIMES, noise),
    "bridge (published)": wide,
    "the same, aligned": aligned,
    "narrow bridge": process.sample_marginal(narrow, z0, z1, TIMES, noise),
  }
  figure = matplotlib.figure.Figure(figsize=(9, 6.4), layout="constrained")
  panels = figure.subplots(len(rows), len(TIMES))
  for line, (name, states) in zip(panels, rows.items(), strict=True):
    for axes, state, time, t_net in zip(line, states, TIMES, told, strict=True):
      axes.imshow(np.clip(state / 2 + 0.5, 0, 1))
      axes.set(xticks=[], yticks=[])
      if name == "diffusion":
        axes.set_title(f"t = {time:g}", fontsize=9)
      if name == "the same, aligned":
        axes.set_xlabel(f"told {t_net:.0f} of 999", fontsize=8)
    line[0].set_ylabel(name, fontsize=9)
  return figure


if __name__ == "__main__":
  main()
