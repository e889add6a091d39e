"""Requests of the page: parsed, validated, and written as the equivalent command line.

A request is untrusted: it may hold what the page would never send.
"""

import contextlib
import os
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from fbjax import build, checks, errors
from fbjax import pipe as pipes
from fbjax.build import samplers, tables
from fbjax.data import text, video

MOST_STEPS = 250
MOST_FRAMES = 128
MOST_LETTERS = 1000  # of a prompt: beyond what any tokenizer here keeps
MOST_BYTES = 32 * 2**20  # of an image


class Ways(NamedTuple):
  """The settings that a network takes, and its config's defaults for them."""

  prompt: bool
  last: bool
  label: int  # how many classes it is told of; 0 for none
  seed: bool
  steps: int | None  # None where the number of steps changes nothing
  guidance: float | None  # None where there is nothing to guide by
  sampler: str | None
  samplers: tuple[str, ...]
  frames: int
  size: tuple[int, int]


class Asked(NamedTuple):
  """The settings of a requested clip; None takes the config's."""

  prompt: str = ""
  label: int | None = None
  steps: int | None = None
  guidance: float | None = None
  sampler: str | None = None
  frames: int | None = None
  seed: int = 0


class Picture(NamedTuple):
  """An uploaded image: its pixels, and what it is called where it came from."""

  image: np.ndarray
  name: str
  note: str = ""  # what whoever gave it should know


def ways(pipe: pipes.Pipe) -> Ways:
  """The settings that the network of a pipe takes; reads no weights."""
  spec = build.sampling_options(pipe.config)
  told = pipe.system.conditions
  frames, size = build.clip_size(pipe.config)
  last = np.zeros((1, 1, 3), np.uint8) if "last" in told else None
  classes = pipe.system.whole.classes if "label" in told else 0
  word = {"prompt": "x"} if pipe.is_told_text else {"label": 0} if classes else {}

  def can(**options: Any) -> bool:
    with contextlib.suppress(errors.UserError):
      pipe.settings(last=last, **options)
      return True
    return False

  own = spec.sampler["name"]
  named = {name: can(sampler=name) for name in tables.SAMPLERS}
  guided = bool(word) and can(guidance=spec.guidance + 1, **word)
  return Ways(
    prompt=pipe.is_told_text,
    last=last is not None,
    label=classes,
    seed=can(seed=1),
    steps=spec.steps if can(steps=spec.steps + 1) or can(steps=max(1, spec.steps - 1)) else None,
    guidance=spec.guidance if guided else None,
    sampler=own,
    samplers=tuple(name for name, fits in named.items() if fits or name == own),
    frames=frames,
    size=size,
  )


def read(values: Mapping[str, Any], ways: Ways) -> Asked:
  """Validates the fields of a request that the network takes; others are ignored.

  Values that equal the config's become None, so that the command line is short.

  Raises:
    UserError: for values out of bounds, or of another type.
  """
  asked = Asked(
    frames=_other(
      _whole("frames", values, ways.frames, 1, max(MOST_FRAMES, ways.frames)), ways.frames
    )
  )
  if ways.prompt:
    prompt = values.get("prompt") or ""
    if not isinstance(prompt, str) or len(prompt) > MOST_LETTERS:
      raise errors.UserError(f"the prompt is not a text of at most {MOST_LETTERS:,} letters")
    asked = asked._replace(prompt=text.printable(" ".join(prompt.split())))
  if ways.label and values.get("label") not in (None, ""):
    asked = asked._replace(label=_whole("label", values, 0, 0, ways.label - 1))
  if ways.seed:
    asked = asked._replace(seed=_whole("seed", values, 0, 0, checks.SEED))
  if ways.steps is not None:
    steps = _whole("steps", values, ways.steps, 1, max(MOST_STEPS, ways.steps))
    asked = asked._replace(steps=_other(steps, ways.steps))
  if ways.guidance is not None and values.get("guidance") is not None:
    most = samplers.MAX_GUIDANCE
    guidance = checks.number("guidance", values["guidance"], -most, most=most)
    asked = asked._replace(guidance=_other(guidance, ways.guidance))
  if (sampler := values.get("sampler") or ways.sampler) != ways.sampler:
    if sampler not in ways.samplers:
      raise errors.UserError(
        f"the sampler is {str(sampler)[:40]!r}; this network has {', '.join(ways.samplers)}"
      )
    asked = asked._replace(sampler=sampler)
  return asked


def settings(
  pipe: pipes.Pipe, ways: Ways, asked: Asked, last: np.ndarray | None = None
) -> pipes.Settings:
  """The pipe's settings for a request.

  Raises:
    UserError: for what the network cannot make.
  """
  changes = asked._asdict() | {"prompt": asked.prompt or None, "last": last if ways.last else None}
  return pipe.settings(**changes)


def picture(given: Any, folder: str) -> Picture | None:
  """The image that was uploaded into a folder, or None where none was.

  Args:
    given: Gradio's description of the upload, from the request.
    folder: the only one whose files are read.

  Raises:
    UserError: for a file that is no image, too large, or outside the folder.
  """
  if not given:
    return None
  path = given.get("path") if isinstance(given, Mapping) else None
  home = os.path.realpath(folder)
  if not isinstance(path, str) or "\0" in path or not _is_within(path, home):
    raise errors.UserError("the image is not one that was uploaded here: upload it again")
  name = _file_name(given.get("orig_name") or os.path.basename(path))
  try:
    if not os.path.getsize(path):
      raise errors.UserError(f"the image {name} is empty: it has no bytes")
    if os.path.getsize(path) > MOST_BYTES:
      raise errors.UserError(f"the image {name} has more than {MOST_BYTES / 2**20:.0f} MiB")
    image = video.read_image(path)
  except FileNotFoundError:
    raise errors.UserError(f"the image {name} is no longer here: upload it again") from None
  except video.BrokenData as error:
    raise errors.UserError(str(error).replace(path, name)) from None
  note = f"{name} is an animation, of which the first picture is taken." if _moves(path) else ""
  return Picture(image, name, note)


def command(
  source: Mapping[str, Any],
  asked: Asked,
  image: str,
  last: str | None = None,
  out: str = "clip.mp4",
) -> str:
  """The command line that makes the same clip.

  Args:
    source: the flags that name the network, such as {"model": "zoo/shapes"}.
    asked: the clip.
    image, last: files, as whoever gave them calls them.
    out: the file to write.
  """
  flags = {"mode": "sample", **source, "image": image, "last": last, **asked._asdict(), "out": out}
  given = {k: v for k, v in flags.items() if v not in (None, "") and (k, v) != ("seed", 0)}
  return shlex.join(["python", "-m", "fbjax.main", *(f"--{k}={v}" for k, v in given.items())])


def _whole(name: str, values: Mapping[str, Any], default: int, least: int, most: int) -> int:
  """A whole number of a request, which JSON may have made a float."""
  value = values.get(name)
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  return checks.whole(name, default if value is None else value, least, most)


def _other(value: Any, own: Any) -> Any:
  return None if value == own else value


def _file_name(name: Any) -> str:
  return text.printable(os.path.basename(str(name).replace("\\", "/")).strip())[:80] or "image"


def _is_within(path: str, home: str) -> bool:
  real = os.path.realpath(path)
  return real.startswith(home + os.sep) and os.path.isfile(real)


def _moves(path: str) -> bool:
  with PIL.Image.open(path, formats=video.IMAGE_FORMATS) as image:
    return getattr(image, "n_frames", 1) > 1 and image.format != "TIFF"
