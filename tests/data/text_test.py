import json
import os

import pytest

from fbjax.data import text
from fbjax.data import video as video_lib


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def test_only_line_ends_end_lines(tmp_path):
  """What else separates lines, somewhere, comes with text pasted from slides and web pages."""
  others = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"
  file = write(tmp_path / "a.txt", f"\ufeff{others}\nb\r\nc\rd\n\n \r\n\x0b\u2028\n  e \n")
  assert text.lines(file) == [others, "b", "c", "d", "e"]


@pytest.mark.parametrize(
  "content, words",
  [
    (b"a\ncaf\xe9\n", "is not UTF-8 (byte 0xe9 at 5); save it as UTF-8"),
    ("a\n".encode("utf-16"), "is not UTF-8 (byte 0xff at 0); save it as UTF-8"),
    (b"a\r\nb\0\0\0", "line 2: a NUL byte; the file is damaged or no text"),
  ],
)
def test_what_is_no_text_ends_in_one_sentence(tmp_path, content, words):
  file = write(tmp_path / "a.txt", content)
  with pytest.raises(video_lib.BrokenData) as e:
    text.read(file)
  assert str(e.value).startswith(str(file)) and words in str(e.value)


def test_what_is_no_file_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "fifo.txt")
  (tmp_path / "folder.txt").mkdir()
  for name in ("fifo.txt", "folder.txt", "nothing.txt"):
    with pytest.raises(video_lib.BrokenData, match=f"no file .*{name}"):
      text.read(tmp_path / name)


def test_a_table_gives_the_columns_that_are_asked_for(tmp_path):
  file = write(tmp_path / "a.csv", '\ufeffx, y ,z\r\n1,"two, and\r\nmore",3\r\n\r\n4,5\r\n')
  assert text.table(file, ("y", "x"), ("z", "w")) == [
    ("two, and\nmore", "1", "3", ""),
    ("5", "4", "", ""),
  ]


@pytest.mark.parametrize(
  "content, words",
  [
    ("file,caption\na.mp4,\0\0\0\0", "line 2: a NUL byte"),
    (
      "file,caption\na.mp4," + "x" * 200_000,
      "line 2: field larger than field limit (131072); a quote may never close",
    ),
    ('file,caption\na.mp4,"x\n' + "y\n" * 100_000, "a quote may never close"),
    ("caption\nx\n", "has no column file; it has caption"),
  ],
)
def test_a_damaged_table_ends_in_one_sentence(tmp_path, content, words):
  file = write(tmp_path / "captions.csv", content)
  with pytest.raises(video_lib.BrokenData) as e:
    text.table(file, ("file", "caption"))
  assert str(file) in str(e.value) and words in str(e.value) and "\n" not in str(e.value)


def test_records_are_read_by_key_and_type(tmp_path):
  content = {"a": [{"x": 1, "y": "z", "more": None}], "b": []}
  file = write(tmp_path / "a.json", json.dumps(content))
  assert text.records(file, a={"y": str, "x": int}, b={"x": int}) == [[("z", 1)], []]


@pytest.mark.parametrize(
  "content, words",
  [
    ("", "is no valid json"),
    ('{"a": [', "is no valid json"),
    ("[" * 100_000, "is no valid json"),
    ('{"a": [{"x": ' + "1" * 5000 + "}]}", "is no valid json"),
    ("[]", "has no list 'a'"),
    ("{}", "has no list 'a'"),
    ('{"a": {"x": 1}}', "has no list 'a'"),
    ('{"a": [1]}', "a[0] has no 'x' of type int"),
    ('{"a": [{"x": 1}, {}]}', "a[1] has no 'x' of type int"),
    ('{"a": [{"x": true}]}', "a[0] has no 'x' of type int"),
    ('{"a": [{"x": null}]}', "a[0] has no 'x' of type int"),
  ],
)
def test_json_of_another_form_ends_in_one_sentence(tmp_path, content, words):
  file = write(tmp_path / "a.json", content)
  with pytest.raises(video_lib.BrokenData) as e:
    text.records(file, a={"x": int})
  assert str(file) in str(e.value) and words in str(e.value) and "\n" not in str(e.value)


def test_clean_text_can_be_encoded_and_is_else_unchanged():
  for given, want in {
    "a \ud83d cat": "a \ufffd cat",
    "caf\udce9": "caf\ufffd",
    "\ud83d\ude00": "\U0001f600",  # Two halves that were escaped one by one.
    "\ufeffé 猫 \U0001f600\0": "\ufeffé 猫 \U0001f600\0",
    "": "",
  }.items():
    assert text.clean(given) == want
    assert text.clean(given).encode().decode() == want


def test_printable_text_stays_on_one_line():
  assert text.printable("a\nb\r\x1b[2J\u2028\udce9\0") == r"a\nb\r\x1b[2J\u2028\udce9\x00"
  assert text.printable("é 猫 \U0001f600 \\n") == "é 猫 \U0001f600 \\n"


def test_columns_are_found_in_upper_and_lower_case(tmp_path):
  file = write(tmp_path / "a.csv", "File,Caption\na.mp4,One\n")
  assert text.table(file, ("file", "caption")) == [("a.mp4", "One")]


def test_a_row_that_comes_twice_is_named_with_both_lines(tmp_path):
  file = write(tmp_path / "a.csv", "file,caption\na.mp4,one\nb.mp4,two\nA.mp4,three\n")
  assert len(text.table(file, ("file", "caption"), unique=str)) == 3
  with pytest.raises(
    video_lib.BrokenData, match=f"{file}, line 4: A.mp4 a second time, after line 2"
  ):
    text.table(file, ("file", "caption"), unique=str.lower)
