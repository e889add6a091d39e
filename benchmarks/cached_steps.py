"""Seconds of a training step online and from a cache, clips a second that a cache is read at, and waiting for data.

python -m benchmarks.cached_steps [--out=x.json]

Every system at the size of its config's smoke, on clips of moving shapes; the fastest of some calls. Encoders are
small there: their share of a step's work is told with it.
"""

import importlib
import json
import os
import tempfile
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import measuring
from fbjax import build, caches, loading, sharding
from fbjax.data import pipeline
from fbjax.modes import cache, train
from fbjax.systems import base
from fbjax.tracker import writers
from fbjax.train import loop, step

CALLS = flags.DEFINE_integer("calls", 10, "Calls to time; the fastest counts")
OUT = flags.DEFINE_string("out", None, "File to write the figures to")

CLIPS = 32
BATCHES = 50
STEPS = 200  # of a training that tells how long it waits
CONFIGS = ("webvid_saf", "ucf101_bridge", "webvid_saf_cogvideox")
VAE = {"name": "autoencoder", "width": 8, "mult": (1, 2, 2), "blocks": 1, "groups": 4}


def main(argv: list[str]) -> None:
  del argv
  rows = [measure(name) for name in CONFIGS]
  if OUT.value:
    with open(OUT.value, "w") as file:
      json.dump(rows, file, indent=2)


def measure(name: str) -> dict[str, Any]:
  config = importlib.import_module(f"configs.{name}").get_config("smoke").to_dict()
  config["data"] |= {"clips": CLIPS}
  if config["system"]["codec"]["name"] == "pixels":  # of the smoke; the config itself has a VAE
    config["system"]["codec"] = dict(VAE)
  frames, (height, width) = build.clip_size(config)
  row = {
    "config": name,
    "clips": config["train"]["batch_size"],
    "size": [frames, height, width],
    "online_seconds": seconds(config),
    "online_waiting": waiting(config),
  }
  with tempfile.TemporaryDirectory() as folder:
    cache.cache(config, folder)
    config["cache"] = {"path": folder}
    row["cached_seconds"] = seconds(config)
    row["read_clips_per_s"] = read_rate(config)
    row["cached_waiting"] = waiting(config)
  print(
    f"{name:22} {row['clips']} clips of {frames}x{height}x{width}: step {1e3 * row['online_seconds']:.1f} ms online, "
    f"{1e3 * row['cached_seconds']:.1f} ms cached; {row['read_clips_per_s']:.0f} clips/s read; waits for data "
    f"{row['online_waiting']:.1%} of the time online, {row['cached_waiting']:.1%} cached",
    flush=True,
  )
  return row


def seconds(config: dict[str, Any]) -> float:
  """The fastest training step."""
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  clips = train.clips_of(config, system, tokenizer)
  starting = loading.starting_weights(config, system, mesh, encoders=clips.encoders)
  frozen = starting.frozen | ({} if clips.encoders else clips.frozen(mesh))
  loss = build.make_loss(config, clips.reads(system), build.make_formulation(config))
  tx = build.make_optimizer(config, system)
  program = jax.jit(step.make_train_step(loss, tx, ema_decay=0.99, seed=0))
  state = step.init_state(starting.params(), tx)
  batch = pipeline.read(clips.train, clips.tokenizer, list(range(config["train"]["batch_size"])))
  batch = {k: x for k, x in batch.items() if k not in loop.HOST_FIELDS}
  batch = sharding.put_batch(batch, mesh)
  return measuring.fastest(lambda: program(state, frozen, batch), rounds=CALLS.value)[0]


def waiting(config: dict[str, Any]) -> float:
  """The share of its time that a training waits for data, once it has begun."""
  never = 10 * STEPS
  options = {"steps": STEPS, "log_every": STEPS // 2, "save_every": never, "preview_every": never}
  config = config | {"train": config["train"] | options}
  with tempfile.TemporaryDirectory() as workdir:
    train.train(config, workdir)
    rows = writers.read_metrics(os.path.join(workdir, "metrics.jsonl"))
  return [row["data_wait"] for row in rows if "data_wait" in row][-1]


def read_rate(config: dict[str, Any]) -> float:
  """Clips a second of batches from a cache, from the page cache of the machine."""
  system: base.System = build.make_system(config, build.make_tokenizer(config))
  found = caches.opened(config, system)
  batches = build.make_batches(config, found.train, None, 0, 1)

  def some() -> np.ndarray:
    return [next(batches) for _ in range(BATCHES)][-1]["index"]

  (taken,) = measuring.fastest(some, rounds=CALLS.value)
  batches.close()
  return BATCHES * config["train"]["batch_size"] / taken


if __name__ == "__main__":
  app.run(main)
