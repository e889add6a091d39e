"""The flags of the command line, and the modes that take them."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import flags

from fbjax import checks, errors
from fbjax.evaluation import fvd, networks

MODES = (
  "train",
  "sample",
  "evaluate",
  "plan",
  "doctor",
  "cache",
  "port",
  "export",
  "pack",
  "report",
  "app",
)
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do: see `fbjax --help`")
# The flags that a mode takes beside --config and --mode, each with what is made of its value.
TAKES: dict[str, dict[str, Callable[[Any], Any]]] = {mode: {} for mode in MODES}
HELP: dict[str, dict[str, str]] = {mode: {} for mode in MODES}  # what it says of them


def taken(mode: str) -> dict[str, Any]:
  """The values of the flags that a mode takes: arguments of its function.

  Raises:
    UserError: for one that cannot be read.
  """
  return {name: read(flags.FLAGS[name].value) for name, read in TAKES[mode].items()}


def home(path: str | list[str] | None) -> Any:
  """Paths with ~ for the home folder, which a shell leaves alone behind a flag's `=`."""
  if isinstance(path, list):
    return [home(each) for each in path]
  return path if path is None else os.path.expanduser(path)


def pixels(size: str | None) -> tuple[int, int] | None:
  """(height, width) of "256x448".

  Raises:
    UserError: for anything else.
  """
  if size is None:
    return None
  if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)):
    raise errors.UserError(f"--size={size} is not height x width, such as 256x448")
  return int(match[1]), int(match[2])


class Kind(NamedTuple):
  """What a flag holds: one of absl's DEFINE functions, and what is made of the value."""

  define: Callable[..., Any]
  read: Callable[[Any], Any] = lambda value: value


PATH, PATHS = Kind(flags.DEFINE_string, home), Kind(flags.DEFINE_list, home)
TEXT, SIZE = Kind(flags.DEFINE_string), Kind(flags.DEFINE_string, pixels)
WHOLE, REAL = Kind(flags.DEFINE_integer), Kind(flags.DEFINE_float)
SWITCH, ONE_OF = Kind(flags.DEFINE_bool), Kind(flags.DEFINE_enum)


def flag(
  name: str,
  modes: str | Mapping[str, str],
  kind: Kind,
  help: str = "",
  default: Any = None,
  **more: Any,
) -> None:
  """Defines a flag that some modes take, with help for all of them, or one for each.

  `more` are arguments of the kind's DEFINE function.
  """
  told = modes if isinstance(modes, Mapping) else dict.fromkeys(modes.split(", "), help)
  shown = f"{modes}: {help}" if help else "; ".join(f"{m}: {text}" for m, text in told.items())
  kind.define(name=name, default=default, help=shown, **more)
  for mode, text in told.items():
    TAKES[mode][name] = kind.read
    HELP[mode][name] = text


SAMPLING, TRAINED = "sample, evaluate", "sample, evaluate, export, pack, app"
SAMPLER = f"{SAMPLING}, export"  # what a sampler is made with, also one that is exported

flag(
  "model",
  {
    **dict.fromkeys(
      SAMPLER.split(", "), "a packed model, such as zoo/shapes, in place of a config and a workdir"
    ),
    "app": "a packed model, in place of a workdir; default: zoo/shapes",
  },
  PATH,
)
flag(
  "workdir",
  "train, sample, evaluate, doctor, export, pack, app",
  PATH,
  "a run's folder: its checkpoints, metrics and samples",
)
flag(
  "workdirs",
  "report",
  PATHS,
  "runs to lay side by side, such as runs/a,runs/b; they may also stand without the flag",
  default=[],
)
flag(
  "profile",
  "train",
  SWITCH,
  "trace a few steps into the workdir's folder profile, for XProf and Perfetto",
  default=False,
)
flag("step", TRAINED, WHOLE, "step of the checkpoint; default: the newest", lower_bound=1)
flag(
  "ema",
  TRAINED,
  SWITCH,
  "the moving average of the weights; with --no-ema they themselves",
  default=True,
)
flag("image", "sample", PATH, "an image, or a folder of images with a prompt file")
flag("last", "sample", PATH, "an image to end at; the same image makes a loop")
flag("prompt", "sample", TEXT, "what should happen in the clip")
flag(
  "negative_prompt", "sample", TEXT, "what guidance leads away from; needs a guidance other than 1"
)
flag("made", "evaluate", PATH, "a folder of videos, made by anything")
flag(
  "truth", "evaluate", PATH, "a folder of true videos for those of --made; pairs have the same name"
)
flag("compare", "evaluate", PATHS, "two cards, such as a.json,b.json, to compare", default=[])
flag("clips", "evaluate", WHOLE, "how many; default: the protocol's, or at most 256", lower_bound=2)
flag(
  "fvd",
  "evaluate",
  ONE_OF,
  "the protocol of FVD",
  default="styleganv",
  enum_values=list(fvd.PROTOCOLS),
)
flag(
  "weights", "port", PATHS, "checkpoints to read, the first that holds a network counts", default=[]
)
flag(
  "network",
  "port",
  ONE_OF,
  "a network that a measure needs, in place of a config",
  enum_values=list(networks.SPECS),
)
flag(
  "format",
  "export",
  ONE_OF,
  "weights as their own code base has them, low-rank additions by themselves for diffusers (lora) or "
  "ComfyUI, or a sampler that runs without this package",
  default="weights",
  enum_values=["weights", "lora", "comfyui_lora", "sampler"],
)
flag(
  "out",
  {
    "sample": "an .mp4 or .gif, which is written anew, or a folder, whose clips are kept",
    "evaluate": "a .json for the card; default: a trained run's own folder",
    "plan": "a .json for the figures",
    "doctor": "a folder for the report",
    "cache": "a folder for the cache",
    "port": "a folder for the weights",
    "export": "a .ckpt, .pt or .safetensors with all networks, or a folder with each of them; a folder "
    "for a sampler",
    "pack": "a folder for the model",
    "report": "an .html; default: report.html, of one run in its own folder",
  },
  PATH,
)
flag(
  "overwrite", "sample", SWITCH, "make the clips of a folder again that are there", default=False
)
flag(
  "seed",
  SAMPLING,
  WHOLE,
  "of the noise; the same seed gives the same clip; default: 0",
  default=0,
  lower_bound=0,
  upper_bound=checks.SEED,
)
flag("steps", SAMPLER, WHOLE, "steps of the sampler; default: the config's", lower_bound=1)
flag(
  "sampler",
  SAMPLER,
  TEXT,
  "a sampler by its name, such as dbim, heun or ode; default: the config's",
)
flag("guidance", SAMPLER, REAL, "text guidance; default: the config's")
flag("image_guidance", SAMPLER, REAL, "guidance on the image, in two scales with that on the text")
flag("label", "sample", WHOLE, "class of the clip; default: none")
flag("stride", "sample", WHOLE, "frame stride; default: the config's", lower_bound=1)
flag("size", "sample, export", SIZE, "height x width, such as 256x448")
flag("frames", "sample, export", WHOLE, "frames of a clip; default: the config's", lower_bound=1)
flag(
  "chunks",
  "sample",
  WHOLE,
  "clips in a row, each from the last frame of the one before; default: 1",
  default=1,
  lower_bound=1,
)
flag("fps", "sample", WHOLE, "frames a second; default: the config's", lower_bound=1)
flag("host", "app", TEXT, "the address to listen at; default: 127.0.0.1", default="127.0.0.1")
flag("port", "app", WHOLE, "of the address; default: 7860", default=7860)
flag(
  "topology",
  "plan",
  TEXT,
  "TPUs to plan for, such as v5e:4x4 or v5p:2x2x4; default: the devices of this machine",
)
flag("price", "plan", REAL, "of one chip for an hour, to tell what the training costs at best")
flag("quick", "plan", SWITCH, "compile nothing: weights, state and products alone", default=False)
flag(
  "search",
  "plan",
  SWITCH,
  "try ways to compute the training step, and tell the fastest that fits",
  default=False,
)
