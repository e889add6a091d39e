"""What is wrong with a video file and its caption, from decoding all of it once.

missing       there is no such file
undecodable   it cannot be opened, or shows no frame
truncated     it breaks off
short         it has fewer frames than a clip needs
static        nothing in it moves
letterboxed   it has black bars at two opposite sides
cut           it jumps from one scene to another
duplicate     it shows what another file shows, be it encoded anew
caption       the caption is empty, a placeholder, or text that went through a wrong encoding
"""

import io
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from fbjax.data import playback, text
from fbjax.data import video as video_lib

GRID = 32  # cells of a small picture, each way
PRINTED = 8  # small pictures that stand for a clip
MOST_FRAMES = 20_000
STILL = 6  # grey levels of a cell below which nobody sees anything move
ALIKE = 18  # grey levels of the four cells that differ most, below which two clips show the same
BLACK, LIT = 32, 64  # brightness of a bar at most, and of what is between two at least
BAR, EDGE = 0.03, 4  # width of a bar, of a side; pixels in which it ends, where a dark scene fades
# Of a cut: grey levels from frame to frame, in those of the median, and of the frames around it.
JUMP, TIMES, APART = 20, 6, 3
PLACEHOLDERS = ("nan", "none", "null", "n/a", "na", "undefined", "untitled", "caption", "-")
# UTF-8 read as Latin-1, what could not be read, markup, and control characters.
GARBLED = re.compile(r"Ã[\x80-\xbf]|â€|Â[\xa0-\xbf]|\ufffd")
MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|&(amp|lt|gt|quot|nbsp|#\d+);")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Look(NamedTuple):
  """What decoding one file found.

  faults: a sentence for each fault, by the names of the module's table. frames: how many were
  decoded. picture: a thumbnail of one frame as a JPEG, since those of all clips are held. small:
  `PRINTED` frames spread over the clip, grey, `GRID` x `GRID`. Both are None where no frame was
  decoded. seconds: wall time of decoding.
  """

  faults: dict[str, str]
  frames: int
  picture: bytes | None
  small: UInt8[np.ndarray, "n g g"] | None
  seconds: float


def look(path: video_lib.Path, least: int, data: bytes | None = None) -> Look:
  """Decodes all frames of a file, at most the first `MOST_FRAMES`, and lists its faults.

  Fewer than `least` frames are one. `data` is the content of a file that is not on disk.
  """
  began, cells, bars, shown = time.perf_counter(), [], _Bars(), None
  faults: dict[str, str] = {}
  try:
    with playback.opened(path, data) as video:
      playback.read_index(video)
    for picture in playback.from_start(path, data, range(MOST_FRAMES)):
      grey = PIL.Image.fromarray(np.ascontiguousarray(picture.image)).convert("L")
      cells.append(np.asarray(grey.resize((GRID, GRID), PIL.Image.Resampling.BOX)))
      bars.add(np.asarray(grey))
      if not len(cells) & (len(cells) - 1):  # the last one lies in the second half
        shown = _thumbnail(picture)
  except playback.Unplayable as error:
    faults[_kind(str(error), len(cells))] = f"{error}"
  if not cells:
    faults = faults or {"undecodable": "has no frames"}
    return Look(faults, 0, None, None, time.perf_counter() - began)
  small = np.stack(cells)
  if len(small) < least:
    faults["short"] = f"has {len(small)} frames, fewer than the {least} of a clip"
  if told := bars.told():
    faults["letterboxed"] = told
  if len(small) > 1:
    faults |= _of_motion(small)
  seconds = time.perf_counter() - began
  places = np.linspace(0, len(small) - 1, PRINTED).round().astype(int)
  return Look(faults, len(small), _jpeg(shown), small[places], seconds)


def of_caption(caption: str) -> str | None:
  """What is wrong with a caption, if anything."""
  words = caption.strip()
  if not words:
    return "is empty"
  if words.lower() in PLACEHOLDERS:
    return f"is {words!r}, a placeholder"
  for pattern, told in (
    (GARBLED, "went through a wrong encoding"),
    (MARKUP, "has markup"),
    (CONTROL, "has control characters"),
  ):
    if found := pattern.search(caption):
      return f"{told}: {text.printable(caption[max(found.start() - 10, 0) :][:30])!r}"
  return None


def duplicates(looks: Sequence[Look]) -> dict[int, int]:
  """Which looks show what an earlier one shows: place -> place of the earlier one.

  Only files of about the same length and brightness are compared, so that a hundred thousand
  take minutes.
  """
  shown = np.array([i for i, one in enumerate(looks) if one.small is not None], int)
  if not len(shown):
    return {}
  half = GRID // 2
  # Where two show the same, so do the quarters of their pictures: most pairs are told apart by these.
  quarters = np.stack(
    [looks[i].small.reshape(-1, 2, half, 2, half).mean((2, 4), np.float32).ravel() for i in shown]
  )
  order = np.argsort(quarters.mean(1), kind="stable")
  shown, quarters = shown[order], quarters[order]
  brightness, frames = quarters.mean(1), np.array([looks[i].frames for i in shown])
  ends = np.searchsorted(brightness, brightness + 1.5, "right")
  found: dict[int, int] = {}
  for at, i in enumerate(shown.tolist()):
    near = slice(at + 1, ends[at])
    apart = np.abs(quarters[near] - quarters[at]).max(1)
    maybe = (apart <= ALIKE) & (np.abs(frames[near] - frames[at]) <= 1)
    for j in shown[near][maybe].tolist():
      first, second = sorted((i, j))
      if second not in found and _alike(looks[first], looks[second]):
        found[second] = found.get(first, first)
  return found


def _alike(a: Look, b: Look) -> bool:
  apart = (a.small.astype(np.float32) - b.small).reshape(-1, GRID // 2, 2, GRID // 2, 2)
  return bool(np.abs(apart.mean((2, 4))).max() < ALIKE)


def _kind(told: str, frames: int) -> str:
  if "does not exist" in told:
    return "missing"
  return "truncated" if frames or "breaks off" in told else "undecodable"


def _of_motion(small: UInt8[np.ndarray, "t g g"]) -> dict[str, str]:
  grey = small.astype(np.float32)
  if np.abs(grey - grey[0]).max() < STILL:
    return {"static": "nothing in it moves"}
  change = np.abs(np.diff(grey, axis=0)).mean((1, 2))
  around = [np.delete(change[max(i - 2, 0) : i + 3], min(i, 2)) for i in range(len(change))]
  jumps = [
    i + 1
    for i in np.flatnonzero(change > max(JUMP, TIMES * float(np.median(change))))
    # A hand before the camera changes as much, but not from one frame to the next alone.
    if change[i] > APART * around[i].max(initial=0)
  ]
  if not jumps:
    return {}
  return {"cut": f"another scene begins at frame {', '.join(map(str, jumps[:5]))}"}


class _Bars:
  """The brightest pixel of every row and column over all frames of one size."""

  def __init__(self):
    self._rows: np.ndarray | None = None
    self._columns: np.ndarray | None = None

  def add(self, grey: UInt8[np.ndarray, "h w"]) -> None:
    rows, columns = grey.max(1), grey.max(0)
    if self._rows is not None and grey.shape == (len(self._rows), len(self._columns)):
      rows, columns = np.maximum(rows, self._rows), np.maximum(columns, self._columns)
    self._rows, self._columns = rows, columns

  def told(self) -> str | None:
    for lines, sides in ((self._rows, "top and bottom"), (self._columns, "left and right")):
      lit = np.flatnonzero(lines > BLACK)
      if not len(lit) or lines.max() < LIT:
        continue
      first, last = int(lit[0]), len(lines) - 1 - int(lit[-1])
      edges = lines[first : first + EDGE].max(), lines[::-1][last : last + EDGE].max()
      if min(first, last) >= BAR * len(lines) and min(edges) > LIT:
        return f"has black bars at {sides}, of {first} and {last} of {len(lines)} pixels"
    return None


def _thumbnail(picture: playback.Picture, side: int = 160) -> UInt8[np.ndarray, "h w 3"]:
  height, width = picture.image.shape[:2]
  scale = side / max(height, width * picture.aspect)
  size = (max(1, round(height * scale)), max(1, round(width * picture.aspect * scale)))
  return video_lib.resize_crop(picture.image, size, picture.aspect)


def _jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
  file = io.BytesIO()
  PIL.Image.fromarray(picture).save(file, "JPEG", quality=80)
  return file.getvalue()
