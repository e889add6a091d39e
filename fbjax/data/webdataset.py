"""The clips of tar files, as WebDataset and video2dataset write them."""

import concurrent.futures
import glob
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence

from fbjax.data import objects, sources, storage, tars
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)

READERS = 16  # tars that are indexed at a time
TOLD = 10.0  # seconds between two lines of progress
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_PATTERN = re.compile(r"[*?\[{]")


class WebDataset(sources.Videos):
  """The clips of tar files: `key.mp4` with its caption in `key.json` or `key.txt`.

  `path` is a folder of tars, one tar, or a pattern such as `shards/{00000..00099}.tar` or
  `shards/*.tar`; `val` names those that are held out in the same way, and without it validation sees
  the training clips. A caption is the json's caption, text or prompt, else the txt. Clips are in the
  order of the tars' names, and in them in their own.
  """

  def __init__(
    self,
    path: video_lib.Path,
    split: str = "train",
    *,
    val: str = "",
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = (1, 6),
  ):
    root, names = find(path)
    if val:
      held_out, others = find(val)
      if split == "val":
        root, names = held_out, others
      else:
        held = {_real(held_out / name) for name in others}
        names = [name for name in names if _real(root / name) not in held]
    elif split == "val":
      logger.warning("config.data.val names no tars: nothing is held out.")
    if not names:
      raise video_lib.BrokenData(
        f"no tar in {path} that config.data.val does not hold out; name fewer there."
      )
    entries = [
      sources.Entry(f"{name}/{member.name}", member.caption)
      for name, index in zip(names, _indices(root, names), strict=True)
      for member in index.clips
    ]
    super().__init__(root, entries, frames=frames, size=size, strides=strides)


def find(path: video_lib.Path) -> tuple[objects.Place, list[str]]:
  """The tars that a path means: a folder, and their names below it, in order.

  Raises:
    BrokenData: when there are none.
  """
  if not isinstance(path, str | os.PathLike) or not os.fspath(path):
    raise video_lib.BrokenData(
      "no path to the tars is given; set config.data.path to their folder or to a pattern such as "
      "shards/{00000..00099}.tar."
    )
  place = storage.place(path)
  pattern = isinstance(place, objects.Address) and _PATTERN.search(str(place))
  if not pattern and place.is_dir():
    return place, _below(place)
  if not pattern and place.is_file():
    return place.parent, _called_tar(place.parent, [place.name])
  head, folder, rest = _split(str(place))
  if not rest:
    raise video_lib.BrokenData(f"no file or folder at {place}; set config.data.path to the tars.")
  root, names = storage.place(head + folder), []
  for name in _expanded(rest):
    found = [name]
    if glob.has_magic(name):
      found = root.glob(name) if isinstance(root, objects.Address) else _globbed(root, name)
      # Their statistics lie beside them.
      found = [file for file in found if file.endswith(".tar")] or found
    names += found
  if not names:
    raise video_lib.BrokenData(
      f"no file is of the pattern {path}; set config.data.path to the tars."
    )
  return root, _called_tar(root, list(dict.fromkeys(names)))


def _called_tar(root: objects.Place, names: list[str]) -> list[str]:
  """These names; BrokenData where one is of something else than a plain tar."""
  for name in names:
    if not name.endswith(".tar"):
      raise video_lib.BrokenData(
        f"{root / name} is not called .tar; name tars alone, and unpack those that are compressed."
      )
  return names


def _split(path: str) -> tuple[str, str, str]:
  """Where a pattern lies: the kind of its address, the folder before it, and itself."""
  kind, mark, rest = path.rpartition("://")
  parts = rest.split("/")
  first = next((i for i, part in enumerate(parts) if _PATTERN.search(part)), len(parts))
  folder = "/".join(parts[:first]) or ("/" if rest.startswith("/") else "." if not mark else "")
  return kind + mark, folder, "/".join(parts[first:])


def _real(tar: objects.Place) -> str:
  """The same for all ways to name a tar: by a relative path, an absolute one, or a link."""
  return str(tar) if isinstance(tar, objects.Address) else os.path.realpath(tar)


def _below(root: objects.Place) -> list[str]:
  """The tars of a folder and of those in it, but what is hidden."""
  if isinstance(root, objects.Address):
    files = root.files()
  else:
    files = sorted(
      os.path.relpath(os.path.join(top, name), root)
      for top, _, names in os.walk(root, followlinks=False)
      for name in names
    )
  seen = [file for file in files if not any(part.startswith(".") for part in file.split("/"))]
  if found := [file for file in seen if file.endswith(".tar")]:
    return found
  packed = [file for file in seen if re.search(r"\.(tar\.\w+|tgz)$", file)]
  more = f"; {packed[0]} is compressed: unpack it to a .tar" if packed else ""
  raise video_lib.BrokenData(f"no .tar in {root}{more or '; set config.data.path to the tars'}.")


def _globbed(root: objects.Place, pattern: str) -> list[str]:
  return sorted(glob.glob(pattern, root_dir=root, recursive=True))


def _expanded(pattern: str) -> Iterator[str]:
  """`a{08..10}` -> a08, a09, a10; `{a,b}` -> a, b; and so on inside the result."""
  found = _BRACES.search(pattern)
  if not found:
    yield pattern
    return
  if ends := _RANGE.fullmatch(found[1]):
    first, last = map(int, ends.groups())
    width = len(ends[1]) if ends[1].startswith("0") or len(ends[1]) == len(ends[2]) else 0
    step = 1 if last >= first else -1
    choices = [f"{i:0{width}}" for i in range(first, last + step, step)]
  else:
    choices = found[1].split(",")
  for choice in choices:
    yield from _expanded(pattern[: found.start()] + choice + pattern[found.end() :])


def _indices(root: objects.Place, names: Sequence[str]) -> list[tars.Index]:
  """The index of each tar. Says what is wrong with tars, and what is left out of them."""
  indices, told = [], time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
    for index in pool.map(lambda name: tars.index(root / name), names):
      indices.append(index)
      if time.monotonic() - told > TOLD:
        told = time.monotonic()
        logger.info("%d of %d tars are indexed.", len(indices), len(names))
  faulty = [(n, x) for n, x in zip(names, indices, strict=True) if x.fault]
  if not any(index.clips for index in indices) and faulty:
    raise video_lib.BrokenData(f"{root / faulty[0][0]} {faulty[0][1].fault}; fetch it anew.")
  for name, index in faulty[:8]:
    logger.warning("%s %s; %d clips of it are used.", root / name, index.fault, len(index.clips))
  if len(faulty) > 8:
    logger.warning("%d more tars are damaged.", len(faulty) - 8)
  counts: dict[str, tuple[int, str]] = {}
  for name, index in zip(names, indices, strict=True):
    for reason, (count, first) in index.left_out.items():
      before, example = counts.get(reason, (0, f"{name}/{first}"))
      counts[reason] = before + count, example
  reasons = [f"{count} {reason}" for reason, (count, _) in counts.items()]
  if reasons and not any(index.clips for index in indices):
    raise video_lib.BrokenData(
      f"the tars of {root} hold no clip that can be used: {', '.join(reasons)}."
    )
  for reason, (count, example) in counts.items():
    logger.warning("%s: left out %d %s, such as %s.", root, count, reason, example)
  return indices
