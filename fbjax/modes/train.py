"""--mode=train: trains a config in a workdir, from where the workdir's last run stopped."""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from fbjax import (
  build,
  caches,
  errors,
  loading,
  pipe,
  places,
  reports,
  sampling,
  sharding,
  tracker,
)
from fbjax import workdir as workdir_lib
from fbjax.data import pipeline, prompts, video
from fbjax.modes import cache, port, watch
from fbjax.systems import base, cached
from fbjax.train import goodput, loop

logger = logging.getLogger(__name__)

PREVIEWS = 8


def train(
  config: dict[str, Any],
  workdir: str,
  profile: bool = False,
  clock: goodput.Clock | None = None,
  named: str = "",
  given: Mapping[str, Any] | None = None,
) -> bool:
  """Trains a config in a workdir.

  Args:
    config: what to train.
    workdir: where it is written.
    profile: whether to trace a few steps into the workdir.
    clock: that runs since the training began; default: it begins here.
    named, given: the file of the config, and what it makes without the user's changes, for the report.

  Returns:
    Whether it is done; if not, it was asked to stop.

  Raises:
    UserError: for keys, sizes, weights or data that do not fit; for a workdir that is another
      run's, or that somebody trains in; when the loss is not finite.
  """
  clock = clock or goodput.Clock()
  tracker.check_installed(config["train"].get("writers", ""))
  build.set_precision(config)
  mesh = build.make_mesh(config)
  loop.check_divides(config["train"]["batch_size"], config["train"].get("accumulate", 1), mesh)
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  clips = clips_of(config, system, tokenizer)
  port.check_ignore(config["port"], system.whole)
  if workdir_lib.newest_step(workdir) is not None:
    workdir_lib.check(workdir, config)
  form = build.make_formulation(config)
  loss_fn = build.make_loss(config, clips.reads(system), form)
  optimizer = build.make_optimizer(config, system)
  tell_warmup(config)
  tell_size(config)
  shown_by = build.for_sampling(config)
  sampled = system if shown_by == config else build.make_system(shown_by, tokenizer)
  sample = build.make_sample(config, clips.reads(sampled), form, mesh)
  processes = jax.process_index(), jax.process_count()
  data = build.make_batches(config, clips.train, clips.tokenizer, *processes)
  previews = [clips.preview]
  if config["sampling"].get("images"):
    own = own_preview(config, system, tokenizer)
    if not clips.encoders:
      own = own._replace(inputs=cache.images(config, system, tokenizer, own.inputs))
    previews.append(own)
  starting = loading.starting_weights(config, system, mesh, workdir, encoders=clips.encoders)
  loss = watch.held_out_loss(
    config, clips.reads(system), form, clips.held_out, clips.tokenizer, mesh
  )
  watched = watch.Watch(workdir, loss)
  frozen, shown_with = starting.frozen, starting.frozen
  if not clips.encoders:
    frozen = frozen | clips.frozen(mesh)
    shown_with = frozen | loading.frozen_networks(config, system, mesh, system.decoders)

  def preview(step: int, ema: Any) -> tuple[np.ndarray, dict[str, float], pathlib.Path]:
    spec = config["sampling"]
    made = [draw_preview(step, sample, ema, shown_with, shown, spec) for shown in previews]
    truth = np.stack([blocks["truth"] for blocks in previews[0].blocks])
    values = watched(np.stack(made[0]), truth, ema, frozen)
    # Last: where the first process cannot write, the others wait for it in nothing.
    sheets = [
      write_preview(workdir, step, videos, shown, spec["fps"])
      for videos, shown in zip(made, previews, strict=True)
    ]
    return sheets[0], values, moving_file(workdir, step, previews[0])

  origin = starting.origin | {"data": data.digest()}
  with workdir_lib.claim(workdir, config, origin) as record:
    logger.info("Training %s.", summary(config, workdir, system, len(clips.train), mesh))

    def begins(step: int) -> None:
      if step == 0:
        loading.keep_prior(workdir, starting.frozen)
      record(step)
      reports.note_start(workdir, config, named, given)

    run = build.bind(
      loop.train,
      config["train"],
      "train",
      loss_fn=loss_fn,
      tx=optimizer,
      init=system.init,
      start=starting.params,
      frozen=frozen,
      data=data,
      mesh=mesh,
      workdir=workdir,
      seed=config["seed"],
      preview=preview,
      begins=begins,
      clip_name=clips.train.name,
      preempted=preempted,
      clock=clock,
      profiled=profile,
    )
    with reports.leaving(workdir):
      state = run()
  data.close()
  return int(state.step) >= config["train"]["steps"]


class Clips(NamedTuple):
  """Where the clips of a training come from: their files, or what a cache has of them.

  train, held_out: sources. tokenizer: of captions; None where the sources give features. preview: of the
  first held-out clips. nulls: of a cache, features that are the same for all clips.
  """

  train: Any
  held_out: Any
  tokenizer: Any | None
  preview: "Preview"
  nulls: Any | None = None

  @property
  def encoders(self) -> bool:
    """Whether the training runs the system's encoders."""
    return self.nulls is None

  def reads(self, system: base.System) -> base.System:
    """The system that takes these clips: `system`, or for a cache one that takes features."""
    return system if self.encoders else cached.fed(system)

  def frozen(self, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The null features of a cache, replicated, which the system has among its frozen weights."""
    everywhere = sharding.replicated(mesh)

    def place(x: np.ndarray) -> jax.Array:
      return jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])

    return {cached.NULLS: jax.tree.map(place, self.nulls)}


def clips_of(config: dict[str, Any], system: base.System, tokenizer: Any) -> Clips:
  """The clips that `config.cache` or else `config.data` names.

  Raises:
    UserError: for data that cannot be read, or a cache that is not this config's.
  """
  if not build.cache_options(config).path:
    train, held_out = (build.make_source(config, split) for split in ("train", "val"))
    return Clips(train, held_out, tokenizer, preview_of(held_out, tokenizer))
  build.refuse_buckets(config)
  found = caches.opened(config, system)
  return Clips(found.train, found.held_out, None, preview_from(found.shown), found.nulls)


def tell_warmup(config: dict[str, Any]) -> None:
  """Warns of a training with fewer steps than its learning rate's warm-up."""
  warmup, steps = config["optim"].get("warmup", 0), config["train"]["steps"]
  if warmup > steps:
    logger.warning(
      "config.optim.warmup is %s of %s steps: the learning rate ends at %.2g of config.optim.lr.",
      f"{warmup:,}",
      f"{steps:,}",
      steps / warmup,
    )


def tell_size(config: dict[str, Any]) -> None:
  """Warns of previews of a size that is not trained."""
  frames, size = build.clip_size(config)
  taken = build.buckets(config)
  if taken and (frames, *size) not in taken:
    logger.warning(
      "Previews, the held-out loss and samples have config.data.frames=%d and config.data.size=%s, which "
      "none of config.data.buckets has.",
      frames,
      size,
    )


def summary(config: Any, workdir: str, system: Any, clips: int, mesh: jax.sharding.Mesh) -> str:
  """`videocrafter in runs/x: 1,234 parameters, 90 clips, 8 devices (TPU v5e)`.

  The parameters are those that train.
  """
  params = jax.eval_shape(system.init, jax.random.key(0))
  count = int(parameter_overview.count_parameters(params))
  device = jax.devices()[0].device_kind
  name = config["system"]["name"]
  return (
    f"{name} in {workdir}: {count:,} parameters, {clips:,} clips, {mesh.size} devices ({device})"
  )


def preempted(call: int) -> bool:
  """Whether the run was told to stop by SIGTERM; all processes agree on the step.

  A notice that comes before the first call stops the run at call 1, and at no other.
  """
  if not jax.distributed.is_initialized():  # a notebook that used JAX before
    return False
  return multihost_utils.reached_preemption_sync_point(call)


class Preview(NamedTuple):
  """What a training animates at every preview, always with the same noise.

  name: suffix after the step in file names. inputs: of the sampler, with leading axis n.
  captions: n of them. files: n names of clips. blocks: named videos to show before each sample.
  """

  name: str
  inputs: dict[str, np.ndarray]
  captions: list[str]
  files: list[str]
  blocks: list[dict[str, np.ndarray]]


def preview_of(held_out: Any, tokenizer: Any) -> Preview:
  """The first held-out clips, with their truth."""
  shown = pipeline.read(held_out, tokenizer, list(range(min(PREVIEWS, len(held_out)))))
  inputs = {name: shown[name] for name in ("video", "tokens", "stride", "label")}
  captions = [held_out.caption(int(i)) for i in shown["index"]]
  blocks = [{"given": truth[:1], "truth": truth} for truth in shown["video"]]
  return Preview("", inputs, captions, [f"{i:02}.mp4" for i in range(len(captions))], blocks)


def preview_from(shown: Any) -> Preview:
  """The first held-out clips of a cache, with their truth."""
  rows = list(range(min(PREVIEWS, len(shown))))
  read = pipeline.read(shown, None, rows)
  inputs = {
    path.removeprefix(caches.GIVEN): x for path, x in read.items() if path.startswith(caches.GIVEN)
  }
  captions = [shown.caption(int(i)) for i in read["index"]]
  blocks = [{"given": truth[:1], "truth": truth} for truth in read[caches.VIDEO]]
  return Preview("", inputs, captions, [f"{i:02}.mp4" for i in rows], blocks)


def own_preview(config: dict[str, Any], system: base.System, tokenizer: Any) -> Preview:
  """The images and prompts of the folder `config.sampling.images`.

  Raises:
    UserError: for a folder without images, or a prompt file that does not fit them; for a network
      that is given a last frame too.
  """
  if "last" in system.conditions:
    raise errors.UserError(
      "config.sampling.images has first frames alone, and this network is given the last one too: "
      "leave it empty"
    )
  spec, (_, size) = config["sampling"], build.clip_size(config)
  if not os.path.isdir(spec["images"]):
    raise errors.UserError(
      f"config.sampling.images is {spec['images']!r}, which is no folder; name one of images with prompts"
    )
  found = prompts.read_prompts(spec["images"], told="text" in system.conditions)
  images = np.stack([pipe.frame(prompt.image, size) for prompt in found])
  captions = [prompt.text for prompt in found]
  inputs = {
    "image": images,
    "tokens": tokenizer(captions),
    "stride": np.full(len(found), spec.get("stride", 1), np.int32),
    "label": np.full(len(found), -1, np.int32),
  }
  blocks = [{"given": image[None]} for image in images]
  return Preview("-images", inputs, captions, [prompt.output for prompt in found], blocks)


def moving_file(workdir: str, step: int, shown: Preview) -> pathlib.Path:
  """The file of a preview's sheet as a GIF, on this machine."""
  return places.local(workdir) / "samples" / f"{step:07}{shown.name}.gif"


def draw_preview(
  step: int,
  sample: sampling.Sample,
  ema: Any,
  frozen: Any,
  shown: Preview,
  spec: dict[str, Any],
) -> list[UInt8[np.ndarray, "t h w 3"]]:
  """The samples of a preview; every process draws them, since the weights are spread over all.

  Raises:
    UserError: for a sample that is not finite.
  """
  keys = sampling.clip_keys(0, range(len(shown.captions)))[None]
  made = sampling.generate(
    sample, ema, frozen, shown.inputs, keys=keys, batch_size=spec["batch_size"]
  )
  videos = list(made)
  if any(clip is None for clip in videos):
    raise errors.UserError(f"a sample at step {step}: {pipe.NOT_FINITE}")
  return videos


def write_preview(
  workdir: str,
  step: int,
  videos: list[UInt8[np.ndarray, "t h w 3"]],
  shown: Preview,
  fps: float,
) -> UInt8[np.ndarray, "height width 3"]:
  """Writes the samples of a preview, samples/<step><name>/*.mp4, and a sheet of them, which it returns.

  The sheet is samples/<step><name>.png, and moves in samples/<step><name>.gif. The first process
  writes.
  """
  captions = shown.captions
  rows = [blocks | {"sample": made} for blocks, made in zip(shown.blocks, videos, strict=True)]
  sheet = tracker.contact_sheet(rows, captions)
  if jax.process_index() == 0:
    folder = places.local(workdir) / "samples" / f"{step:07}{shown.name}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, row in zip(shown.files, rows, strict=True):
      beside = [row[name] for name in ("truth", "sample") if name in row]
      video.write_mp4(folder / file, np.concatenate(beside, axis=2), fps=fps)
    tracker.write_png(folder.with_suffix(".png"), sheet)
    moving = tracker.moving_sheet(rows, captions)
    video.write_gif(moving_file(workdir, step, shown), moving, fps=fps)
    places.push(workdir)
    logger.info("Wrote samples to %s.png, %s.gif and %s/.", folder, folder, folder)
  return sheet
