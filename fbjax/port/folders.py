"""Folders of weights, as diffusers, transformers and DeepSpeed leave them: which files are meant."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fbjax.port import keys, limits

DEEPSPEED = "mp_rank_00_model_states.pt"
# model.safetensors.index[.fp16].json, model[.fp16].safetensors.index.json
INDEX = re.compile(r"([^.].*)\.(safetensors|bin)\.index(\..+)?\.json", re.DOTALL)
# model[.fp16][-00001-of-00002].safetensors, model[-00001-of-00002][.fp16].safetensors
FILE = re.compile(r"([^.].*)\.(safetensors|bin)", re.DOTALL)
SHARD = re.compile(r"-\d+-of-\d+")


class Parts(NamedTuple):
  """The files of a folder that hold its weights.

  files: these, one or several shards. kind: of the folder, such as "a diffusers folder". listed:
  the weight map of its index, tensor name -> file name; {} without one. config: its config.json,
  if there is one.
  """

  files: list[pathlib.Path]
  kind: str
  listed: dict[str, str]
  config: dict[str, Any] | None


class _Choice(NamedTuple):
  """An index, or a file that no index is needed for; variant: such as fp16, not the usual one."""

  path: pathlib.Path
  variant: str
  ending: str
  index: bool


def find(folder: pathlib.Path) -> Parts:
  """The files that hold the weights of a folder.

  Preferred are weights without a variant (fp16) in the file name, then safetensors over .bin, then
  an index of shards over a single file.

  Raises:
    Refused: when there is none, more than one, or an index that leads elsewhere.
  """
  for states in (folder / DEEPSPEED, folder / "checkpoint" / DEEPSPEED):
    if states.is_file():
      return Parts([_inside(folder, states)], "", {}, None)
  config = folder / "config.json"
  config = _json(_inside(folder, config)) if config.exists() else None
  choices = _choices(folder)
  best = [x for x in choices if _rank(x) == _rank(choices[0])]
  if len(best) > 1:
    names = ", ".join(keys.printable(x.path.name) for x in best)
    raise limits.Refused(f"holds {names}: name the one that is meant")
  (choice,) = best
  kind = "a diffusers folder" + (f", variant {choice.variant}" if choice.variant else "")
  if not choice.index:
    return Parts([_inside(folder, choice.path)], kind, {}, config)
  listed = _listed(folder, choice.path)
  return Parts([folder / name for name in sorted(set(listed.values()))], kind, listed, config)


def _rank(choice: _Choice) -> tuple[bool, bool, bool]:
  return bool(choice.variant), choice.ending != "safetensors", not choice.index


def _choices(folder: pathlib.Path) -> Sequence[_Choice]:
  """All weights in a folder, the best first."""
  choices, shards = [], []
  for path in sorted(folder.iterdir()):
    if match := INDEX.fullmatch(path.name):
      stem, ending, after = match.groups("")
      choices.append(_Choice(path, _variant(stem + after), ending, True))
    elif match := FILE.fullmatch(path.name):
      stem, ending = match.groups()
      if SHARD.search(stem):
        shards.append(path.name)
      else:
        choices.append(_Choice(path, _variant(stem), ending, False))
  if not choices:
    raise limits.Refused(_nothing(folder, shards))
  return sorted(choices, key=_rank)


def _variant(stem: str) -> str:
  """ "model.fp16" -> "fp16"; what starts with a digit is of a version, as in "model_v1.5"."""
  return ".".join(word for word in stem.split(".")[1:] if word[:1].isalpha())


def _nothing(folder: pathlib.Path, shards: Sequence[str]) -> str:
  """What to do about a folder that holds no weights that could be read."""
  if shards:
    return (
      f"holds {keys.printable(shards[0])}, but no index of such files: download the .index.json too"
    )
  folders = sorted({p.parent.name for p in folder.glob("*/*") if FILE.fullmatch(p.name)})
  others = sorted(p.name for p in folder.iterdir() if p.suffix in (".ckpt", ".pt", ".pth"))
  meant = ", ".join(map(keys.printable, others or folders))
  if meant:
    return f"holds no .safetensors and no .bin, but {meant}: name one of these"
  return "holds no .safetensors and no .bin: name a folder or file of weights"


def _listed(folder: pathlib.Path, index: pathlib.Path) -> dict[str, str]:
  """The file of each tensor by an index.

  Raises:
    Refused: for a file that is not in the folder.
  """
  label = keys.printable(index.name)
  table = _json(_inside(folder, index)).get("weight_map")
  if not isinstance(table, dict) or not table or len(table) > limits.TENSORS:
    raise limits.Refused(f"has an index {label} without a weight_map: download it again")
  for name in set(map(str, table.values())):
    path = folder / name
    if path.name != name or name in ("", ".", "..") or "\0" in name:
      raise limits.Refused(
        f"has an index {label} that names '{keys.printable(name)}': only files of the folder are read"
      )
    if not path.exists():
      raise limits.Refused(
        f"lacks {keys.printable(name)}, which its index {label} names: download it"
      )
    _inside(folder, path)
  return {key: str(name) for key, name in table.items()}


def _inside(folder: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
  """The path, if it is a file of the folder, or a link to the place where the Hugging Face hub's
  cache keeps the files of its snapshots.

  Raises:
    Refused: otherwise.
  """
  homes = [folder.resolve()]
  homes += [p.parent / "blobs" for p in (homes[0], *homes[0].parents) if p.name == "snapshots"]
  if not any(path.resolve().is_relative_to(home) for home in homes):
    raise limits.Refused(
      f"links {keys.printable(path.name)} to outside of it: copy the file into the folder"
    )
  if not path.is_file():
    raise limits.Refused(f"holds {keys.printable(path.name)}, which is no file: remove it")
  return path


def _json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    Refused: for anything else.
  """
  label = keys.printable(path.name)
  if path.stat().st_size > limits.HEADER:
    raise limits.Refused(f"has {label} of more than {limits.HEADER:,} bytes: download it again")
  text = path.read_bytes()
  if text.startswith(limits.LFS):
    raise limits.Refused(f"has {label} as a Git LFS pointer: fetch it with git lfs pull")
  try:
    table = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise limits.Refused(f"has {label}, which is no JSON: download it again") from error
  if not isinstance(table, dict):
    raise limits.Refused(f"has {label}, which is no table of JSON: download it again")
  return table
