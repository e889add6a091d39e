"""--mode=sample: animates an image, or a folder of images with a prompt file."""

import logging
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from fbjax import build, checks, errors, loading, places, sampling
from fbjax import workdir as workdir_lib
from fbjax.data import prompts, video
from fbjax.systems import base

logger = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".gif")
# A name that ends so is meant for a file.
FOREIGN = (*video.EXTENSIONS, *video.IMAGE_EXTENSIONS, ".apng", ".zip")


class Request(NamedTuple):
  """One clip to make: `place` in the list of images fixes its noise, whatever else is left to do."""

  image: pathlib.Path
  text: str
  output: str
  place: int


def sample(
  config: dict[str, Any] | None,
  workdir: str | None,
  *,
  image: str | None,
  last: str | None = None,
  prompt: str | None = None,
  out: str | None,
  seed: int = 0,
  label: int | None = None,
  fps: int | None = None,
  stride: int | None = None,
  size: tuple[int, int] | None = None,
  frames: int | None = None,
  chunks: int = 1,
  **changes: Any,
) -> list[str]:
  """Animates an image, or a folder of images with a prompt file.

  Args:
    config: None takes the workdir's own.
    workdir: of a trained run; None samples with the weights of `config.weights` as they are.
    image: an image, or a folder of images.
    last: an image to end at, for a system that is given both ends; `image` itself makes a loop.
    prompt: what happens; a folder has its own prompts.
    out: the .mp4 or .gif, or a folder.
    seed: of the noise.
    label: class of the clips, for a class-conditional system; None for none.
    fps: frames a second; None takes the config's, also below.
    stride: frame stride that the network is told.
    size: (height, width) of the clips.
    frames: of a clip.
    chunks: clips in a row, each from the last frame of the one before.
    changes: other keys of `config.sampling`.

  Returns:
    The files written.

  Raises:
    UserError: for images, prompts, sizes, a workdir or a config that do not fit.
  """
  if not image or not out:
    raise errors.UserError(
      "--mode=sample needs --image=<image or folder> and --out=<.mp4, .gif or folder>"
    )
  checks.whole("--chunks", chunks)
  checks.whole("--seed", seed, 0, checks.SEED)
  check_local(image, "image")
  check_local(last, "last")
  config = resolve(config, workdir)
  spec = build.sampling_options(config, fps=fps, stride=stride, **changes)
  build.set_precision(config)
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(build.for_sampling(config), tokenizer)
  check_told(config, system, prompt=prompt, label=label, stride=stride)
  check_ends(system, last, chunks)
  trained_frames, trained_size = build.clip_size(config)
  frames, size = frames or trained_frames, size or trained_size
  checks.clip(frames * chunks, size)
  system = system.for_clips(frames, size)
  requests = plan(image, prompt, out, told="text" in system.conditions)
  images = [read_frame(request.image, size) for request in requests]

  mesh = build.make_mesh(config)
  program = build.make_sample(config, system, build.make_formulation(config), mesh, **changes)
  starting = loading.starting_weights(config, system, mesh, workdir, complete=not workdir)
  if workdir:
    workdir_lib.check(workdir, config, starting.origin)
    params = loading.trained_weights(workdir, system, mesh)
  else:
    params = starting.params()
  n = len(requests)
  inputs = {
    "image": np.stack(images),
    "tokens": tokenizer([request.text for request in requests]),
    "stride": np.full(n, spec.stride, np.int32),
    "label": np.full(n, -1 if label is None else label, np.int32),
  }
  if last:
    inputs["last"] = np.repeat(read_frame(last, size)[None], n, axis=0)
  parts = []
  for chunk in range(chunks):
    keys = sampling.clip_keys(seed, [request.place for request in requests], chunk)
    videos = sampling.generate(
      program, params, starting.frozen, inputs, keys=keys, batch_size=spec.batch_size
    )
    inputs["image"] = videos[:, -1]
    parts.append(videos[:, 1:] if chunk else videos)
  if jax.process_index() == 0:
    for request, clip in zip(requests, np.concatenate(parts, axis=1), strict=True):
      write(request.output, clip, spec.fps)
      logger.info("Wrote %s.", request.output)
  return [request.output for request in requests]


def resolve(config: dict[str, Any] | None, workdir: str | None) -> dict[str, Any]:
  """The config to work with: the workdir's own, or one that means the same network.

  Raises:
    UserError: without either, or when they are of different networks.
  """
  if not workdir:
    if config is None:
      raise errors.UserError("give --workdir=<folder> of a trained run, or --config with weights")
    return config
  if config is None:
    config = loading.trained_config(workdir)
  workdir_lib.check(workdir, config)
  loading.check_trained(workdir)
  return config


def check_local(path: str | None, flag: str) -> None:
  if path and places.is_remote(path):
    raise errors.UserError(
      f"--{flag}={path}: images are not fetched; download it and name the file"
    )


def read_frame(path: str | os.PathLike[str], size: tuple[int, int]) -> np.ndarray:
  return video.resize_crop(video.read_image(path), size)


def check_told(config: dict[str, Any], system: base.System, **given: Any) -> None:
  """Raises a UserError when a condition is given that the system is never told."""
  names = {"prompt": "text", "label": "label", "stride": "stride"}
  for flag, value in given.items():
    if value not in (None, "") and names[flag] not in system.conditions:
      told = [f"--{f}" for f, condition in names.items() if condition in system.conditions]
      raise errors.UserError(
        f"--{flag}={value}: the system {config['system']['name']} of this config is not told a "
        f"{names[flag]}; it takes {' and '.join(told) or 'the image alone'}"
      )
  if given["label"] is not None:
    checks.whole("--label", given["label"], 0, system.whole.classes - 1)


def check_ends(system: base.System, last: str | None, chunks: int) -> None:
  """Raises a UserError when the images given are not those that the system was trained with."""
  ends = "last" in system.conditions
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


def plan(image: str, prompt: str | None, out: str, told: bool = True) -> list[Request]:
  """One request for an image, or one for each image of a folder.

  In a folder, clips that are already there are left out. A system that is not `told` a text needs no
  prompt file there.

  Raises:
    UserError: when nothing is left to do, or the output cannot be written.
  """
  if not os.path.isdir(image):
    path = pathlib.Path(image)
    file = out if is_file(out) else os.path.join(out, f"{path.stem}.mp4")
    places.check_writable(places.absolute(file).parent)
    return [Request(path, prompt or "", file, 0)]
  if prompt:
    raise errors.UserError(f"--prompt: the folder {image} has its own prompts, in its .txt file")
  if is_file(out):
    raise errors.UserError(f"--out={out}: expected a folder, for the clips of the folder {image}")
  found = [
    Request(request.image, request.text, os.path.join(out, request.output), place)
    for place, request in enumerate(prompts.read_prompts(image, told=told))
  ]
  todo = [request for request in found if not places.exists(request.output)]
  if len(todo) < len(found):
    logger.info("%d of %d clips are already in %s.", len(found) - len(todo), len(found), out)
  if not todo:
    raise errors.UserError(f"every clip is already in {out}; remove some or give another --out")
  places.check_writable(out)
  return todo


def is_file(out: str) -> bool:
  """Whether --out is one clip; otherwise it is a folder.

  Raises:
    UserError: for a kind of file that is not written.
  """
  suffix, name = pathlib.Path(out).suffix.lower(), pathlib.Path(out).name
  if os.path.isdir(out) or out.endswith("/"):
    return False
  if name.lower() in (*SUFFIXES, *FOREIGN):
    raise errors.UserError(f"--out={out}: a clip needs a name before {name}")
  if suffix in FOREIGN and suffix not in SUFFIXES:
    raise errors.UserError(f"--out={out}: clips are written as .mp4 or .gif, or into a folder")
  return suffix in SUFFIXES


def write(file: str, clip: np.ndarray, fps: float) -> None:
  """Writes a clip in the format of its name, to a disk or a bucket."""
  writer = video.write_gif if file.lower().endswith(".gif") else video.write_mp4
  try:
    with places.written(file) as local:
      writer(local, clip, fps=fps)
  except OSError as error:
    raise errors.UserError(f"cannot write {file} ({error.strerror or error})") from None
