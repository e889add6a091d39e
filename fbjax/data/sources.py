"""Data sets of video files as random access, and those that are published: WebVid, UCF-101, MSR-VTT.

`Videos` reads; a subclass for each layout on disk lists the files and their captions. No video is
opened before it is read; one that is missing or broken is then replaced (see transforms).
"""

import copy
import os
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from fbjax import checks, errors
from fbjax.data import buckets, objects, probe, storage, text, transforms
from fbjax.data import video as video_lib


class Entry(NamedTuple):
  file: str  # below the root of the data set
  caption: str
  label: int = -1


class Videos:
  """A source of video files: each read decodes a random window of one file.

  A window has `frames` frames of `size` (one number, or height and width, in pixels), at a stride
  drawn uniformly from `strides` (one number, or the least and the most); see `video.read_clip`.
  """

  choose: video_lib.Choose = staticmethod(video_lib.evenly)
  flip = False  # each read is mirrored left to right with probability 1/2

  def __init__(
    self,
    root: video_lib.Path,
    entries: Sequence[Entry],
    *,
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = (1, 6),
  ):
    self.root, self.entries = storage.place(root), entries
    self.frames = checks.whole("config.data.frames", frames)
    self.size = checks.pair("config.data.size", size, "height and width")
    self.strides = checks.pair("config.data.strides", strides, "least and most")
    if self.strides[0] > self.strides[1]:
      raise errors.UserError(
        f"config.data.strides is {strides!r}; expected the least before the most."
      )
    if not len(entries):
      raise video_lib.BrokenData(
        f"the data set {root} lists no clips; set config.data.path to another."
      )

  def __len__(self) -> int:
    return len(self.entries)

  def name(self, index: int) -> str:
    return self.entries[index].file

  def caption(self, index: int) -> str:
    return self.entries[index].caption

  def path(self, index: int) -> objects.Place:
    """Where a clip lies; BrokenClip where its name leads out of the data set."""
    return storage.below(self.root, self.entries[index].file)

  def content(self, index: int) -> tuple[video_lib.Path, bytes | None]:
    """The file of a clip on disk, or its name and its bytes; BrokenClip where it cannot be had."""
    return storage.content(self.root, self.entries[index].file)

  def file_size(self, index: int) -> int:
    """How many bytes the file of a clip has; raises as `storage.size`."""
    return storage.size(self.root, self.entries[index].file)

  def shape(self, index: int) -> probe.Shape:
    """Frames, height and width of a clip as its file says; BrokenClip where it cannot be had."""
    name = self.entries[index].file
    with storage.opened(self.root, name) as file:
      return probe.shape(self.root / name, file)

  def resized(self, frames: int, size: tuple[int, int]) -> "Videos":
    """The same clips at another length and (height, width)."""
    other = copy.copy(self)
    other.frames, other.size = frames, size
    return other

  def placed(self, taken: Sequence[buckets.Bucket], hosts: buckets.Hosts) -> Int[np.ndarray, "n"]:
    """The bucket of each clip, by its shape; see `buckets.Sizable`."""
    home = self.root if objects.is_address(self.root) else os.path.abspath(self.root)
    key = f"{home} {self.digest()}"
    shapes = probe.shapes(len(self), key, self.shape, hosts)
    return buckets.fitting(shapes, taken, self.strides[0])

  def digest(self) -> str:
    return transforms.digest(self.entries)

  def read(self, index: int, rng: np.random.Generator) -> video_lib.Clip:
    """A random window of this file, drawn with `rng`; BrokenClip where it cannot be read."""
    entry, (path, data) = self.entries[index], self.content(index)
    video, stride = video_lib.read_clip(
      path, self.frames, self.size, self.strides, rng, data, self.choose
    )
    if self.flip and rng.integers(2):
      video = video[:, :, ::-1]
    return video_lib.Clip(np.ascontiguousarray(video), entry.caption, stride, entry.label)


class WebVid(Videos):
  """WebVid-2M: `results_2M_<split>.csv` beside `2M_<split>/<videoid>.mp4`.

  Or `2M_<split>/<page_dir>/<videoid>.mp4`, or the folder called `videos`, as WebVid's own download
  script has it. Of the table, `videoid` and `name` (the caption) need to be there; ids stay
  strings, so that leading zeros live.
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
    rows = text.table(root / f"results_2M_{split}.csv", ("videoid", "name"), ("page_dir",))
    places = [root / f"2M_{split}", root / "videos"]
    videos = folder(next(filter(os.path.isdir, places), places[0]))
    # One look at what lies there, instead of one for each of millions of rows.
    found = set(os.listdir(videos))
    entries = []
    for videoid, caption, page in rows:
      file = f"{videoid}.mp4"
      paged = file not in found and page in found
      entries.append(Entry(f"{page}/{file}" if paged else file, caption))
    super().__init__(videos, entries, frames=frames, size=size, strides=strides)

  def digest(self) -> str:
    # The same for both layouts.
    return transforms.digest((entry.file.split("/")[-1], *entry[1:]) for entry in self.entries)


class UCF101(Videos):
  """UCF-101: `UCF-101/<Class>/*.avi` beside `ucfTrainTestlist/{classInd,trainlist0k,testlist0k}.txt`.

  A clip's label is its class's place in classInd.txt from 0, its caption the class's name in words.
  `protocol` "official" takes the train and test lists of `fold` as the splits; with "all", the
  published setting, both splits are the clips of both lists. `spacing` "even" keeps the stride,
  "published" drifts between it and one more as the released loader does. With `flip`, as published,
  each read of a training clip is mirrored with probability 1/2.
  """

  def __init__(
    self,
    path: video_lib.Path,
    split: str = "train",
    *,
    protocol: str = "official",
    fold: int = 1,
    spacing: str = "even",
    flip: bool = False,
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = 3,
  ):
    check_protocol(protocol)
    if spacing not in _SPACINGS:
      raise errors.UserError(f"config.data.spacing is {spacing!r}; expected 'even' or 'published'")
    self.choose, self.flip = _SPACINGS[spacing], flip and split == "train"
    root, fold = folder(path), checks.whole("config.data.fold", fold)
    lists = root / "ucfTrainTestlist"
    self.classes = [line.split()[-1] for line in text.lines(lists / "classInd.txt")]
    names = ["trainlist", "testlist"] if protocol == "all" else [_UCF_LISTS[split]]
    files = [
      line.split()[0] for name in names for line in text.lines(lists / f"{name}{fold:02}.txt")
    ]
    labels = {name: i for i, name in enumerate(self.classes)}
    if strangers := sorted({file.split("/")[0] for file in files} - labels.keys()):
      raise video_lib.BrokenData(
        f"{lists} lists clips of {strangers[0]}, no class of classInd.txt."
      )
    entries = [
      Entry(file, _words(file.split("/")[0]), labels[file.split("/")[0]]) for file in sorted(files)
    ]
    super().__init__(folder(root / "UCF-101"), entries, frames=frames, size=size, strides=strides)


_SPACINGS = {"even": video_lib.evenly, "published": video_lib.in_window}
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
    tables = sorted(f for f in root.glob("*_videodatainfo.json") if not f.name.startswith("."))
    if not tables:
      raise video_lib.BrokenData(
        f"no *_videodatainfo.json in {root}; set config.data.path to MSR-VTT."
      )
    splits: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for table in tables:
      videos, sentences = text.records(
        table,
        videos={"video_id": str, "split": str},
        sentences={"sen_id": int, "video_id": str, "caption": str},
      )
      splits |= dict(videos)
      for _, name, caption in sorted(sentences, key=lambda sentence: sentence[0]):
        if caption.strip():
          captions.setdefault(name, []).append(text.clean(caption))
    wanted = {"train": ("train",), "val": ("validate", "test")}[split]
    # The zero-shot test set comes alone: then all of it is what there is.
    chosen = [name for name, kind in sorted(splits.items()) if kind in wanted] or sorted(splits)
    entries = []
    for name in chosen:
      if name not in captions:
        raise video_lib.BrokenData(f"{root}: {name} has no caption in {tables[-1].name}.")
      place = zlib.crc32(text.clean(f"{seed}/{name}").encode()) % len(captions[name])
      entries.append(Entry(f"{name}.mp4", captions[name][place]))
    super().__init__(folder(root / "videos"), entries, frames=frames, size=size, strides=strides)


def _words(name: str) -> str:
  """ "PlayingGuitar" -> "playing guitar"."""
  return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


def check_protocol(protocol: str) -> None:
  if protocol not in ("official", "all"):
    raise video_lib.BrokenData(
      f"config.data.protocol is {protocol!r}; expected 'official' or 'all'."
    )


def folder(path: video_lib.Path) -> pathlib.Path:
  """The folder of this machine that config.data.path names; BrokenData where there is none."""
  if objects.is_address(path):
    raise video_lib.BrokenData(
      f"{path} is not on this machine, and only folder, table and webdataset read from elsewhere; "
      "copy it here, or set config.data.name to one of them."
    )
  return storage.folder(path)
