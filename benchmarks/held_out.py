"""How well a trained network does on clips it has not seen: error against the truth, and direction.

  python -m benchmarks.held_out --workdir=runs/quickstart
  python -m benchmarks.held_out --model=zoo/shapes --clips=1024 --steps=4,8,50 --keep=runs/held_out

Errors are mean squares of pixels in [-1, 1], of the prior that the clips start from, decoded, and of
the samples, also in those of the first frame repeated ("still"). On the synthetic clips it also says

  direction agrees   how many of those that go straight move where their caption says
  left behind        how much of the object is left at its old place: the error there on the last
                     frame, in that of the still image
  grain              root mean square error, of 255, where nothing ever moves
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import fbjax
from benchmarks import against, kept
from fbjax import build, pipe, sampling
from fbjax.data import pipeline, synthetic

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "A trained workdir")
MODEL = flags.DEFINE_string("model", "", "A packed model instead")
CLIPS = flags.DEFINE_integer("clips", 64, "Held-out clips")
GUIDANCE = flags.DEFINE_list("guidance", [], "Guidance to sample with; default: the config's")
STEPS = flags.DEFINE_list("steps", [], "Evaluations to sample with; default: the config's")
KEEP = flags.DEFINE_string("keep", "", "Folder for the samples, so that a stopped run goes on")


def main(argv: list[str]) -> None:
  del argv
  net = fbjax.load(MODEL.value or WORKDIR.value)
  source = build.make_source(net.config, "val")
  chosen = range(min(CLIPS.value, len(source)))
  batch = pipeline.read(source, net.tokenizer, chosen)
  inputs = {name: batch[name] for name in ("video", "tokens", "stride", "label") if name in batch}
  truth = batch["video"]
  still = np.mean([against.squares(clip[:1], clip).mean() for clip in truth])
  print(f"{len(chosen)} held-out clips; the first frame repeated has an error of {still:.4f}")
  prior = against.mean_error(kept.samples(net, start(net), inputs), truth)
  print(f"prior, decoded: error {prior:.4f} = {prior / still:.2f} of still")
  rows = [{"what": "prior", "error": float(prior), "ratio": float(prior / still)}]
  spec = net.config["sampling"]
  form = build.make_formulation(net.config)
  shapes = isinstance(source, synthetic.Shapes)
  truths = [source.truth(i) for i in chosen] if shapes else []
  for steps in map(int, STEPS.value or [spec["steps"]]):
    for guidance in map(float, GUIDANCE.value or [spec["guidance"]]):
      asked = {"steps": steps, "guidance": guidance}
      options = build.sampling_options(net.config, **asked)
      sample = build.make_sample(net.config, net.system, form, net.mesh, options)
      began = time.perf_counter()
      videos = kept.samples(
        net, sample, inputs, KEEP.value and f"{KEEP.value}/{kept.name(net, asked)}"
      )
      seconds = time.perf_counter() - began
      error = against.mean_error(videos, truth)
      row = asked | {"error": float(error), "ratio": float(error / still), "seconds": seconds}
      if shapes:
        row |= against.of_shapes(videos, truth, truths)
      rows.append({"what": "sample"} | row)
      print(line(row))
  if not MODEL.value:
    (pathlib.Path(WORKDIR.value) / "held_out.json").write_text(json.dumps(rows, indent=2) + "\n")


def start(net: pipe.Pipe) -> sampling.Sample:
  """A sampler that makes the prior that the clips start from, decoded."""

  @jax.jit
  def prior(params, frozen, batch, keys):
    images = {"image": batch["video"][:, 0], "last": batch["video"][:, -1]}
    told = {name: batch[name] for name in batch if name != "video"}
    z1 = net.system.encode(frozen, images | told, keys).z1
    video = net.system.decode(frozen, z1)
    return sampling.to_uint8(video), jnp.ones(len(video), bool)

  return prior


def line(row: dict[str, float]) -> str:
  text = (
    f"{row['steps']} evaluations, guidance {row['guidance']}: error {row['error']:.4f} = "
    f"{row['ratio']:.3f} of still"
  )
  if "agree" in row:
    text += f", direction agrees in {row['agree']:.1%}"
  if "ratios" in row:
    text += f", left behind {row['left_behind']:.3f} of still, grain {row['grain']:.1f}; "
    text += ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in row["ratios"].items())
  return text


if __name__ == "__main__":
  app.run(main)
