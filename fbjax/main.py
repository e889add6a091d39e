"""The one entry point.

  python -m fbjax.main --config=configs/quickstart.py --workdir=runs/quickstart
  python -m fbjax.main --config=configs/quickstart.py --workdir=runs/quickstart \\
      --mode=sample --image=cat.png --prompt="..." --out=cat.mp4
"""

import logging
import os
import pathlib
import re
import runpy
import sys
import traceback

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from fbjax import errors, processes, run

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/, such as configs/quickstart.py or configs/quickstart.py:smoke"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and samples are written")
MODE = flags.DEFINE_enum("mode", "train", ["train", "sample", "port", "export"], "What to do")
IMAGE = flags.DEFINE_string(
  "image", None, "sample: an image, or a folder of images with a prompt file"
)
LAST = flags.DEFINE_string("last", None, "sample: an image to end at; the same image makes a loop")
PROMPT = flags.DEFINE_string("prompt", "", "sample: what should happen in the clip")
OUT = flags.DEFINE_string(
  "out", None, "sample: the mp4, or a folder for many; port: a folder; export: a checkpoint file"
)
SEED = flags.DEFINE_integer("seed", 0, "sample: the same seed gives the same clip")
STEPS = flags.DEFINE_integer("steps", None, "sample: steps of the sampler; default: the config's")
GUIDANCE = flags.DEFINE_float("guidance", None, "sample: text guidance; default: the config's")
IMAGE_GUIDANCE = flags.DEFINE_float(
  "image_guidance", None, "sample: guidance on the image, in two scales with that on the text"
)
SIZE = flags.DEFINE_string("size", None, "sample: height x width, such as 256x448")
FRAMES = flags.DEFINE_integer("frames", None, "sample: frames of a clip; default: the config's")
CHUNKS = flags.DEFINE_integer(
  "chunks", 1, "sample: clips in a row, each going on from the last frame of the one before"
)
LABEL = flags.DEFINE_integer("label", -1, "sample: class of the clip; -1 for none")
FPS = flags.DEFINE_integer("fps", None, "sample: frames a second; default: the config's")
STRIDE = flags.DEFINE_integer("stride", None, "sample: frame stride; default: the config's")
WEIGHTS = flags.DEFINE_list(
  "weights", [], "port: checkpoints to read, the first that holds a network counts"
)

FORMAT = logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S")


def main(argv: list[str]) -> None:
  del argv
  absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells of every file it renames.
  absl_logging.get_absl_handler().setFormatter(FORMAT)
  processes.join()
  config = CONFIG.value.to_dict()
  match MODE.value:
    case "train":
      run.train(config, WORKDIR.value)
    case "port":
      run.port(config, WEIGHTS.value, OUT.value)
    case "export":
      run.export(config, WORKDIR.value, OUT.value)
    case "sample":
      run.sample(
        config,
        WORKDIR.value,
        image=IMAGE.value,
        last=LAST.value,
        prompt=PROMPT.value,
        out=OUT.value,
        seed=SEED.value,
        label=LABEL.value,
        fps=FPS.value,
        stride=STRIDE.value,
        size=pixels(SIZE.value),
        frames=FRAMES.value,
        chunks=CHUNKS.value,
        steps=STEPS.value,
        guidance=GUIDANCE.value,
        image_guidance=IMAGE_GUIDANCE.value,
      )


def pixels(size: str | None) -> tuple[int, int] | None:
  """(height, width) of "256x448".

  Raises:
    UserError: for anything else.
  """
  if size is None:
    return None
  if not (match := re.fullmatch(r"(\d+)x(\d+)", size)):
    raise errors.UserError(f"--size={size} is not height x width, such as 256x448")
  return int(match[1]), int(match[2])


def cli() -> None:
  """Runs `main`; what the user got wrong ends as one sentence and exit status 1."""
  logging.getLogger("fbjax").setLevel(logging.INFO)
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/fbjax")
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
  try:
    app.run(main, flags_parser=parse_flags)
  except Exception as error:
    if not is_ours(error):
      raise
    sys.exit(f"error: {error}")


def is_ours(error: Exception) -> bool:
  """Whether the package itself raised this: then its message is a sentence for the user."""
  frames = traceback.extract_tb(error.__traceback__)
  here = pathlib.Path(__file__).resolve().parent
  return bool(frames) and here in pathlib.Path(frames[-1].filename).resolve().parents


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; every mistake ends the program with one sentence that names it."""
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    # A config that fails to load brings its traceback along; the last line says why.
    sys.exit(f"error: {str(error).strip().splitlines()[-1]}")
  except (AttributeError, KeyError):
    sys.exit(f"error: {unknown_key(argv)}")
  if len(rest) > 1:
    sys.exit(f"error: {rest[1]!r} is not a flag; flags are written --name=value")
  needs_workdir = MODE.value in ("train", "sample")
  if not CONFIG.present or (needs_workdir and not WORKDIR.value):
    sys.exit("error: give both --config=configs/<experiment>.py and --workdir=<folder>")
  file = config_flag(argv).split(":")[0]
  if not pathlib.Path(file).is_file():
    sys.exit(f"error: there is no config {file}; configs/ holds the experiments")
  if not isinstance(CONFIG.value, ConfigDict):
    sys.exit(f"error: {file} could not be loaded: {config_error()}")
  return rest


def config_flag(argv: list[str]) -> str:
  """What the --config flag was given: a file, perhaps with an argument behind a colon."""
  for i, arg in enumerate(argv):
    if match := re.fullmatch(r"--?config(?:=(.*))?", arg):
      return match[1] if match[1] is not None else argv[i + 1]
  return ""


def load_config(argv: list[str]) -> ConfigDict:
  """The config of the --config flag, as its file has it."""
  file, _, argument = config_flag(argv).partition(":")
  return runpy.run_path(file)["get_config"](*([argument] if argument else []))


def config_error() -> str:
  """Why the config file failed to load."""
  try:
    CONFIG.value.to_dict()
  except Exception as error:
    return str(error.__cause__ or error)
  return "it must define get_config(arg) that returns a ConfigDict"


def unknown_key(argv: list[str]) -> str:
  """The first `--config.key` that the config does not have."""
  config = load_config(argv)
  for arg in argv:
    if not (match := re.match(r"--?config\.([\w.]+)", arg)):
      continue
    here, seen = config, "config"
    for name in match[1].split("."):
      if not isinstance(here, ConfigDict) or name not in here:
        keys = ", ".join(sorted(here)) if isinstance(here, ConfigDict) else "none"
        return f"{seen} has no key {name!r}; it has: {keys}"
      here, seen = here[name], f"{seen}.{name}"
  return "the config could not be overridden as asked"


if __name__ == "__main__":
  cli()
