"""Data sets of video files as random access: which files there are and what their captions say.

`Videos` reads, a subclass for each layout on disk lists. No video is opened before it is read; one
that is missing or broken is then replaced (see transforms).
"""

import csv
import io
import json
import logging
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fbjax import errors
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
  file: str  # below the root of the data set
  caption: str
  label: int = -1


class Videos:
  """A source of one random stretch per read of each file.

  `frames`, `size` (one number or height and width) and `strides` (one number or the two ends of a
  uniform choice) say which; see video.read_clip.
  """

  def __init__(
    self,
    root: video_lib.Path,
    entries: Sequence[Entry],
    *,
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = (1, 6),
  ):
    self.root, self.entries, self.frames = pathlib.Path(root), entries, frames
    self.size, self.strides = video_lib.pair(size), video_lib.pair(strides)
    if not 1 <= self.strides[0] <= self.strides[1]:
      raise errors.UserError(
        f"strides {self.strides} must be one number or (least, most), from 1 up."
      )

  def __len__(self) -> int:
    return len(self.entries)

  def name(self, index: int) -> str:
    return self.entries[index].file

  def caption(self, index: int) -> str:
    return self.entries[index].caption

  def read(self, index: int, rng: np.random.Generator) -> video_lib.Clip:
    """A random stretch of this file, drawn with `rng`; BrokenClip where it cannot be had."""
    entry = self.entries[index]
    path = self.root / entry.file
    video, stride = video_lib.read_clip(path, self.frames, self.size, self.strides, rng)
    return video_lib.Clip(video, entry.caption, stride, entry.label)


class WebVid(Videos):
  """WebVid-2M: `results_2M_<split>.csv` beside the folder `2M_<split>` of <videoid>.mp4 files.

  Only `videoid` and `name` (the caption) are used and need to be there; ids stay strings, so that
  leading zeros live.
  """

  def __init__(
    self,
    path: video_lib.Path,
    split: str = "train",
    *,
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = (1, 6),
  ):
    root = folder(path)
    rows = _read_csv(root / f"results_2M_{split}.csv", ("videoid", "name"))
    entries = [Entry(f"{videoid}.mp4", caption) for videoid, caption in rows]
    videos = folder(root / f"2M_{split}")
    super().__init__(videos, entries, frames=frames, size=size, strides=strides)


class Folder(Videos):
  """Every video file below a folder, sorted by path.

  A file's caption is its row in `captions.csv` (columns file,caption; file relative to the folder),
  else the text beside it (`cat.txt` for `cat.mp4`), else its name in words (`a_cat-01.mp4`: a cat).
  Files below a subfolder `val` are held out; without one, validation sees the training files.
  """

  def __init__(
    self,
    path: video_lib.Path,
    split: str = "train",
    *,
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = (1, 6),
  ):
    root = folder(path)
    found = sorted(
      file.relative_to(root).as_posix()
      for file in root.rglob("*")
      if file.suffix.lower() in video_lib.EXTENSIONS and not file.name.startswith(".")
    )
    files = [file for file in found if file.startswith("val/") == (split == "val")]
    if split == "val" and not files:
      logger.warning("%s has no folder val: nothing is held out.", root)
      files = found
    if not files:
      raise video_lib.BrokenData(
        f"no video files in {root}; it takes {', '.join(video_lib.EXTENSIONS)}."
      )
    table = root / "captions.csv"
    captions = dict(_read_csv(table, ("file", "caption"))) if table.exists() else {}
    if strangers := sorted(captions.keys() - set(found)):
      logger.warning(
        "%s names %d files that are not there, such as %s.", table, len(strangers), strangers[0]
      )
    entries = [Entry(file, captions.get(file) or _caption_beside(root / file)) for file in files]
    super().__init__(root, entries, frames=frames, size=size, strides=strides)


class UCF101(Videos):
  """UCF-101: `UCF-101/<Class>/*.avi` beside `ucfTrainTestlist/{classInd,trainlist0k,testlist0k}.txt`.

  A clip's label is its class's number in classInd.txt from 0, its caption the class's name in words.
  `protocol` "official" keeps the lists of `fold` apart; "all", the published setting, trains on every
  clip and holds out the same ones. `strides` 3 is constant, where the published loader drifts
  between 3 and 4.
  """

  def __init__(
    self,
    path: video_lib.Path,
    split: str = "train",
    *,
    protocol: str = "official",
    fold: int = 1,
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = 3,
  ):
    check_protocol(protocol)
    root = folder(path)
    lists = root / "ucfTrainTestlist"
    self.classes = [line.split()[-1] for line in _lines(lists / "classInd.txt")]
    names = ["trainlist", "testlist"] if protocol == "all" else [_UCF_LISTS[split]]
    files = [line.split()[0] for name in names for line in _lines(lists / f"{name}{fold:02}.txt")]
    labels = {name: i for i, name in enumerate(self.classes)}
    if strangers := sorted({file.split("/")[0] for file in files} - labels.keys()):
      raise video_lib.BrokenData(
        f"{lists} lists clips of {strangers[0]}, no class of classInd.txt."
      )
    entries = [
      Entry(file, _words(file.split("/")[0]), labels[file.split("/")[0]]) for file in sorted(files)
    ]
    super().__init__(folder(root / "UCF-101"), entries, frames=frames, size=size, strides=strides)


_UCF_LISTS = {"train": "trainlist", "val": "testlist"}


class MSRVTT(Videos):
  """MSR-VTT: `*_videodatainfo.json` beside `videos/<video_id>.mp4`, one caption a clip.

  Which of a clip's captions is taken is fixed by `seed` and the clip's name. `split` "val" is the
  "test" of a file that says so.
  """

  def __init__(
    self,
    path: video_lib.Path,
    split: str = "train",
    *,
    seed: int = 0,
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = 3,
  ):
    root = folder(path)
    tables = sorted(root.glob("*_videodatainfo.json"))
    if not tables:
      raise video_lib.BrokenData(f"no *_videodatainfo.json in {root}; set data.path to MSR-VTT.")
    videos: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for table in tables:
      found = json.loads(read_text(table))
      videos |= {video["video_id"]: video["split"] for video in found["videos"]}
      for sentence in sorted(found["sentences"], key=lambda s: s["sen_id"]):
        captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
    wanted = {"train": ("train",), "val": ("validate", "test")}[split]
    # The zero-shot test set comes alone: then all of it is what there is.
    chosen = [name for name, kind in sorted(videos.items()) if kind in wanted] or sorted(videos)
    entries = []
    for name in chosen:
      if name not in captions:
        raise video_lib.BrokenData(f"{root}: {name} has no caption in {tables[-1].name}.")
      place = zlib.crc32(f"{seed}/{name}".encode()) % len(captions[name])
      entries.append(Entry(f"{name}.mp4", captions[name][place]))
    super().__init__(folder(root / "videos"), entries, frames=frames, size=size, strides=strides)


def _lines(path: pathlib.Path) -> list[str]:
  if not path.is_file():
    raise video_lib.BrokenData(f"no file {path}; set data.path to where the data is.")
  return [line for line in read_text(path).splitlines() if line.strip()]


def _words(name: str) -> str:
  """ "PlayingGuitar" -> "playing guitar"."""
  return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


def _caption_beside(file: pathlib.Path) -> str:
  sidecar = file.with_suffix(".txt")
  if sidecar.exists():
    return " ".join(read_text(sidecar).split())
  words = re.split(r"[\W_]+", file.stem)
  return " ".join(word for word in words if not word.isdigit()).strip()


def check_protocol(protocol: str) -> None:
  if protocol not in ("official", "all"):
    raise video_lib.BrokenData(f"data.protocol is {protocol!r}; expected 'official' or 'all'.")


def folder(path: video_lib.Path) -> pathlib.Path:
  """The folder that data.path names; BrokenData where there is none."""
  if not str(path):
    raise video_lib.BrokenData("no path to the data is given; set data.path to its folder.")
  path = pathlib.Path(path)
  if not path.is_dir():
    raise video_lib.BrokenData(f"no folder at {path}; set data.path to where the data is.")
  return path


def read_text(path: pathlib.Path) -> str:
  """A UTF-8 text file, with or without a byte order mark."""
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as e:
    raise video_lib.BrokenData(
      f"{path} is not UTF-8 (byte {e.object[e.start]:#x} at {e.start}); save it as UTF-8."
    ) from None


def _read_csv(path: pathlib.Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
  """These columns of every row that has them all, as strings; says how many rows it drops.

  Strict where a lenient reader would swallow half a file: on a quote that never closes and on rows
  with more fields than the header.
  """
  if not path.is_file():
    raise video_lib.BrokenData(f"no file {path}; set data.path to where the data is.")
  lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
  try:
    header = next(lines, [])
    if missing := [c for c in columns if c not in header]:
      raise video_lib.BrokenData(
        f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(header) or 'nothing'}."
      )
    places = [header.index(c) for c in columns]
    rows, dropped = [], 0
    for fields in lines:
      if len(fields) > len(header):
        raise video_lib.BrokenData(
          f"{path}, line {lines.line_num}: {len(fields)} fields where the header has {len(header)};"
          " put quotes around text with commas."
        )
      values = tuple(fields[i].strip() if i < len(fields) else "" for i in places)
      if all(values):
        rows.append(values)
      elif fields:
        dropped += 1
  except csv.Error as e:
    raise video_lib.BrokenData(
      f"{path}, line {lines.line_num}: {e}; a quote may never close."
    ) from None
  if dropped:
    logger.warning("%s: dropped %d rows without %s.", path, dropped, " or ".join(columns))
  if not rows:
    raise video_lib.BrokenData(f"{path} has no row with {' and '.join(columns)}.")
  return rows
