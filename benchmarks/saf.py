"""SNR-aligned fine-tuning in one figure, and the self-check of both rules as tables.

python benchmarks/saf.py            # docs/saf.png, tables to the terminal
"""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from fbjax.bridge import alignment, check, diffusion, grids, process

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
BRIDGE = process.Gmax()
TIMES = grids.time_of(np.arange(1000.0))
PRETRAINED = {"VideoCrafter": diffusion.videocrafter(), "CogVideoX": diffusion.cogvideox()}


def draw_states(axes: plt.Axes):
  """Coefficients of the bridge state, and of the same state as the network sees it."""
  a, b, c = BRIDGE.marginal(TIMES)
  rotation = BRIDGE.rotation(TIMES)
  axes.plot(TIMES, a, "C0:", label="z0 in zt")
  axes.plot(TIMES, b, "C1:", label="z1 in zt")
  axes.plot(TIMES, c, "C2:", label="noise in zt")
  axes.plot(TIMES, rotation.cos, "C0", label="z0 in x")
  axes.plot(TIMES, rotation.sin, "C2", label="noise in x")
  axes.set(xlabel="bridge time", ylabel="coefficient", title="the prior taken off, at unit norm")
  axes.legend(fontsize=8)


def draw_times(axes: plt.Axes):
  """The time the network is told."""
  for i, (name, d) in enumerate(PRETRAINED.items()):
    for rule, style in (("exact", "-"), ("published", "--")):
      t_net = alignment.net_time(BRIDGE, d, TIMES, rule)
      axes.plot(TIMES, t_net, f"C{i}{style}", label=f"{name}, {rule}")
  zoom = axes.inset_axes([0.55, 0.12, 0.4, 0.36])
  for i, d in enumerate(PRETRAINED.values()):
    for rule, style in (("exact", "-"), ("published", "--")):
      zoom.plot(TIMES[:16], alignment.net_time(BRIDGE, d, TIMES[:16], rule), f"C{i}{style}")
  zoom.set_title("first 16 indices", fontsize=8)
  zoom.tick_params(labelsize=7)
  axes.set(xlabel="bridge time", ylabel="network time", title="the time it is told")
  axes.legend(fontsize=8, loc="upper left")


def draw_errors(axes: plt.Axes):
  """What remains between the aligned marginal and the pretrained one, VideoCrafter."""
  d = PRETRAINED["VideoCrafter"]
  for rule, style in (("exact", "-"), ("published", "--")):
    errors = check.errors(BRIDGE, d, TIMES, rule)
    for i, name in enumerate(("mean", "variance", "snr")):
      size = np.maximum(np.abs(getattr(errors, name)), 1e-17)
      axes.plot(TIMES, size, f"C{i}{style}", label=f"{name}, {rule}", linewidth=1)
  beyond = TIMES[~errors.met]
  low, high = beyond[beyond < 0.5].max(), beyond[beyond > 0.5].min()
  for span in ((0, low), (high, 1)):
    axes.axvspan(*span, color="0.9")
  axes.text(0.5, 1e0, "grey: the diffusion has no such noise", fontsize=8, ha="center")
  axes.set(
    yscale="log",
    xlabel="bridge time",
    ylabel="|aligned - pretrained|",
    title="error of the aligned marginal, VideoCrafter",
  )
  axes.legend(fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.35))


def main():
  figure, panels = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
  for draw, axes in zip((draw_states, draw_times, draw_errors), panels, strict=True):
    draw(axes)
  figure.savefig(DOCS / "saf.png", dpi=130)
  for name, d in PRETRAINED.items():
    for rule in ("exact", "published"):
      print(f"{name}, {rule}")
      print(check.report(check.errors(BRIDGE, d, TIMES, rule)), "\n")


if __name__ == "__main__":
  main()
