"""How well a trained workdir does on clips it has not seen: error against the truth, and direction.

  python -m benchmarks.held_out --workdir=runs/quickstart

Errors are mean squares of pixels in [-1, 1], of the prior that the clips start from, decoded, and of
the samples. On the synthetic clips it also says how many move where their caption says, and how much
of the object is left at its old place: the error there on the last frame, in that of the still image.
"""

import json
import pathlib

import jax
import numpy as np
from absl import app, flags

from fbjax import build, loading, sampling
from fbjax.data import pipeline, synthetic

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "A trained workdir")
CLIPS = flags.DEFINE_integer("clips", 64, "Held-out clips")
GUIDANCE = flags.DEFINE_list("guidance", [], "Guidance to sample with; default: the config's")
BATCH = 32


def main(argv: list[str]) -> None:
  del argv
  workdir = WORKDIR.value
  config = loading.trained_config(workdir)
  tokenizer = build.make_tokenizer(config)
  source = build.make_source(config, "val")
  chosen = choose(source)
  batch = pipeline.read(source, tokenizer, chosen)
  inputs = {name: batch[name] for name in ("video", "tokens", "stride", "label") if name in batch}
  batch_size = min(BATCH, len(chosen))
  truth = as_float(batch["video"])

  mesh = build.make_mesh(config)
  system = build.make_system(config, tokenizer)
  params = loading.trained_weights(workdir, system, mesh)
  frozen = loading.starting_weights(config, system, mesh, workdir).frozen
  form = build.make_formulation(config)
  keys = sampling.clip_keys(0, range(len(chosen)))

  @jax.jit
  def start(frozen, batch, keys):
    images = {"image": batch["video"][:, 0], "last": batch["video"][:, -1]}
    z1 = system.encode(frozen, images | {k: batch[k] for k in batch if k != "video"}, keys).z1
    return sampling.to_uint8(system.decode(frozen, z1))

  prior = sampling.generate(
    lambda params, *rest: start(*rest), params, frozen, inputs, keys=keys, batch_size=batch_size
  )
  still = np.mean((truth[:, :1] - truth) ** 2)
  error = np.mean((as_float(prior) - truth) ** 2)
  print(f"{len(chosen)} held-out clips; the first frame repeated has an error of {still:.4f}")
  print(f"prior, decoded: error {error:.4f} = {error / still:.2f} of still")
  rows = [{"what": "prior", "error": float(error), "ratio": float(error / still)}]
  for guidance in map(float, GUIDANCE.value or [config["sampling"]["guidance"]]):
    sample = build.make_sample(config, system, form, mesh, guidance=guidance)
    videos = sampling.generate(sample, params, frozen, inputs, keys=keys, batch_size=batch_size)
    error = np.mean((as_float(videos) - truth) ** 2)
    row = {"what": "sample", "guidance": guidance, "error": float(error)}
    rows.append(row | {"ratio": float(error / still)})
    line = f"guidance {guidance}: error {error:.4f} = {error / still:.2f} of still"
    if isinstance(source, synthetic.Shapes):
      truths = [source.truth(i) for i in chosen]
      agree = np.mean([synthetic.direction_agrees(*x) for x in zip(videos, truths, strict=True)])
      each = zip(videos, batch["video"], truths, strict=True)
      made, there = np.sum([synthetic.error_left_behind(*x) for x in each], axis=0)
      rows[-1] |= {"agree": float(agree), "left_behind": float(made / there)}
      line += f", direction agrees in {agree:.1%}, left behind {made / there:.3f} of still"
    print(line)
  (pathlib.Path(workdir) / "held_out.json").write_text(json.dumps(rows, indent=2) + "\n")


def choose(source) -> list[int]:
  """The first clips; of the synthetic ones only those that go straight, which have a direction."""
  if not isinstance(source, synthetic.Shapes):
    return list(range(min(CLIPS.value, len(source))))
  straight = [i for i in range(8 * CLIPS.value) if source.truth(i).motion in synthetic.DIRECTIONS]
  return straight[: CLIPS.value]


def as_float(video: np.ndarray) -> np.ndarray:
  return video.astype(np.float32) / 127.5 - 1


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  app.run(main)
