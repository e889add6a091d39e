"""Seconds of a forward call and of a training step of every system, at the size of its config's smoke.

python -m benchmarks.step_times [--out=x.json]
"""

import importlib
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from fbjax import build
from fbjax.data import pipeline
from fbjax.train import step

CALLS = flags.DEFINE_integer("calls", 10, "Calls to time; the fastest counts")
OUT = flags.DEFINE_string("out", None, "File to write the figures to")
CONFIGS = ("webvid_saf", "ucf101_bridge", "ucf101_bridge_prior", "webvid_saf_cogvideox")


def main(argv: list[str]) -> None:
  del argv
  rows = [measure(name) for name in CONFIGS]
  if OUT.value:
    with open(OUT.value, "w") as file:
      json.dump(rows, file, indent=2)


def measure(name: str) -> dict[str, Any]:
  config = importlib.import_module(f"configs.{name}").get_config("smoke").to_dict()
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  form = build.make_formulation(config)
  key = jax.random.key(0)
  params, frozen = (jax.jit(f)(key) for f in (system.init, system.init_frozen))
  source = build.make_source(config, "train")
  batch = pipeline.read(source, tokenizer, list(range(config["train"]["batch_size"])))
  batch = {k: jnp.asarray(x) for k, x in batch.items() if k not in ("index", "replaced")}
  keys = jax.random.split(key, config["train"]["batch_size"])

  @jax.jit
  def prepare(params, frozen, batch, keys):
    z0, _, cond = system.encode(frozen, batch, keys)
    return z0, system.embed(system.weights(params, frozen), cond)

  z0, cond = prepare(params, frozen, batch, keys)
  times = jnp.full(len(z0), 500.0)
  forward = jax.jit(lambda params, z0, cond: system.denoise(params, z0, times, cond))
  tx = build.make_optimizer(config, system)
  loss = build.make_loss(config, system, form)
  train = jax.jit(step.make_train_step(loss, tx, ema_decay=0.99, seed=0))
  state = step.init_state(params, tx)
  row = {
    "config": name,
    "parameters": sum(x.size for x in jax.tree.leaves(params)),
    "latents": z0.shape,
    "forward_seconds": fastest(lambda: forward(params, z0, cond)),
    "step_seconds": fastest(lambda: train(state, frozen, batch)),
  }
  print(
    f"{name:22} {row['parameters']:>9,} trained parameters, latents {z0.shape}: forward "
    f"{1e3 * row['forward_seconds']:.1f} ms, training step {1e3 * row['step_seconds']:.1f} ms",
    flush=True,
  )
  return row


def fastest(call: Callable[[], Any]) -> float:
  jax.block_until_ready(call())
  seconds = []
  for _ in range(CALLS.value):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return min(seconds)


if __name__ == "__main__":
  app.run(main)
