"""Samples of held-out clips, kept batch by batch, so that a benchmark that was stopped goes on."""

import os
import pathlib

import numpy as np

from fbjax import digest, pipe, places, sampling

BATCH = 32


def samples(
  net: pipe.Pipe, sample: sampling.Sample, inputs: dict[str, np.ndarray], begins: str = ""
) -> list[np.ndarray]:
  """The clips, batch by batch; a batch that lies in files whose names begin with `begins` is not made again."""
  videos = []
  for first in range(0, len(inputs["video"]), BATCH):
    part = {name: x[first : first + BATCH] for name, x in inputs.items()}
    chosen = range(first, first + len(part["video"]))
    file = pathlib.Path(f"{begins}_{chosen.start}-{chosen.stop}.npy")
    if begins and file.exists():
      videos += list(np.load(file))
      continue
    keys = sampling.clip_keys(0, chosen)[None]
    made = list(sampling.generate(sample, *net.weights, part, keys=keys, batch_size=BATCH))
    if bad := [i for i, video in zip(chosen, made, strict=True) if video is None]:
      raise SystemExit(f"{len(bad)} samples are not finite, that of clip {bad[0]} among them")
    videos += made
    if begins:
      with places.written(os.fspath(file)) as aside:
        np.save(aside, np.stack(made))
  return videos


def name(net: pipe.Pipe, asked: dict[str, float]) -> str:
  """What tells samples apart: evaluations, and the digest of all that they are made of."""
  made_of = [net.config, asked, digest.of_tree(net.weights)]
  return f"{asked['steps']}_{digest.of_json(made_of)}"
