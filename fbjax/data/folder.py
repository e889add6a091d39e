"""The video files of a folder, with captions from wherever they are."""

import collections
import concurrent.futures
import logging
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence

from fbjax.data import objects, sources, storage, text
from fbjax.data import table as tables
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)

READERS = 32  # requests at a time
# Thumbnails and deleted files of Synology and QNAP, Windows and the archives of macOS.
_SYSTEM_FOLDERS = ("@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "__MACOSX")


class Folder(sources.Videos):
  """Every video file below a folder, sorted by path.

  Links to folders are followed; what is hidden is left out, and so are the folders in which systems
  keep what was deleted. A file's caption is its row in `captions.csv` (columns file,caption; file
  relative to the folder) or in Hugging Face's `metadata.jsonl` or `metadata.csv` (file_name, and text,
  caption or prompt), else the text beside it (`cat.txt` for `cat.mp4`), else its name in words
  (`a_cat-01.mp4`: a cat). Files below a subfolder `val` are held out; without one, validation sees
  the training files.
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
    root = storage.folder(path)
    if isinstance(root, objects.Address):
      beside = root.files()
      val, train = _of_bucket(beside)
    else:
      # What is held out is looked for first, and no folder is seen twice: a link from elsewhere to a
      # held-out folder does not bring it into the training.
      beside, seen = None, set()
      val, train = ([_below(root, f) for f in _videos(top, seen)] for top in (root / "val", root))
    files = val if split == "val" else train
    if split == "val" and not files:
      logger.warning("%s has no folder val: nothing is held out.", root)
      files = train
    if not files:
      raise video_lib.BrokenData(
        f"no video files in {root}; it takes {', '.join(video_lib.EXTENSIONS)}."
      )
    table, captions = _captions(root)
    if strangers := sorted(captions.keys() - {*val, *train}):
      logger.warning(
        "%s names %d files that are not there, such as %s.", table, len(strangers), strangers[0]
      )
    files = sorted(files)
    texts = _captions_beside(root, [file for file in files if not captions.get(file)], beside)
    entries = [sources.Entry(file, captions.get(file) or texts[file]) for file in files]
    if empty := [entry.file for entry in entries if not entry.caption]:
      logger.warning("%d clips have an empty caption, such as %s.", len(empty), root / empty[0])
    super().__init__(root, entries, frames=frames, size=size, strides=strides)


def video_files(top: video_lib.Path) -> list[str]:
  """Every video file at and below a folder, sorted by path.

  Raises:
    BrokenData: when there is no such folder, or none in it.
  """
  files = sorted(_videos(sources.folder(top), set()))
  if not files:
    raise video_lib.BrokenData(
      f"no video files in {top}; it takes {', '.join(video_lib.EXTENSIONS)}."
    )
  return files


def told_captions(top: video_lib.Path, files: Sequence[str]) -> list[str]:
  """Captions of files of a folder, by its table or the texts beside them; "" where there is neither.

  Their names are no captions here: those of results often are numbers.
  """
  root = storage.folder(top)
  _, captions = _captions(root)

  def caption(file: str) -> str:
    relative = os.path.relpath(file, top)
    beside = root / f"{os.path.splitext(relative)[0]}.txt"
    if not captions.get(relative) and beside.is_file():
      return " ".join(text.read(beside).split())
    return captions.get(relative, "")

  return [caption(file) for file in files]


def _captions(root: objects.Place) -> tuple[objects.Place, dict[str, str]]:
  """The table of captions of a folder, if there is one, and what it says, by file."""
  for name in ("captions.csv", "metadata.jsonl", "metadata.csv"):
    table = root / name
    if not table.exists():
      continue
    if name == "captions.csv":
      rows = text.table(table, ("file", "caption"), unique=posixpath.normpath)
    elif name == "metadata.csv":
      columns = ("file_name", tables.column(table, text.header(table), tables.CAPTION_COLUMNS))
      rows = text.table(table, columns, unique=posixpath.normpath)
    else:
      rows = text.jsonl(table, "file_name", tables.CAPTION_COLUMNS)
    return table, {posixpath.normpath(file): caption for file, caption in rows}
  return root / "captions.csv", {}


def _captions_beside(
  root: objects.Place, files: Sequence[str], beside: Sequence[str] | None
) -> Mapping[str, str]:
  """Captions of files from the texts beside them or their names.

  `beside` is all that lies below the root, where it takes long to ask for each text.
  """
  known = None if beside is None else set(beside)

  def caption(file: str) -> str:
    stem = os.path.splitext(file)[0]
    sidecar = root / f"{stem}.txt"
    if sidecar.is_file() if known is None else f"{stem}.txt" in known:
      return " ".join(text.read(sidecar).split())
    words = re.split(r"[\W_]+", posixpath.basename(stem))
    return " ".join(word for word in words if not word.isdigit()).strip()

  if known is None:
    return {file: caption(file) for file in files}
  with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
    return dict(zip(files, pool.map(caption, files), strict=True))


def _of_bucket(files: Sequence[str]) -> tuple[list[str], list[str]]:
  """The video files among those of a bucket: those held out, and those to train on."""
  videos = [
    file
    for file in files
    if os.path.splitext(file)[1].lower() in video_lib.EXTENSIONS
    and not any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in file.split("/"))
  ]
  val = [file for file in videos if file.startswith("val/")]
  return val, [file for file in videos if not file.startswith("val/")]


def _below(root: pathlib.Path, file: str) -> str:
  return pathlib.Path(file).relative_to(root).as_posix()


def _videos(top: pathlib.Path, seen: set[tuple[int, int]]) -> Iterator[str]:
  """Paths of the video files at and below a folder; adds the folders it has been to to `seen`.

  Folders are visited before links to folders, so that a file that both lead to goes by its own
  path, and each once, so that links may form loops.
  """
  folders, links = collections.deque([os.fspath(top)]), collections.deque()
  while folders or links:
    place = folders.popleft() if folders else links.popleft()
    try:
      status = os.stat(place)
      if (status.st_dev, status.st_ino) in seen:
        continue
      seen.add((status.st_dev, status.st_ino))
      with os.scandir(place) as listing:
        found = sorted(listing, key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
      continue
    except OSError as e:
      logger.warning("The folder %s cannot be listed and is left out: %s.", place, e.strerror)
      continue
    for item in found:
      if item.name.startswith(".") or item.name in _SYSTEM_FOLDERS:
        continue
      if os.path.isdir(item.path) if item.is_symlink() else item.is_dir():
        (links if item.is_symlink() else folders).append(item.path)
      elif os.path.splitext(item.name)[1].lower() in video_lib.EXTENSIONS:
        yield item.path
