import json
import logging
import os

import pytest
from data import clips

from fbjax.data import folder as folders
from fbjax.data import video as video_lib


def test_links_to_folders_and_files_are_followed(tmp_path):
  clips.touch(tmp_path, "store/a.mp4", "store/deep/b.mp4", "root/own.mp4", "root/sub/c.mp4")
  root = tmp_path / "root"
  (root / "linked").symlink_to(tmp_path / "store")
  (root / "sub/relative").symlink_to("../../store/deep")
  (root / "file.mp4").symlink_to(tmp_path / "store/a.mp4")
  (root / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
  (root / "gone").symlink_to(tmp_path / "nowhere")
  names = ["file.mp4", "gone.mp4", "linked/a.mp4", "linked/deep/b.mp4", "own.mp4", "sub/c.mp4"]
  assert clips.listed(folders.Folder(root)) == names
  for i in (0, 2, 3, 4, 5):
    assert folders.Folder(root).path(i).is_file()
  # Also where there is nothing but a link, and where the data set is one.
  (tmp_path / "only").mkdir()
  (tmp_path / "only/linked").symlink_to(tmp_path / "store")
  (tmp_path / "alias").symlink_to(tmp_path / "only")
  assert clips.listed(folders.Folder(tmp_path / "alias")) == ["linked/a.mp4", "linked/deep/b.mp4"]


def test_links_in_circles_end(tmp_path):
  """Each folder is seen once, by its own path where it has one below the data set."""
  clips.touch(tmp_path, *(f"{i}/{i}.mp4" for i in range(12)))
  for i in range(12):
    for j in range(12):
      (tmp_path / f"{i}/a{j}").symlink_to(tmp_path / f"{j}")
  (tmp_path / "0/up").symlink_to(tmp_path)
  (tmp_path / "00").symlink_to("5")
  (tmp_path / "0/self").symlink_to("self")
  (tmp_path / "self.mp4").symlink_to("self.mp4")
  found = clips.listed(folders.Folder(tmp_path))
  assert found == sorted([f"{i}/{i}.mp4" for i in range(12)] + ["self.mp4"])


def test_a_folder_val_may_be_a_link_and_is_held_out_wherever_it_leads(tmp_path):
  clips.touch(tmp_path, "elsewhere/a.mp4", "root/t.mp4", "root/store/b.mp4")
  (tmp_path / "root/val").symlink_to(tmp_path / "elsewhere")
  splits = [clips.listed(folders.Folder(tmp_path / "root", split)) for split in ("train", "val")]
  assert splits == [["store/b.mp4", "t.mp4"], ["val/a.mp4"]]
  (tmp_path / "root/val").unlink()
  (tmp_path / "root/val").symlink_to("store")
  splits = [clips.listed(folders.Folder(tmp_path / "root", split)) for split in ("train", "val")]
  assert splits == [["t.mp4"], ["val/b.mp4"]]


def test_what_is_hidden_or_thrown_away_is_left_out_and_a_folder_is_no_video(tmp_path):
  root = tmp_path / ".cache/data"  # Above the data set, names mean nothing.
  clips.touch(
    root,
    *("a.mp4", "movie.mp4/scene-001.mp4", "movie.mp4/empty.mkv/no video"),
    *(".b.mp4", "._a.mp4", ".ipynb_checkpoints/a-checkpoint.mp4", ".Trash-0/files/old.mp4"),
    *("@eaDir/a.mp4/SYNOVIDEO.mp4", "sub/#recycle/c.mp4", "__MACOSX/d.mp4", "$RECYCLE.BIN/e.mp4"),
  )
  (root / "linked").symlink_to(root / ".Trash-0")
  assert clips.listed(folders.Folder(root)) == [
    "a.mp4",
    "linked/files/old.mp4",
    "movie.mp4/scene-001.mp4",
  ]


def test_captions_name_files_however_their_path_is_spelt(tmp_path):
  clips.touch(tmp_path, "a.mp4", "b/c.mp4")
  (tmp_path / "captions.csv").write_text("file,caption\n./a.mp4,one\nb//c.mp4,two\n")
  source = folders.Folder(tmp_path)
  assert [source.caption(i) for i in range(2)] == ["one", "two"]


def test_two_captions_of_a_file_are_one_too_many(tmp_path):
  clips.touch(tmp_path, "a.mp4")
  (tmp_path / "captions.csv").write_text("File,Caption\na.mp4,one\n./a.mp4,two\n")
  with pytest.raises(video_lib.BrokenData, match="captions.csv, line 3: ./a.mp4 a second time"):
    folders.Folder(tmp_path)


def test_an_empty_caption_is_told(tmp_path, caplog):
  clips.touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
  (tmp_path / "a.txt").write_text("\n")
  (tmp_path / "b.txt").touch()
  with caplog.at_level(logging.WARNING):
    folders.Folder(tmp_path)
  assert f"2 clips have an empty caption, such as {tmp_path}/a.mp4" in caplog.text


def test_what_lies_beside_a_video_is_read_only_if_it_is_a_file(tmp_path):
  clips.touch(tmp_path, "a_cat.mp4", "a_dog.mp4", "b.mp4")
  (tmp_path / "a_cat.txt").mkdir()
  os.mkfifo(tmp_path / "a_dog.txt")
  (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfa\x0bfox\xe2\x80\xa8runs\r\n")
  source = folders.Folder(tmp_path)
  assert [source.caption(i) for i in range(3)] == ["a cat", "a dog", "a fox runs"]


LATIN = os.fsdecode(b"caf\xe9 film.mp4")


def test_a_file_name_that_is_no_utf8_is_read_named_and_replaced_like_any_other(tmp_path, caplog):
  clips.write_clip(tmp_path / "ok.mp4")
  (tmp_path / LATIN).touch()
  source = folders.Folder(tmp_path, frames=4, size=8)
  assert clips.listed(source) == [LATIN, "ok.mp4"] and source.caption(0) == "caf film"
  assert len(source.digest()) == 16
  with caplog.at_level(logging.WARNING):
    batch = next(clips.batches(source))
  assert batch["replaced"].sum() == 2 and set(batch["index"]) == {1}
  assert r"caf\udce9 film.mp4 is empty. Another clip takes its place." in caplog.text
  (tmp_path / LATIN).write_bytes((tmp_path / "ok.mp4").read_bytes())
  assert not next(clips.batches(source))["replaced"].any()


def test_folder_finds_files_and_captions_everywhere(tmp_path, caplog):
  for name in (
    "b/x_cat-runs_01.MP4",
    "a.mp4",
    "b/c/z.mkv",
    "b/notes.pdf",
    "._a.mp4",
    "q.webm",
    "12.avi",
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  (tmp_path / "captions.csv").write_text(
    'file,caption,more\na.mp4,"from, the table",1\nold.mp4,x,\n'
  )
  (tmp_path / "a.txt").write_text("not this")
  (tmp_path / "q.txt").write_text("from\nbeside \n")
  with caplog.at_level(logging.WARNING):
    source = folders.Folder(tmp_path)
  assert {source.name(i): source.caption(i) for i in range(len(source))} == {
    "12.avi": "",
    "a.mp4": "from, the table",
    "b/c/z.mkv": "z",
    "b/x_cat-runs_01.MP4": "x cat runs",
    "q.webm": "from beside",
  }
  assert "names 1 files that are not there, such as old.mp4" in caplog.text


def test_a_folder_val_is_held_out(tmp_path, caplog):
  for name in ("a.mp4", "b/c.mp4", "val/d.mp4", "val/e/f.mp4", "value.mp4"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  splits = [folders.Folder(tmp_path, split) for split in ("train", "val")]
  names = [[source.name(i) for i in range(len(source))] for source in splits]
  assert names == [["a.mp4", "b/c.mp4", "value.mp4"], ["val/d.mp4", "val/e/f.mp4"]]
  with caplog.at_level(logging.WARNING):
    assert len(folders.Folder(tmp_path / "b", "val")) == 1
  assert "has no folder val: nothing is held out" in caplog.text


def test_broken_files_are_replaced_in_the_stream(tmp_path, caplog):
  for i in range(3):
    clips.write_clip(tmp_path / f"good{i}.mp4", 100 * i)
  (tmp_path / "empty.mp4").touch()
  clips.write_clip(tmp_path / "short.mp4", frames=3)
  source = folders.Folder(tmp_path, frames=4, size=8)
  with caplog.at_level(logging.WARNING):
    stream = clips.batches(source, batch_size=5)
    seen = [next(stream) for _ in range(6)]
    stream.close()
  names = {source.name(int(i)) for batch in seen for i in batch["index"]}
  assert names == {"good0.mp4", "good1.mp4", "good2.mp4"}
  assert sum(b["replaced"].sum() for b in seen) == stream.replaced == 12
  assert caplog.text.count("empty.mp4 is empty. Another") == 1
  assert caplog.text.count("short.mp4 has 3 frames") == 1


def test_a_folder_in_which_nothing_decodes_stops_with_one_sentence(tmp_path):
  for name in "abc":
    (tmp_path / f"{name}.mp4").touch()
  stream = clips.batches(folders.Folder(tmp_path))
  with pytest.raises(video_lib.BrokenData, match="20 clips in a row are broken; the last: .*empty"):
    next(stream)
  stream.close()


def test_a_folder_with_hugging_faces_metadata_has_its_captions(tmp_path):
  for name in ("a.mp4", "sub/b.mp4", "c d.mp4"):
    clips.write_clip(tmp_path / name)
  rows = [
    {"file_name": "a.mp4", "text": "a cat", "fps": 8},
    {"file_name": "./sub/b.mp4", "caption": "ein Café"},
  ]
  table = tmp_path / "metadata.jsonl"
  table.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
  expected = ["a cat", "c d", "ein Café"]
  source = folders.Folder(tmp_path)
  assert [source.caption(i) for i in range(3)] == expected
  table.unlink()
  (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,a cat\nsub/b.mp4,ein Café\n")
  source = folders.Folder(tmp_path)
  assert [source.caption(i) for i in range(3)] == expected
  for line, words in (
    ("{", "metadata.jsonl, line 2: no valid json"),
    ('{"file_name": 3, "text": "x"}', "line 2: expected an object with the texts 'file_name'"),
    ('["a"]', "line 2: expected an object"),
    ('{"file_name": "a.mp4"}', "and one of caption, text, prompt"),
  ):
    table.write_text(f"{json.dumps(rows[0])}\n{line}\n")
    with pytest.raises(video_lib.BrokenData, match=words):
      folders.Folder(tmp_path)
