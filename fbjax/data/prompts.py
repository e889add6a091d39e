"""Reads what to generate: a folder of images, and a file of prompts for them."""

import collections
import pathlib
from typing import NamedTuple

from fbjax.data import text
from fbjax.data import video as video_lib


class Prompt(NamedTuple):
  image: pathlib.Path
  text: str  # empty where nobody asks for one
  output: str  # name of the mp4


def read_prompts(
  folder: video_lib.Path, file: video_lib.Path | None = None, told: bool = True
) -> list[Prompt]:
  """Pairs image k, sorted by name, with line k of the prompt file, empty lines not counted.

  An output is named after its image; images that differ only in their extension keep it: a.jpg.mp4
  and a.png.mp4.

  Args:
    folder: of the images.
    file: of the prompts; by default the alphabetically first .txt of the folder.
    told: whether the system is conditioned on text; if not, prompts are empty.

  Raises:
    BrokenData: without images or without a prompt for each, or for a prompt file where the system
      takes no text.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise video_lib.BrokenData(f"no folder of images at {folder}.")
  files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
  images = [f for f in files if f.suffix.lower() in video_lib.IMAGE_EXTENSIONS]
  if not images:
    raise video_lib.BrokenData(
      f"no images in {folder}; it takes {', '.join(video_lib.IMAGE_EXTENSIONS)}."
    )
  texts = [file] if file is not None else [f for f in files if f.suffix.lower() == ".txt"]
  if texts and not told:
    raise video_lib.BrokenData(
      f"{texts[0]} is a prompt file, but this system is not told a text: move it elsewhere."
    )
  lines = _lines(folder, texts, len(images)) if told else [""] * len(images)
  stems = collections.Counter(image.stem for image in images)
  return [
    Prompt(image, line, (image.stem if stems[image.stem] == 1 else image.name) + ".mp4")
    for image, line in zip(images, lines, strict=True)
  ]


def _lines(folder: pathlib.Path, texts: list[video_lib.Path], images: int) -> list[str]:
  """The lines of the first text; BrokenData unless there is one for each image."""
  if not texts:
    raise video_lib.BrokenData(f"no prompt file in {folder}: a .txt with one line for each image.")
  file = pathlib.Path(texts[0])
  if not file.is_file():
    raise video_lib.BrokenData(f"no prompt file at {file}.")
  lines = text.lines(file)
  if len(lines) != images:
    raise video_lib.BrokenData(
      f"{file} has {len(lines)} prompts for {images} images in {folder}; give one line each."
    )
  return lines
