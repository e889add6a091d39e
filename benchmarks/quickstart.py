"""How well a trained quickstart moves things: direction against the caption, error against the truth.

python -m benchmarks.quickstart --workdir=runs/quickstart
"""

import json
import pathlib

import jax
import numpy as np
from absl import app, flags

from fbjax import build, checkpoint, run, sampling
from fbjax.data import pipeline, synthetic

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "A trained workdir of the quickstart")
CLIPS = flags.DEFINE_integer("clips", 64, "Held-out clips")
BATCH = 32


def main(argv: list[str]) -> None:
  del argv
  workdir = WORKDIR.value
  config = checkpoint.read_config(workdir)
  tokenizer = build.make_tokenizer(config)
  source = build.make_source(config, "val")
  # Only straight motions have a direction to agree with.
  straight = [i for i in range(8 * CLIPS.value) if source.truth(i).motion in synthetic.DIRECTIONS][
    : CLIPS.value
  ]
  batch = pipeline.read(source, tokenizer, straight)
  truth = as_float(batch["video"])
  still = np.mean((truth[:, :1] - truth) ** 2)
  print(f"{len(straight)} held-out clips; the still image repeated has an error of {still:.4f}")

  mesh = build.make_mesh(config)
  system = build.make_system(config, tokenizer)
  params = run.load_ema(workdir, system, mesh)
  form = build.make_formulation(config)
  inputs = {name: batch[name] for name in ("video", "tokens", "stride")}
  rows = []
  for guidance in sorted({1.0, config["sampling"]["guidance"], 2.0}):
    sample = build.make_sample(config, system, form, mesh, guidance=guidance)
    videos = sampling.generate(sample, params, {}, inputs, seed=0, batch_size=BATCH)
    agree = np.mean(
      [
        bool(synthetic.direction_agrees(v, source.truth(i)))
        for v, i in zip(videos, straight, strict=True)
      ]
    )
    error = np.mean((as_float(videos) - truth) ** 2)
    rows.append(
      {
        "guidance": guidance,
        "agree": float(agree),
        "error": float(error),
        "ratio": float(error / still),
      }
    )
    print(
      f"guidance {guidance}: direction agrees in {agree:.0%}, error {error:.4f} = {error / still:.2f} of still"
    )
  (pathlib.Path(workdir) / "motion.json").write_text(json.dumps(rows, indent=2) + "\n")


def as_float(video: np.ndarray) -> np.ndarray:
  return video.astype(np.float32) / 127.5 - 1


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  app.run(main)
