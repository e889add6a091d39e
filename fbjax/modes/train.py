"""--mode=train: trains a config in a workdir, from where the workdir's last run stopped."""

import logging
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils

from fbjax import build, loading, places, sampling, tracker
from fbjax import workdir as workdir_lib
from fbjax.data import pipeline, video
from fbjax.train import loop

logger = logging.getLogger(__name__)

PREVIEWS = 8


def train(config: dict[str, Any], workdir: str) -> None:
  """Trains a config in a workdir.

  Raises:
    UserError: for keys, sizes, weights or data that do not fit; for a workdir that is another
      run's, or that somebody trains in; when the loss is not finite.
  """
  build.set_precision(config)
  mesh = build.make_mesh(config)
  tokenizer = build.make_tokenizer(config)
  source = build.make_source(config, "train")
  held_out = build.make_source(config, "val")
  system = build.make_system(config, tokenizer)
  if workdir_lib.newest_step(workdir) is not None:
    workdir_lib.check(workdir, config)
  form = build.make_formulation(config)
  loss_fn = build.make_loss(config, system, form)
  optimizer = build.make_optimizer(config, system)
  shown_by = build.for_sampling(config)
  sampled = system if shown_by == config else build.make_system(shown_by, tokenizer)
  sample = build.make_sample(config, sampled, form, mesh)
  data = build.make_batches(config, source, tokenizer, jax.process_index(), jax.process_count())
  starting = loading.starting_weights(config, system, mesh, workdir)
  shown = pipeline.read(held_out, tokenizer, list(range(min(PREVIEWS, len(held_out)))))
  captions = [held_out.caption(int(i)) for i in shown["index"]]

  def preview(step: int, ema: Any) -> np.ndarray:
    frozen = starting.frozen
    return write_preview(workdir, step, sample, ema, frozen, shown, captions, config["sampling"])

  origin = starting.origin | {"data": source.digest()}
  with workdir_lib.claim(workdir, config, origin) as record:
    logger.info("Training %s.", summary(config, workdir, system, len(source), mesh))

    def begins(step: int) -> None:
      if step == 0:
        loading.keep_prior(workdir, starting.frozen)
      record(step)

    run = build.bind(
      loop.train,
      config["train"],
      "train",
      loss_fn=loss_fn,
      tx=optimizer,
      init=system.init,
      start=starting.params,
      frozen=starting.frozen,
      data=data,
      mesh=mesh,
      workdir=workdir,
      seed=config["seed"],
      preview=preview,
      begins=begins,
      clip_name=source.name,
      preempted=preempted,
    )
    run()
  data.close()


def summary(config: Any, workdir: str, system: Any, clips: int, mesh: jax.sharding.Mesh) -> str:
  """`videocrafter in runs/x: 1,234 of 5,678 parameters, 90 clips, 8 devices (TPU v5e)`."""
  params = jax.eval_shape(system.init, jax.random.key(0))
  count = int(parameter_overview.count_parameters(params))
  device = jax.devices()[0].device_kind
  name = config["system"]["name"]
  return (
    f"{name} in {workdir}: {count:,} parameters, {clips:,} clips, {mesh.size} devices ({device})"
  )


def preempted(step: int) -> bool:
  """Whether the run was told to stop by SIGTERM; all processes agree on the step."""
  if not jax.distributed.is_initialized():  # a notebook that used JAX before
    return False
  return multihost_utils.reached_preemption_sync_point(step)


def write_preview(
  workdir: str,
  step: int,
  sample: sampling.Sample,
  ema: Any,
  frozen: Any,
  shown: dict[str, np.ndarray],
  captions: list[str],
  spec: dict[str, Any],
) -> np.ndarray:
  """Samples held-out clips, writes samples/<step>/*.mp4 and a sheet of them, which it returns.

  The sheet is samples/<step>.png, and moves in samples/<step>.gif.

  Every process samples, since the weights are spread over all of them; the first one writes.
  """
  inputs = {name: shown[name] for name in ("video", "tokens", "stride", "label")}
  keys = sampling.clip_keys(0, range(len(captions)))
  videos = sampling.generate(sample, ema, frozen, inputs, keys=keys, batch_size=spec["batch_size"])
  rows = [
    {"given": truth[:1], "truth": truth, "sample": made}
    for truth, made in zip(shown["video"], videos, strict=True)
  ]
  sheet = tracker.contact_sheet(rows, captions)
  if jax.process_index() == 0:
    folder = places.local(workdir) / "samples" / f"{step:07}"
    folder.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(rows):
      beside = np.concatenate([row["truth"], row["sample"]], axis=2)
      video.write_mp4(folder / f"{i:02}.mp4", beside, fps=spec["fps"])
    tracker.write_png(folder.with_suffix(".png"), sheet)
    moving = tracker.moving_sheet(rows, captions)
    video.write_gif(folder.with_suffix(".gif"), moving, fps=spec["fps"])
    places.push(workdir)
    logger.info("Wrote samples to %s.png, %s.gif and %s/.", folder, folder, folder)
  return sheet
