"""What each mode does: a config and a workdir in, files out. Also for notebooks."""

import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils

from fbjax import build, checkpoint, errors, places, sampling, sharding, tracker, transfer
from fbjax import weights as weights_lib
from fbjax import workdir as workdir_lib
from fbjax.data import pipeline, prompts, video
from fbjax.systems import base, coarse
from fbjax.train import loop

logger = logging.getLogger(__name__)

# Keys that may differ between two runs of one workdir: they change how, not what, is trained.
FREE = (
  "weights",
  "prior_run",
  "port",
  "loader",
  "mesh",
  "sampling",
  "train.steps",
  "train.accumulate",
  "train.log_every",
  "train.save_every",
  "train.preview_every",
  "train.keep",
)
PREVIEWS = 8


def train(config: dict[str, Any], workdir: str) -> None:
  """Trains a config in a workdir, from where the workdir's last run stopped.

  Raises:
    UserError: for keys or sizes that do not fit, or a workdir trained with another config.
    UserError: for data or a workdir that is not there.
    UserError: when the loss is not finite.
  """
  mesh = build.make_mesh(config)
  tokenizer = build.make_tokenizer(config)
  source = build.make_source(config, "train")
  held_out = build.make_source(config, "val")
  system = build.make_system(config, tokenizer)
  form = build.make_formulation(config)
  loss_fn = build.make_loss(config, system, form)
  tx = build.make_optimizer(config)
  sample = build.make_sample(config, system, form, mesh)
  data = build.make_batches(config, source, tokenizer, jax.process_index(), jax.process_count())
  workdir_lib.claim(workdir, config, FREE)

  start, frozen = load_start(config, system, mesh)
  params = jax.eval_shape(system.init, jax.random.key(0))
  logger.info(
    "Training %s in %s: %s parameters, %d clips, %d devices (%s).",
    config["system"]["name"],
    workdir,
    f"{parameter_overview.count_parameters(params):,}",
    len(source),
    mesh.size,
    jax.devices()[0].device_kind,
  )
  shown = pipeline.read(held_out, tokenizer, list(range(min(PREVIEWS, len(held_out)))))
  captions = [held_out.caption(int(i)) for i in shown["index"]]

  def preview(step: int, ema: Any) -> np.ndarray:
    return write_preview(workdir, step, sample, ema, frozen, shown, captions, config["sampling"])

  build.call(
    loop.train,
    config["train"],
    "train",
    loss_fn=loss_fn,
    tx=tx,
    init=system.init,
    start=start,
    frozen=frozen,
    data=data,
    mesh=mesh,
    workdir=workdir,
    seed=config["seed"],
    preview=preview,
    clip_name=source.name,
    preempted=preempted,
  )
  data.close()


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
  """Samples held-out clips, writes samples/<step>/*.mp4 and samples/<step>.png, returns the sheet."""
  inputs = {name: shown[name] for name in ("video", "tokens", "stride", "label")}
  videos = sampling.generate(sample, ema, frozen, inputs, seed=0, batch_size=spec["batch_size"])
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
    places.push(workdir)
    logger.info("Wrote samples to %s.png and %s/.", folder, folder)
  return sheet


def sample(
  config: dict[str, Any],
  workdir: str,
  *,
  image: str | None,
  last: str | None = None,
  prompt: str = "",
  out: str | None,
  seed: int = 0,
  label: int = -1,
  fps: int | None = None,
  stride: int | None = None,
  size: tuple[int, int] | None = None,
  frames: int | None = None,
  chunks: int = 1,
  **changes: Any,
) -> list[pathlib.Path]:
  """Animates an image, or a folder of images with a prompt file, with a trained workdir.

  Args:
    config: that of the workdir.
    workdir: of a trained run.
    image: an image, or a folder of images.
    last: an image to end at, for a system that is given both ends; `image` itself makes a loop.
    prompt: what happens; a folder has its own prompts.
    out: the mp4, or a folder for many.
    seed: of the noise.
    label: class of the clips, for a class-conditional system; -1 for none.
    fps: frames a second; None takes the config's, also below.
    stride: frame stride that the network is told.
    size: (height, width) of the clips.
    frames: of a clip.
    chunks: clips in a row, each from the last frame of the one before.
    changes: other keys of `config.sampling`.

  Returns:
    The mp4 files written.

  Raises:
    UserError: for images, prompts, a workdir or a config that do not fit.
  """
  if not image or not out:
    raise errors.UserError(
      "--mode=sample needs --image=<image or folder> and --out=<mp4 or folder>"
    )
  workdir_lib.check(workdir, config, FREE)
  spec = config["sampling"]
  requests = sample_requests(image, prompt, out)
  wanted = (size or video.pair(config["data"]["size"]), frames or config["data"]["frames"])
  config = config | {"data": config["data"] | {"size": wanted[0], "frames": wanted[1]}}
  images = [read_frame(request.image, wanted[0]) for request in requests]

  mesh = build.make_mesh(config)
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  check_ends(config, last, chunks)
  form = build.make_formulation(config)
  program = build.make_sample(config, system, form, mesh, **changes)
  _, frozen = load_start(config, system, mesh)
  params = load_ema(workdir, system, mesh)
  inputs = {
    "image": np.stack(images),
    "tokens": tokenizer([request.text for request in requests]),
    "stride": np.full(len(requests), spec["stride"] if stride is None else stride, np.int32),
  }
  inputs["label"] = np.full(len(requests), label, np.int32)
  if last:
    inputs["last"] = np.repeat(read_frame(last, wanted[0])[None], len(requests), axis=0)
  parts = []
  for chunk in range(chunks):
    videos = sampling.generate(
      program, params, frozen, inputs, seed=seed + chunk, batch_size=spec["batch_size"]
    )
    inputs["image"] = videos[:, -1]
    parts.append(videos[:, 1:] if chunk else videos)
  for request, clip in zip(requests, np.concatenate(parts, axis=1), strict=True):
    video.write_mp4(request.output, clip, fps=fps or spec["fps"])
    logger.info("Wrote %s.", request.output)
  return [pathlib.Path(request.output) for request in requests]


def read_frame(path: str | os.PathLike[str], size: tuple[int, int]) -> np.ndarray:
  return video.resize_crop(video.read_image(path), size)


def check_ends(config: dict[str, Any], last: str | None, chunks: int) -> None:
  """Raises a ValueError when the images given are not those that the system was trained with."""
  ends = config["system"].get("given") == "ends"
  if ends and not last:
    raise errors.UserError(
      "this network goes from a first to a last frame: give --last=<image> too (the same: a loop)"
    )
  if last and not ends:
    raise errors.UserError(
      "this network was trained with the first frame alone: leave --last out, or train with "
      "--config.system.given=ends"
    )
  if ends and chunks > 1:
    raise errors.UserError(
      "a clip that has its last frame given cannot be continued: leave out --chunks"
    )


def sample_requests(image: str, prompt: str, out: str) -> list[prompts.Prompt]:
  """One request for an image, or one for each image of a folder; outputs are full paths.

  In a folder, clips that are already there are left out.

  Raises:
    UserError: when nothing is left to do.
  """
  if not os.path.isdir(image):
    return [prompts.Prompt(pathlib.Path(image), prompt, out)]
  found = [
    request._replace(output=os.path.join(out, request.output))
    for request in prompts.read_prompts(image)
  ]
  todo = [request for request in found if not os.path.exists(request.output)]
  if len(todo) < len(found):
    logger.info("%d of %d clips are already in %s.", len(found) - len(todo), len(found), out)
  if not todo:
    raise errors.UserError(f"every clip is already in {out}; remove some or give another --out")
  return todo


def load_ema(workdir: str, system: Any, mesh: jax.sharding.Mesh) -> Any:
  """The averaged weights of the newest checkpoint, placed on the mesh.

  Raises:
    UserError: when the workdir holds no checkpoint.
  """
  return newest_ema(workdir, jax.eval_shape(system.init, jax.random.key(0)), mesh)


def newest_ema(workdir: str, wanted: Any, mesh: jax.sharding.Mesh) -> Any:
  """The part of `load_ema` that is `wanted`, a tree of shapes."""
  shapes = {"ema": wanted}
  placed = sharding.placed(shapes, sharding.tree(shapes, mesh))
  step, found = checkpoint.load(workdir, placed)
  logger.info("Restored step %d of %s.", step, workdir)
  return found["ema"]


def load_start(
  config: dict[str, Any], system: base.System, mesh: jax.sharding.Mesh
) -> tuple[Callable[[], Any] | None, Any]:
  """What a run starts from: (how to read the trainable weights, the frozen ones), on the mesh.

  Without `config.weights` the first is None, and what is frozen is drawn at random, but for a neural
  prior that another run has trained.
  """
  elsewhere = build.of_prior_run(config, system)
  start, frozen = ported_or_drawn(config, system, mesh, elsewhere)
  if elsewhere:
    frozen = frozen | prior_weights(config, system, mesh)
  return start, frozen


def ported_or_drawn(
  config: dict[str, Any], system: base.System, mesh: jax.sharding.Mesh, elsewhere: Sequence[str]
) -> tuple[Callable[[], Any] | None, Any]:
  """`load_start` without the parts that come from `elsewhere`."""
  key = jax.random.key(config["seed"])

  def init_frozen(key: jax.Array) -> Any:
    return {n: w for n, w in system.init_frozen(key).items() if n not in elsewhere}

  folder = config["weights"]
  if not folder:
    like = jax.eval_shape(init_frozen, key)
    if set(like) - {"base"}:
      logger.warning("Frozen networks are drawn at random, good for trying out only: set weights.")
    return None, jax.jit(init_frozen, out_shardings=sharding.tree(like, mesh))(key)

  matrices = build.DTYPES[config["system"]["dtype"]]
  frozen_shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, matrices if x.ndim > 1 else x.dtype),
    {n: x for n, x in jax.eval_shape(system.whole.init_frozen, key).items() if n not in elsewhere},
  )
  wanted = {"params": jax.eval_shape(system.whole.init, key), "frozen": frozen_shapes}
  wanted = sharding.placed(wanted, sharding.tree(wanted, mesh))

  def read(group: str) -> Any:
    return weights_lib.read_weights(folder, {group: wanted[group]})[group]

  frozen = read("frozen") if jax.tree.leaves(frozen_shapes) else {}
  logger.info("Read frozen weights of %s.", folder)
  if system is system.whole:
    return lambda: read("params"), frozen
  split = jax.jit(system.split)
  params, kept = split(read("params"), key)
  return lambda: params, frozen | {"base": kept}


def prior_weights(config: dict[str, Any], system: base.System, mesh: jax.sharding.Mesh) -> Any:
  """The neural prior that `config.prior_run`, a workdir, has trained, as frozen weights.

  It was trained by itself, or along with a network that was told its video.

  Raises:
    UserError: when nothing was trained there.
    UserError: when it was trained in other sizes, or in part only; or is to be trained here.
  """
  workdir = config["prior_run"]
  if config["prior"]["trained"]:
    raise errors.UserError(
      "config.prior.trained trains a new neural prior: leave config.prior_run empty"
    )
  theirs = workdir_lib.read_config(workdir)
  if theirs["trainable"]["name"] != "all":
    raise errors.UserError(
      f"the neural prior in {workdir} was trained in part ({theirs['trainable']['name']}); give one "
      "of which all was trained"
    )
  made = build.make_system(theirs, build.make_tokenizer(theirs)).parts
  names = {n: n if n in made else n.removeprefix(coarse.PREFIX) for n in coarse.of(system.parts)}
  for ours, name in names.items():
    there, here = (p[n].sizes if n in p else None for p, n in ((made, name), (system.parts, ours)))
    if there != here:
      raise errors.UserError(
        f"the network {name!r} of the neural prior in {workdir} has the sizes {there}, but "
        f"config.prior asks for {here}"
      )
  wanted = {name: made[name].shapes() for name in names.values()}
  found = newest_ema(workdir, wanted, mesh)
  return {ours: found[name] for ours, name in names.items()}


def port(config: dict[str, Any], weights: list[str], out: str | None) -> None:
  """Reads checkpoints of other code bases into a folder; see `transfer.port_files`."""
  transfer.port_files(config, weights, out)


def export(config: dict[str, Any], workdir: str | None, out: str | None) -> None:
  """Writes averaged weights of a run, or ported ones as they came, as a checkpoint of their origin.

  Raises:
    UserError: without a folder of ported weights, which knows that origin.
  """
  folder = config["weights"]
  if not folder or not out:
    raise errors.UserError(
      "--mode=export needs --config.weights=<folder that --mode=port wrote>, which knows the layout, "
      "and --out=<.ckpt, .pt or .safetensors, or a folder>"
    )
  stored = transfer.stored_tree(folder)
  params, frozen = stored.get("params", {}), stored.get("frozen", {})
  if workdir:
    workdir_lib.check(workdir, config, FREE)
    mesh = build.make_mesh(config)
    system = build.make_system(config, None)
    _, kept = load_start(config, system, mesh)
    params = jax.jit(system.weights)(load_ema(workdir, system, mesh), kept)
  transfer.export(config, params, frozen, folder, out)
