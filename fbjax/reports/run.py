"""Reads what a report needs of a workdir, without changing anything there.

start.json   of the newest start: the config's name, what was changed of it, versions and devices
"""

import datetime
import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from PIL import Image, ImageSequence

from fbjax import digest, errors, places, tracker
from fbjax import workdir as workdir_lib
from fbjax.evaluation import card as cards

START_FILE = "start.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
SMALLEST = 0.2  # of its width, that a moving picture is still worth showing at


class Run(NamedTuple):
  """A run, as its folder has it.

  name: a suffix of the folder's path that tells it from the other runs. folder: as given. config:
  resolved. start: see above; empty for a run of an earlier version. changes: what later starts
  changed. rows: of metrics.jsonl. cards: by file name. sheets: GIFs of the newest preview, by file
  name. notes: what could not be read. ended: the error that ended it, if any.
  """

  name: str
  folder: str
  config: dict[str, Any]
  start: dict[str, Any]
  changes: list[dict[str, Any]]
  rows: list[dict[str, Any]]
  cards: dict[str, dict[str, Any]]
  sheets: dict[str, bytes]
  notes: list[str]
  ended: str = ""


def note_start(
  workdir: str, config: Mapping[str, Any], named: str = "", given: Mapping[str, Any] | None = None
) -> None:
  """Writes start.json.

  Args:
    workdir: of the run.
    config: resolved.
    named: the file of the config, as the user named it.
    given: what the file alone makes; None where that is not known.
  """
  changed = None if given is None else workdir_lib.changes(json.loads(json.dumps(given)), config)
  devices = jax.devices()
  start = {
    "config": named,
    "changed": changed,
    "code": digest.of_code(),
    "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    "device": f"{len(devices)} x {devices[0].device_kind}",
    "processes": jax.process_count(),
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }
  places.write_json(f"{workdir}/{START_FILE}", start)


def version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"


def read(workdir: str, name: str, most: float, ended: str = "") -> Run:
  """Reads a workdir.

  Args:
    workdir: here or in a bucket.
    name: of the run in the report.
    most: bytes that its GIFs may have together; larger ones are scaled down.
    ended: the error that ended the run, if any.

  Raises:
    UserError: when nothing was trained there.
  """
  home, notes = places.absolute(workdir), []
  config = workdir_lib.read_config(workdir)
  places.pull(workdir, "metrics.jsonl")
  rows = tracker.read_metrics(places.local(workdir) / "metrics.jsonl")
  start = lines(home / START_FILE, notes, whole=True)
  return Run(
    name=name,
    folder=str(workdir),
    config=config,
    start=start[0] if start else {},
    changes=lines(home / workdir_lib.CHANGES_FILE, notes),
    rows=rows,
    cards=read_cards(home / "evaluation", notes),
    sheets=newest_sheets(home / "samples", most, notes),
    notes=notes,
    ended=ended,
  )


def names(workdirs: Sequence[str]) -> list[str]:
  """The ends of paths, all of as many parts, which tell them apart."""
  parts = [str(workdir).rstrip("/").split("/") for workdir in workdirs]
  for count in range(1, max(map(len, parts)) + 1):
    found = ["/".join(of[-count:]) for of in parts]
    if len(set(found)) == len(found):
      return found
  return list(map(str, workdirs))


def lines(file: epath.Path, notes: list[str], whole: bool = False) -> list[dict[str, Any]]:
  """The objects of a JSON-lines file, or the one of a `whole` JSON file; none if it is missing.

  A damaged file gives none, and a line in `notes`.
  """
  if not file.exists():
    return []
  try:
    content = file.read_bytes().decode()
    found = [json.loads(part) for part in ([content] if whole else content.splitlines())]
  except (ValueError, RecursionError):
    found = [None]
  if all(isinstance(x, dict) for x in found):
    return found
  notes.append(f"{file.name} is damaged, and left out.")
  return []


def read_cards(folder: epath.Path, notes: list[str]) -> dict[str, dict[str, Any]]:
  """The cards of a folder, by name; files that are none are noted."""
  found = {}
  for file in sorted(folder.glob("*.json")) if folder.exists() else ():
    try:
      card = cards.read(str(file))
      # A digest says that nobody has changed a card, and nothing of who wrote it.
      good = all(
        tracker.is_number(value) and tracker.is_number(error)
        for of in card["numbers"].values()
        for value, error in of.values()
      ) and isinstance(card["protocol"], dict)
    except errors.UserError as error:
      notes.append(f"{error}.")
      continue
    except (AttributeError, KeyError, TypeError, ValueError):
      good = False
    if good and card["numbers"].get("made"):
      found[file.stem] = card
    else:
      notes.append(f"{file.name} is no card of numbers, and left out.")
  return found


def newest_sheets(folder: epath.Path, most: float, notes: list[str]) -> dict[str, bytes]:
  """The moving pictures of the newest preview, together no larger than `most` bytes."""
  files = [file for file in folder.glob("*.gif")] if folder.exists() else []
  files = [file for file in files if file.stem[:7].isdigit()]
  newest = max((file.stem[:7] for file in files), default="")
  found = {}
  for file in sorted(file for file in files if file.stem[:7] == newest):
    data = smaller(file.read_bytes(), most)
    if not data:
      notes.append(f"samples/{file.name} is too large to be shown here, or damaged.")
      continue
    found[file.stem] = data
    most -= len(data)
  return found


def smaller(gif: bytes, most: float) -> bytes | None:
  """A moving GIF, reduced until it is no larger than `most` bytes; None where that is too small to see."""
  scale, made = 1.0, gif
  while len(made) > most:
    # As the area, and a little less.
    scale *= min(0.95 * (max(most, 1) / len(made)) ** 0.5, 0.9)
    if scale < SMALLEST:
      return None
    made = scaled(gif, scale)
    if made is None:
      return None
  return made


def scaled(gif: bytes, scale: float) -> bytes | None:
  """A moving GIF of another size; None where it is damaged."""
  try:
    with Image.open(io.BytesIO(gif)) as moving:
      size = [max(1, round(side * scale)) for side in moving.size]
      pace = moving.info.get("duration", 125)
      frames = [frame.convert("RGB").resize(size) for frame in ImageSequence.Iterator(moving)]
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
    return None
  out = io.BytesIO()
  frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=pace, loop=0)
  return out.getvalue()
