"""The command `fbjax`: each --mode as a subcommand that lists its own flags.

fbjax train --config=quickstart --workdir=runs/quickstart
fbjax sample --help
"""

import difflib
import inspect
import re
import shutil
import sys
import textwrap

from absl import flags

from fbjax import main, options
from fbjax.modes import (
  app,
  cache,
  doctor,
  evaluate,
  export,
  pack,
  plan,
  port,
  report,
  sample,
  train,
)
from fbjax.reports import run

COMMANDS = {
  "train": train,
  "sample": sample,
  "evaluate": evaluate,
  "plan": plan,
  "doctor": doctor,
  "cache": cache,
  "port": port,
  "export": export,
  "pack": pack,
  "report": report,
  "app": app,
}
HELP = ("-h", "-help", "--help", "help", "--helpfull", "--helpshort")
CONFIG = {
  "--config=FILE[:NAME+NAME]": (
    "an experiment, and changes that it knows by name; `folder` stands for configs/folder.py"
  ),
  "--config.KEY=VALUE": "any key of the config, such as --config.train.batch_size=32",
}
CONFIGURED = ("train", "sample", "evaluate", "plan", "doctor", "cache", "port", "export")
EXAMPLES = {
  "train": "--config=quickstart --workdir=runs/quickstart",
  "sample": "--model=zoo/shapes --image=cat.png --prompt='a small red circle grows' --out=cat.mp4",
  "evaluate": "--workdir=runs/quickstart",
  "plan": "--config=webvid_saf --config.mesh.fsdp=16 --topology=v5e:4x4",
  "doctor": "--config=folder --config.data.path=my_videos --out=report",
  "cache": "--config=webvid_saf --config.data.path=webvid --out=caches/webvid",
  "port": "--config=webvid_saf --weights=vc1.ckpt,open_clip.safetensors --out=weights/vc1",
  "export": "--workdir=runs/saf --out=saf.safetensors",
  "pack": "--workdir=runs/quickstart --out=models/quickstart",
  "report": "runs/a runs/b --out=report.html",
  "app": "--workdir=runs/quickstart",
}


def cli() -> None:
  """Runs one subcommand; what the user got wrong ends as one sentence and exit status 1."""
  command, *rest = sys.argv[1:] or ["--help"]
  if command in HELP and rest and rest[0] in COMMANDS:
    command, rest = rest[0], ["--help"]
  if command in HELP:
    print(overview())
    return
  if command == "--version":
    print(f"fbjax {run.version('fbjax')}")
    return
  if command not in COMMANDS:
    near = difflib.get_close_matches(command, COMMANDS, 1)
    meant = f": did you mean {near[0]!r}?" if near else ""
    sys.exit(f"error: fbjax has no command {command!r}; it has {', '.join(COMMANDS)}{meant}")
  if rest[:1] == ["help"] or any(arg in HELP and arg != "help" for arg in rest):
    print(of_command(command))
    return
  if any(re.match(r"--?mode(=|$)", arg) for arg in rest):
    sys.exit(f"error: leave --mode out: `fbjax {command}` says it already")
  main.cli([sys.argv[0], f"--mode={command}", *rest])


def overview() -> str:
  """The text of `fbjax --help`: the subcommands and the experiments, each with its purpose."""
  commands = {f"fbjax {name}": purpose(name) for name in COMMANDS}
  experiments = {
    file.stem: inspect.cleandoc(docstring(file)).splitlines()[0] for file in main.configs()
  }
  parts = [
    "Image-to-video generation with bridge models.",
    listed(commands),
    "`fbjax COMMAND --help` lists the flags of a command. Experiments, for --config:",
    listed(experiments),
  ]
  return "\n\n".join(parts)


def of_command(command: str) -> str:
  """The text of `fbjax COMMAND --help`: its purpose, an example and its flags."""
  own = {flag_name(name): text for name, text in options.HELP[command].items()}
  if command in CONFIGURED:
    own = CONFIG | own
  example = f"  fbjax {command} {EXAMPLES[command]}"
  return f"fbjax {command}: {purpose(command)}\n\n{example}\n\n{listed(own)}"


def purpose(command: str) -> str:
  """What the first line of a mode's file says it does."""
  return (COMMANDS[command].__doc__ or "").splitlines()[0].partition(": ")[2]


def docstring(file) -> str:
  """The module docstring of a Python file, which is not imported; a newline if it has none."""
  found = re.match(r'\s*"""(.*?)"""', file.read_text(), re.DOTALL)
  return found[1] if found else "\n"


def flag_name(name: str) -> str:
  flag = flags.FLAGS[name]
  if flag.boolean:
    return f"--[no-]{name}"
  values = getattr(flag.parser, "enum_values", None)
  return f"--{name}={'|'.join(values) if values else flag.flag_type().upper().split()[-1]}"


def listed(rows: dict[str, str]) -> str:
  """Two aligned columns, names and texts, which are wrapped to the terminal's width."""
  width = min(shutil.get_terminal_size((100, 24)).columns, 100)
  indent = 2 + max(map(len, rows)) + 2
  lines = []
  for name, text in rows.items():
    wrapped = textwrap.wrap(text, max(width - indent, 30)) or [""]
    lines += [f"  {name:{indent - 4}}  {wrapped[0]}", *(" " * indent + x for x in wrapped[1:])]
  return "\n".join(lines)


if __name__ == "__main__":
  cli()
