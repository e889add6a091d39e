"""What a training is watched by: the loss on fixed clips, and how its samples move.

The training's own loss hardly falls when a network goes from wrong to right: random timesteps make
it too noisy. That of the same clips, timesteps and noise at every preview does fall. And a
fine-tune whose samples go static shows it in no loss at all.
"""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from fbjax import build, partition, places, processes, sampling, sharding, tracker
from fbjax.data import pipeline
from fbjax.evaluation import motion
from fbjax.systems import base, formulation
from fbjax.train import loop

logger = logging.getLogger(__name__)

CLIPS = 32  # of the held-out loss

# (EMA weights, frozen weights) -> loss
Loss = Callable[[base.Params, base.Params], float]


def held_out_loss(
  config: dict[str, Any],
  system: base.System,
  form: formulation.Formulation,
  source: Any,
  tokenizer: Any | None,
  mesh: jax.sharding.Mesh,
) -> Loss:
  """Makes the function that computes the training's loss on the first held-out clips.

  Always at the same timesteps with the same noise, and without dropping conditions. The clips are
  read once, and stay in the host's memory.
  """
  size = config["train"]["batch_size"] // config["train"].get("accumulate", 1)
  told = {k: 0.0 for k in config["objective"] if k.startswith("drop_")}
  objective = config["objective"] | told
  loss = build.make_loss(config | {"objective": objective}, system, form)
  loss = jax.jit(partition.over(mesh, loss))
  count = min(CLIPS, len(source))
  firsts = list(range(0, max(count - size, 0) + 1, size))
  share = size // jax.process_count()
  mine = jax.process_index() * share
  batches: list[dict[str, np.ndarray]] = []

  def measure(ema: base.Params, frozen: base.Params) -> float:
    if not batches:
      with processes.together():
        for first in firsts:
          rows = [(first + mine + i) % len(source) for i in range(share)]
          read = pipeline.read(source, tokenizer, rows)
          batches.append({k: x for k, x in read.items() if k not in loop.HOST_FIELDS})
    losses = []
    for first, batch in zip(firsts, batches, strict=True):
      keys = sampling.clip_keys(0, range(first, first + size))
      losses.append(loss(ema, frozen, sharding.put_batch(batch, mesh), keys)[0])
    return float(np.mean(jax.device_get(losses)))

  return measure


class Watch:
  """Measures samples at every preview, and warns when they begin to stand still.

  Args:
    workdir: of the run, whose earlier previews count as well.
    loss: from `held_out_loss`.
  """

  def __init__(self, workdir: str, loss: Loss):
    self._loss = loss
    places.pull(workdir, "metrics.jsonl")
    rows = tracker.read_metrics(places.local(workdir) / "metrics.jsonl")
    self._most = max(tracker.curve(rows, "preview/motion_ratio")[1], default=0.0)

  def __call__(
    self,
    made: UInt8[np.ndarray, "n t h w 3"],
    truth: UInt8[np.ndarray, "n t h w 3"],
    ema: base.Params,
    frozen: base.Params,
  ) -> dict[str, float]:
    """What `motion.report` says of samples, and the held-out loss."""
    found = motion.report(made, truth)
    ratio = found["motion_ratio"]
    if motion.goes_static(ratio, self._most):
      logger.warning(
        "The samples move %.2g times as much as the truth, and moved %.2g times before: the network "
        "is going static. Look at the samples; an earlier checkpoint (config.train.keep) or a lower "
        "config.optim.lr may be better.",
        ratio,
        self._most,
      )
    self._most = max(self._most, ratio)
    return {"loss": self._loss(ema, frozen)} | found
