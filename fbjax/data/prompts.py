"""A folder of images and a file of prompts -> what to generate, and under which names."""

import collections
import pathlib
from typing import NamedTuple

from fbjax.data import text
from fbjax.data import video as video_lib


class Prompt(NamedTuple):
  image: pathlib.Path
  text: str
  output: str  # name of the mp4


def read_prompts(folder: video_lib.Path, file: video_lib.Path | None = None) -> list[Prompt]:
  """Image k, sorted by name, with line k of the prompt file, empty lines not counted.

  The prompt file is `file`, else the alphabetically first .txt of the folder. An output is named
  after its image; images that differ only in their extension keep it: a.jpg.mp4 and a.png.mp4.
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
  texts = [f for f in files if f.suffix.lower() == ".txt"]
  if file is None and not texts:
    raise video_lib.BrokenData(f"no prompt file in {folder}: a .txt with one line for each image.")
  file = pathlib.Path(file) if file is not None else texts[0]
  if not file.is_file():
    raise video_lib.BrokenData(f"no prompt file at {file}.")
  lines = text.lines(file)
  if len(lines) != len(images):
    raise video_lib.BrokenData(
      f"{file} has {len(lines)} prompts for {len(images)} images in {folder}; give one line each."
    )
  stems = collections.Counter(image.stem for image in images)
  return [
    Prompt(image, line, (image.stem if stems[image.stem] == 1 else image.name) + ".mp4")
    for image, line in zip(images, lines, strict=True)
  ]
