"""The clips that a table names."""

import logging
import os
import posixpath
from collections.abc import Sequence

from fbjax.data import objects, sources, storage, text
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)

FILE_COLUMNS = ("file", "video", "video_path", "path", "filename")
CAPTION_COLUMNS = ("caption", "text", "prompt")
LABEL_COLUMN = "label"


class Table(sources.Videos):
  """The clips that a csv file names, as OpenVid-1M and the doctor's manifests do.

  `path` is the table, with a column file, video, video_path, path or filename, one caption, text or
  prompt, and for clips of classes one label with their numbers. Files are relative to `root`, by
  default the table's folder, and may lie in tars: `00000.tar/cat.mp4`. `val` is the table of the
  held-out clips; without one, validation sees the training clips.
  """

  def __init__(
    self,
    path: video_lib.Path,
    split: str = "train",
    *,
    root: str = "",
    val: str = "",
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = (1, 6),
  ):
    if not os.fspath(path):
      raise video_lib.BrokenData(
        "no path to the table is given; set config.data.path to a .csv file."
      )
    if split == "val" and not val:
      logger.warning("config.data.val names no table: nothing is held out.")
    table = storage.place(val if split == "val" and val else path)
    header = text.header(table)
    columns = [column(table, header, names) for names in (FILE_COLUMNS, CAPTION_COLUMNS)]
    home = storage.place(root) if root else table.parent
    rows = text.table(table, columns, optional=[LABEL_COLUMN], unique=posixpath.normpath)
    entries = [
      sources.Entry(_relative(file, home), caption, _class(table, file, label))
      for file, caption, label in rows
    ]
    super().__init__(storage.folder(home), entries, frames=frames, size=size, strides=strides)


def column(table: objects.Place, header: Sequence[str], names: Sequence[str]) -> str:
  """The first of some names that a table has as a column."""
  for name in names:
    if name in header:
      return name
  raise video_lib.BrokenData(
    f"{table} has none of the columns {', '.join(names)}; it has {', '.join(header) or 'nothing'}."
  )


def _class(table: objects.Place, file: str, label: str) -> int:
  """The number of a class; -1 without one."""
  if not label or (label.isdecimal() and len(label) < 10):  # of 32 bits
    return int(label or -1)
  raise video_lib.BrokenData(
    f"{table}: the {LABEL_COLUMN} of {file} is {label!r}; expected the number of a class. Give the column another "
    "name if it is something else."
  )


def _relative(file: str, home: objects.Place) -> str:
  """A file below a folder, whether its name begins there or at the root of the disk or bucket."""
  if isinstance(home, objects.Address):
    return posixpath.normpath(file.removeprefix(f"{home}/"))
  return posixpath.normpath(os.path.relpath(file, home) if os.path.isabs(file) else file)
