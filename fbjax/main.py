"""The one entry point.

python -m fbjax.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m fbjax.main --workdir=runs/quickstart --mode=sample --image=cat.png --prompt="..." --out=cat.mp4
python -m fbjax.command plan --help     # the flags of --mode=plan, and so of each mode
"""

import ast
import logging
import math
import os
import pathlib
import re
import runpy
import sys
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from fbjax import box, build, errors, options, processes
from fbjax.modes import app as page
from fbjax.modes import cache, doctor, evaluate, export, pack, plan, port, report, sample, train
from fbjax.train import goodput

STOPPED = "Asked to stop: what is written is whole, and the same command makes the rest."
FORMAT = logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S")


def main(config: dict[str, Any] | None, named: str | None = None) -> None:
  """Runs the mode that the parsed flags name.

  Args:
    config: from `parse_flags`, overrides applied; None without --config.
    named: the value of --config, for the report of a training.
  """
  absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells of every file it renames.
  absl_logging.get_absl_handler().setFormatter(FORMAT)
  mode = options.MODE.value
  taken = options.taken(mode)
  if config is not None:
    build.check(config)
  processes.join()
  if mode == "train":  # which saves when it is asked to stop
    clock = goodput.Clock(goodput.process_age())
    given = load_config(named).to_dict() if named else None
    if not train.train(config, clock=clock, named=named or "", given=given, **taken):
      sys.exit(processes.ASKED)
    return
  with processes.ending_when_asked(STOPPED, processes.ASKED):
    run(mode, config, taken)


def run(mode: str, config: dict[str, Any] | None, taken: dict[str, Any]) -> None:
  """Runs a mode other than train; `taken` are the values of its flags, by name."""
  match mode:
    case "sample":
      sample.sample(config, **taken)
    case "evaluate":
      evaluate.evaluate(config, fvd_protocol=taken.pop("fvd"), **taken)
    case "plan":
      plan.plan(config, **taken)
    case "doctor":
      doctor.doctor(config, **taken)
    case "cache":
      cache.cache(config, **taken)
    case "port":
      if network := taken.pop("network"):
        port.port_network(network, **taken)
      else:
        port.port_files(config, **taken)
    case "export":
      export.export(config, **taken)
    case "pack":
      pack.pack(config, **taken)
    case "report":
      report.report(config, **taken)
    case "app":
      page.app(config, **taken)


def _tell_unraisable(unraisable: Any) -> None:
  """Says what went wrong in a thread, but for threads of Orbax that outlive a read that failed."""
  if "Event loop is closed" not in str(unraisable.exc_value):
    sys.__unraisablehook__(unraisable)


def cli(argv: list[str] | None = None) -> None:
  """Runs `main`; what the user got wrong ends as one sentence and exit status 1."""
  sys.unraisablehook = _tell_unraisable
  logging.getLogger("fbjax").setLevel(logging.INFO)
  programs = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/fbjax")
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(programs))
  parsed: list[tuple[dict[str, Any] | None, str | None]] = []

  def parse(argv: list[str]) -> list[str]:
    try:
      config, rest = parse_flags(argv)
    except errors.UserError as error:
      sys.exit(f"error: {error}")
    parsed.append((config, take_config(list(argv))))
    return rest

  try:
    app.run(lambda argv: main(*parsed[0]), argv=argv, flags_parser=parse)
  except errors.LostPeer as error:
    processes.leave(error)
  except errors.UserError as error:
    sys.exit(f"error: {error}")
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    remedy = (
      "lower config.train.batch_size or config.sampling.batch_size, raise config.train.accumulate or "
      "config.mesh.fsdp, or set config.system.remat=full"
      if options.MODE.value == "train"
      else "lower --frames, --size or config.sampling.batch_size"
    )
    sys.exit(f"error: the device is out of memory ({str(error).splitlines()[0]}): {remedy}")
  except Exception:
    print(
      "This is a fault of fbjax, not of yours. Please report it on the issue tracker of the "
      "repository that it came from, with the command and the lines that follow.",
      file=sys.stderr,
    )
    raise


def parse_flags(argv: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
  """Parses a command line: the config of --config with its overrides, and `argv` without flags.

  Raises:
    UserError: for every mistake, in one sentence that names it.
  """
  argv = list(argv)
  named = take_config(argv)
  overrides = [arg for arg in argv if re.match(r"--?config\.", arg)]
  for name in [name for name in flags.FLAGS if name.split(".")[0] == "config"]:
    delattr(flags.FLAGS, name)  # of an earlier call
  config = None
  if named is not None:
    config = load_config(named)
    add_missing_keys(config, argv)
    config_flags.DEFINE_config_dict("config", config, sys_argv=argv)
  elif overrides:
    raise errors.UserError(
      f"{overrides[0]} changes a config, but --config names none; settings of a clip have flags of their "
      "own, such as --steps"
    )
  # absl knows --noema alone.
  argv = [re.sub(r"^--?no-", "--no", arg) for arg in argv]
  try:
    flags.FLAGS.set_gnu_getopt()  # runs of a report may stand before flags
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    told = str(error).strip().splitlines()[-1]
    told = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", told)
    told = re.sub(r"could not convert string to float: (.*)", r"\1 is no number", told)
    raise errors.UserError(told) from None
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise errors.UserError(f"the config could not be overridden as asked: {error}") from None
  if options.MODE.value == "report":
    flags.FLAGS.workdirs = [*flags.FLAGS.workdirs, *rest[1:]]
    rest = rest[:1]
  if len(rest) > 1:
    mode = f", and a mode as --mode={rest[1]}" if rest[1] in options.MODES else ""
    raise errors.UserError(f"{rest[1]!r} is not a flag; flags are written --name=value{mode}")
  check_flags(config, overrides)
  return (None if config is None else flags.FLAGS.config.to_dict()), rest


def check_flags(config: ConfigDict | None, overrides: list[str]) -> None:
  """Raises a UserError for flags, and overrides of a config, that the mode does not take, or lacks."""
  mode = options.MODE.value
  for override in overrides:
    if mode != "port" and re.match(r"--?config\.port\b", override):
      raise errors.UserError(
        f"{override}: config.port is for --mode=port alone; this is --mode={mode}"
      )
  of_modes = set().union(*options.TAKES.values())
  for name in sorted(of_modes.difference(options.TAKES[mode])):
    if flags.FLAGS[name].present:
      modes = " and ".join(f"--mode={m}" for m in options.MODES if name in options.TAKES[m])
      raise errors.UserError(f"--{name} is a flag of {modes}; this is --mode={mode}")
  if mode == "train" and (config is None or not flags.FLAGS.workdir):
    raise errors.UserError("give both --config=configs/<experiment>.py and --workdir=<folder>")
  if mode in ("doctor", "cache", "plan") and config is None:
    what = {
      "doctor": "whose data to look at",
      "cache": "whose data to encode",
      "plan": "to compile",
    }[mode]
    raise errors.UserError(f"--mode={mode} needs --config=configs/<experiment>.py, {what}")
  if mode == "port" and (config is None) == (flags.FLAGS.network is None):
    raise errors.UserError(
      "--mode=port needs --config=configs/<experiment>.py, or --network=<one that a measure needs>"
    )
  if mode == "report":
    return
  given = ("workdir", "model", "network", "made", "compare")
  if mode != "app" and config is None and not any(flags.FLAGS[name].value for name in given):
    raise errors.UserError(
      f"--mode={mode} needs --workdir=<folder of a trained run>"
      + (", --model=<packed model>" if "model" in options.TAKES[mode] else "")
      + ", or a --config whose weights to take"
    )


def take_config(argv: list[str]) -> str | None:
  """Removes --config from `argv`; returns its value, `file` or `file:argument`, or None."""
  for i, arg in enumerate(argv):
    if match := re.fullmatch(r"--?config(?:=(.*))?", arg, re.DOTALL):
      if match[1] is None and i + 1 == len(argv):
        raise errors.UserError("--config is given without a file")
      named = match[1] if match[1] is not None else argv[i + 1]
      del argv[i : i + (1 if match[1] is not None else 2)]
      return named
  return None


def load_config(named: str) -> ConfigDict:
  """The config of `file.py` or `file.py:argument`, as its file has it.

  Raises:
    UserError: when there is no such file, or it does not make a config.
  """
  # A folder may have colons in its name, and what a config takes, slashes.
  file, argument = re.fullmatch(
    r"(.*?\.py|[^:]*)(?::(.*))?", os.path.expanduser(named), re.S
  ).groups()
  file = find_config(file)
  config = None
  if str(box.ROOT) not in sys.path:  # configs import each other, also when run from elsewhere
    sys.path.append(str(box.ROOT))
  try:
    if get_config := runpy.run_path(file).get("get_config"):
      config = get_config(*([argument] if argument else []))
  except errors.UserError:
    raise
  except Exception as error:
    told = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    raise errors.UserError(f"{file} could not be loaded: {told}") from error
  if not isinstance(config, ConfigDict):
    raise errors.UserError(f"{file} must define get_config(arg) that returns a ConfigDict")
  return config


def configs() -> list[pathlib.Path]:
  """The experiments that come with the package, wherever it is run from."""
  found = sorted((box.ROOT / "configs").glob("*.py"))
  return [file for file in found if file.stem not in ("__init__", "common")]


def find_config(name: str) -> str:
  """The file of a config: `name` itself, or an experiment of the package, by its path or stem.

  Raises:
    UserError: when there is neither.
  """
  if pathlib.Path(name).is_file():
    return name
  for file in configs():
    if name in (file.stem, file.name, f"configs/{file.stem}", f"configs/{file.name}"):
      return str(file)
  known = ", ".join(file.stem for file in configs())
  raise errors.UserError(f"there is no config {name}; name a file, or one of {known or 'none'}")


def add_missing_keys(config: ConfigDict, argv: list[str]) -> None:
  """Adds keys that `--config.group.key=value` sets and the config's file leaves to their default.

  Changes `config` and `argv` in place, so that ml_collections takes the overrides. Whether a key
  exists is checked later, by `build.check` and the constructors.

  Raises:
    UserError: for a key outside the groups of a config.
  """
  for i, arg in reversed(list(enumerate(argv))):
    if not (match := re.match(r"--?config\.([\w.]*)(?:=(.*))?$", arg, re.DOTALL)):
      continue
    if not all(match[1].split(".")):
      raise errors.UserError(f"{arg}: a key is missing; write --config.<group>.<key>=<value>")
    here, seen = config, "config"
    *groups, last = match[1].split(".")
    for name in groups:
      if seen in ("config.start", "config.port") and name not in here:
        with here.unlocked():  # they have a group for each network that needs one
          here[name] = ConfigDict()
      if name not in here or not isinstance(here[name], ConfigDict):
        there = ", ".join(sorted(here)) or "none"
        raise errors.UserError(f"{seen} has no group {name!r}; it has: {there}")
      here, seen = here[name], f"{seen}.{name}"
    if last not in here and not groups:
      raise errors.UserError(f"config has no key {last!r}; it has: {', '.join(sorted(here))}")
    text = match[2] if match[2] is not None else (argv[i + 1] if i + 1 < len(argv) else "")
    value, width = literal(text), 1 if match[2] is not None else 2
    if isinstance(here.get(last), ConfigDict):
      if not isinstance(value, dict):
        raise errors.UserError(
          f"--config.{match[1]}={text}: config.{match[1]} is a group; set one of its keys: "
          f"{', '.join(sorted(here[last])) or 'it has none yet'}"
        )
    elif isinstance(value, dict) and here.get(last) is not None:
      raise errors.UserError(
        f"--config.{match[1]}={text}: config.{match[1]} is {here[last]!r} by default, and no group"
      )
    elif value is None:  # for which ml_collections has no flag
      with here.unlocked(), here.ignore_type():
        here[last] = None
      del argv[i : i + width]
    elif isinstance(value, list):  # ml_collections knows tuples alone
      with here.unlocked(), here.ignore_type():
        here[last] = tuple(value)
      argv[i : i + width] = [f"--config.{match[1]}={tuple(value)!r}"]
    elif here.get(last) is None or is_of_another_kind(value, here[last]):
      with here.unlocked(), here.ignore_type():
        here[last] = value


def is_of_another_kind(value: Any, default: Any) -> bool:
  """Whether a flag of the default's type would refuse a Python value.

  Some such values are valid, such as a pair for one number; the constructors refuse the others.
  """
  if isinstance(default, bool):
    return not isinstance(value, bool)
  if not isinstance(default, int | float):
    return False
  kind = int if isinstance(default, int) else int | float
  return isinstance(value, bool) or not isinstance(value, kind)


def literal(text: str) -> Any:
  """The Python literal, or true, false, nan, inf or -inf, that a text is; else the text itself."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    named = {"true": True, "false": False, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    return named.get(text, text)


if __name__ == "__main__":
  cli()
