"""--mode=sample: animates an image, or a folder of images with a prompt file."""

import logging
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from fbjax import box, checkpoint, errors, loading, places, processes
from fbjax import pipe as pipes
from fbjax import workdir as workdir_lib
from fbjax.data import prompts, video

logger = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".gif")
# A name that ends so is meant for a file.
FOREIGN = (*video.EXTENSIONS, *video.IMAGE_EXTENSIONS, ".apng", ".zip")


class Request(NamedTuple):
  """One clip to make."""

  image: pathlib.Path
  text: str
  output: str


def sample(
  config: dict[str, Any] | None,
  workdir: str | None,
  *,
  image: str | None,
  model: str | None = None,
  last: str | None = None,
  prompt: str | None = None,
  out: str | None,
  overwrite: bool = False,
  step: int | None = None,
  ema: bool = True,
  **options: Any,
) -> list[str]:
  """Animates an image, or a folder of images with a prompt file.

  Args:
    config: None takes the workdir's own.
    workdir: of a trained run; None samples with the weights of `config.weights` as they are.
    image: an image, or a folder of images.
    model: a folder that --mode=pack wrote, in place of config and workdir.
    last: an image to end at, for a system that is given both ends; `image` itself makes a loop.
    prompt: what happens; a folder has its own prompts.
    out: the .mp4 or .gif, or a folder.
    overwrite: makes those clips of a folder again that are already there.
    step, ema: which weights of the run, as `pipe.Pipe`.
    options: the arguments of `pipe.Pipe.settings`, such as seed, steps and size.

  Returns:
    The files written.

  Raises:
    UserError: for images, prompts, sizes, a workdir or a config that do not fit.
  """
  if not image or not out:
    raise errors.UserError(
      "--mode=sample needs --image=<image or folder> and --out=<.mp4, .gif or folder>"
    )
  image = box.find(image)
  check_local(image, "image")
  check_local(last, "last")
  config = resolve(config, workdir, model)
  pipe = pipes.Pipe(config, workdir, step=step, ema=ema)
  with processes.together():
    requests = plan(image, prompt, out, told=pipe.is_told_text, overwrite=overwrite)
  requests = processes.gather(requests)[0]  # Other hosts may have other clips on their disks.
  prompt = next((request.text for request in requests if request.text), None)
  settings = pipe.settings(prompt=prompt, last=last, **options)
  with processes.together():
    frames = [pipes.frame(request.image, settings.size) for request in requests]
  clips = pipe.animate(frames, [request.text for request in requests], settings)
  written, lost = [], []
  for request, clip in zip(requests, clips, strict=True):
    if clip is None:
      lost.append(str(request.image))
      continue
    written.append(request.output)
    if jax.process_index() == 0:
      write(request.output, clip, settings.spec.fps)
      logger.info("Wrote %s (%d of %d).", request.output, len(written), len(requests))
  if lost:
    raise errors.UserError(f"no clip of {', '.join(lost)}: {pipes.NOT_FINITE}")
  return written


def resolve(
  config: dict[str, Any] | None, workdir: str | None, model: str | None = None
) -> dict[str, Any]:
  """The config to work with: the packed model's, the given one, or else the workdir's.

  Raises:
    UserError: without any, or when the given one is of another network than the workdir's.
  """
  if model:
    if config is not None or workdir:
      raise errors.UserError(
        "--model has its own config and weights: leave --config and --workdir out"
      )
    return loading.packed_config(model)
  if not workdir:
    if config is None:
      raise errors.UserError(
        "give --model=<packed model>, --workdir=<trained run>, or --config with weights"
      )
    return config
  if config is None:
    config = loading.trained_config(workdir)
  workdir_lib.check(workdir, config)
  checkpoint.check_trained(workdir)
  return config


def check_local(path: str | None, flag: str) -> None:
  if path and places.is_remote(path):
    raise errors.UserError(
      f"--{flag}={path}: images are not fetched; download it and name the file"
    )


def plan(
  image: str, prompt: str | None, out: str, told: bool = True, overwrite: bool = False
) -> list[Request]:
  """One request for an image, or one for each image of a folder.

  Clips of a folder that are already there are left out, unless they are to be overwritten. `told`:
  whether the system is conditioned on text; otherwise the folder needs no prompt file.

  Raises:
    UserError: when nothing is left to do, or the output cannot be written.
  """
  if not os.path.isdir(image):
    path = pathlib.Path(image)
    file = out if is_file(out) else os.path.join(out, f"{path.stem}.mp4")
    if not is_file(out) and places.exists(file) and not overwrite:
      raise errors.UserError(f"{file} is already there: add --overwrite, or give another --out")
    places.check_writable(places.absolute(file).parent)
    return [Request(path, prompt or "", file)]
  if prompt:
    raise errors.UserError(f"--prompt: the folder {image} has its own prompts, in its .txt file")
  if is_file(out):
    raise errors.UserError(f"--out={out}: expected a folder, for the clips of the folder {image}")
  found = [
    Request(request.image, request.text, os.path.join(out, request.output))
    for request in prompts.read_prompts(image, told=told)
  ]
  todo = [request for request in found if overwrite or not places.exists(request.output)]
  if len(todo) < len(found):
    logger.info("%d of %d clips are already in %s.", len(found) - len(todo), len(found), out)
  if not todo:
    raise errors.UserError(
      f"every clip is already in {out}; add --overwrite, or give another --out"
    )
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
    writer(file, clip, fps=fps)
  except OSError as error:
    raise errors.UserError(f"cannot write {file} ({error.strerror or error})") from None
