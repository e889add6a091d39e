"""Text that comes from outside: files, tables, file names, the command line.

Files are UTF-8, with or without a byte order mark; what else they are ends in a BrokenData that
names the file and the place. Lines end with \\n, \\r\\n or \\r and nothing else.
"""

import csv
import io
import json
import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fbjax.data import objects
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)


def read(path: objects.Place) -> str:
  """The text of a file; all its lines end with \\n."""
  if not path.is_file():
    raise video_lib.BrokenData(f"no file {path}; set config.data.path to where the data is.")
  try:
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as e:
    raise video_lib.BrokenData(
      f"{path} is not UTF-8 (byte {e.object[e.start]:#x} at {e.start}); save it as UTF-8."
    ) from None
  except OSError as e:
    raise video_lib.BrokenData(f"{path} cannot be read: {e.strerror}.") from None
  if "\0" in text:
    line = text.count("\n", 0, text.index("\0")) + 1
    raise video_lib.BrokenData(f"{path}, line {line}: a NUL byte; the file is damaged or no text.")
  return text


def lines(path: objects.Place) -> list[str]:
  """The lines of a file that are not blank, without the space around them.

  str.splitlines would also end a line inside a sentence that was pasted with a U+2028, a vertical
  tab or a form feed.
  """
  return [line.strip() for line in read(path).split("\n") if line.strip()]


def header(path: objects.Place) -> list[str]:
  """The names of a csv file's columns, in lower case."""
  try:
    return [name.strip().lower() for name in next(csv.reader(io.StringIO(read(path))), [])]
  except csv.Error as e:
    raise video_lib.BrokenData(f"{path}, line 1: {e}.") from None


def table(
  path: objects.Place,
  columns: Sequence[str],
  optional: Sequence[str] = (),
  unique: Callable[[str], str] | None = None,
) -> list[tuple[str, ...]]:
  """`columns` and then `optional` of every row of a csv file that has all of `columns`, as strings.

  What is missing of `optional` is empty. Says how many rows it drops. Names of columns are taken in
  upper and lower case. Strict where a lenient reader would swallow half a file: on a quote that never
  closes and on rows with more fields than the header.

  Args:
    path: of the file.
    columns: those that every row must have.
    optional: those that a row may lack.
    unique: a function of the first column whose value must not come twice.

  Raises:
    BrokenData: names file and line.
  """
  reader = csv.reader(io.StringIO(read(path), newline=""), strict=True)
  try:
    header = [name.strip().lower() for name in next(reader, [])]
    if missing := [c for c in columns if c not in header]:
      raise video_lib.BrokenData(
        f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(header) or 'nothing'}."
      )
    places = [header.index(c) if c in header else len(header) for c in (*columns, *optional)]
    rows, dropped = [], 0
    seen: dict[str, int] = {}
    for fields in reader:
      if len(fields) > len(header):
        raise video_lib.BrokenData(
          f"{path}, line {reader.line_num}: {len(fields)} fields where the header has {len(header)};"
          " put quotes around text with commas."
        )
      values = tuple(fields[i].strip() if i < len(fields) else "" for i in places)
      if all(values[: len(columns)]):
        if (
          unique
          and (first := seen.setdefault(unique(values[0]), reader.line_num)) != reader.line_num
        ):
          raise video_lib.BrokenData(
            f"{path}, line {reader.line_num}: {values[0]} a second time, after line {first}; leave one."
          )
        rows.append(values)
      elif fields:
        dropped += 1
  except csv.Error as e:
    raise video_lib.BrokenData(
      f"{path}, line {reader.line_num}: {e}; a quote may never close."
    ) from None
  if dropped:
    logger.warning("%s: dropped %d rows without %s.", path, dropped, " or ".join(columns))
  if not rows:
    raise video_lib.BrokenData(f"{path} has no row with {' and '.join(columns)}.")
  return rows


def jsonl(path: objects.Place, key: str, others: Sequence[str]) -> list[tuple[str, str]]:
  """Reads a JSON Lines file: of each object the strings of `key` and the first of `others` in it.

  Raises:
    BrokenData: names file and line.
  """
  rows = []
  for number, line in enumerate(read(path).split("\n"), start=1):
    if not line.strip():
      continue
    try:
      found = json.loads(line)
    except (ValueError, RecursionError) as e:
      raise video_lib.BrokenData(f"{path}, line {number}: no valid json: {e}.") from None
    there = found if isinstance(found, dict) else {}
    other = next((name for name in others if isinstance(there.get(name), str)), None)
    if not isinstance(there.get(key), str) or other is None:
      raise video_lib.BrokenData(
        f"{path}, line {number}: expected an object with the texts {key!r} and one of {', '.join(others)}."
      )
    rows.append((clean(there[key]), clean(there[other]).strip()))
  return rows


def records(path: objects.Place, **lists: Mapping[str, type]) -> list[list[tuple]]:
  """Reads lists of objects at the top level of a JSON file, by name.

  `videos={"video_id": str}` asks for the list "videos" and, of each object in it, the value of
  "video_id", which must be a str. Returns one list of tuples per name asked for.

  Raises:
    BrokenData: for a list or a value that is missing or of another type.
  """
  try:
    found = json.loads(read(path))
  except (ValueError, RecursionError) as e:
    raise video_lib.BrokenData(f"{path} is no valid json: {e}.") from None
  return [_objects(path, found, name, keys) for name, keys in lists.items()]


def _objects(path: objects.Place, found: Any, name: str, keys: Mapping[str, type]) -> list[tuple]:
  objects = found.get(name) if isinstance(found, dict) else None
  if not isinstance(objects, list):
    raise video_lib.BrokenData(f"{path} has no list {name!r}.")
  for i, item in enumerate(objects):
    for key, kind in keys.items():
      if not isinstance(item, dict) or type(item.get(key)) is not kind:
        raise video_lib.BrokenData(f"{path}: {name}[{i}] has no {key!r} of type {kind.__name__}.")
  return [tuple(item[key] for key in keys) for item in objects]


def clean(text: str) -> str:
  """Text that can be encoded: U+FFFD for each lone surrogate.

  json files and file names or arguments in another encoding than UTF-8 bring these.
  """
  return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def printable(text: str) -> str:
  r"""One line for people: control characters and lone surrogates as \n, \x1b, \udce9."""
  kinds = ("Cc", "Cs", "Zl", "Zp")
  return "".join(
    c.encode("unicode_escape").decode() if unicodedata.category(c) in kinds else c for c in text
  )
