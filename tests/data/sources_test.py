import json
import logging
import os
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from data import clips

from fbjax import errors
from fbjax.data import folder as folders
from fbjax.data import sources, synthetic, transforms
from fbjax.data import video as video_lib

HEADER = "videoid,contentUrl,duration,page_dir,name\n"


@pytest.fixture
def webvid(tmp_path):
  for i, name in enumerate(("007", "12")):
    clips.write_clip(tmp_path / "2M_train" / f"{name}.mp4", 100 * i)
  (tmp_path / "results_2M_train.csv").write_text(HEADER + "007,u,,d,a cat\n12,,PT1S,d,a dog\n")
  return tmp_path


def test_webvid_pairs_files_and_captions(webvid):
  """Ids keep their zeros; an empty field of a column that is not used drops nothing."""
  source = sources.WebVid(webvid, frames=4, size=16, strides=(1, 2))
  assert [(source.name(i), source.caption(i)) for i in range(len(source))] == [
    ("007.mp4", "a cat"),
    ("12.mp4", "a dog"),
  ]
  clip = source.read(1, np.random.default_rng(0))
  assert clip.video.shape == (4, 16, 16, 3) and abs(clip.video.mean() - 100) < 5
  assert clip.caption == "a dog" and clip.stride in (1, 2) and clip.label == -1


def test_rows_without_id_or_caption_are_dropped_and_counted(webvid, caplog):
  table = webvid / "results_2M_train.csv"
  table.write_text(
    "\ufeff"
    + table.read_text()
    + '9,u,d,p,\n,u,d,p,ghost\n9,u\n\n8,u,d,p,"None, or\ntwo"\n7,u,d,p,x\u2028y\n'
  )
  with caplog.at_level(logging.WARNING):
    source = sources.WebVid(webvid)
  assert [source.caption(i) for i in range(2, len(source))] == ["None, or\ntwo", "x\u2028y"]
  assert "dropped 3 rows without videoid or name" in caplog.text


@pytest.mark.parametrize(
  "text, words",
  [
    (HEADER + '1,u,d,p,"never closed\n2,u,d,p,x\n', "line 3: unexpected end of data; a quote may"),
    (HEADER + "1,u,d,p,cats, dogs, birds\n", "line 2: 7 fields where the header has 5"),
    ("videoid,caption\n1,x\n", "has no column name; it has videoid, caption"),
    ("", "has no column videoid and no column name; it has nothing"),
    (HEADER, "has no row with videoid and name"),
    (HEADER + "1,u,d,p,caf\u00e9\n", "is not UTF-8 (byte 0xe9 at 53)"),
  ],
)
def test_bad_tables_end_in_one_sentence(webvid, text, words):
  (webvid / "results_2M_train.csv").write_bytes(text.encode("latin-1"))
  with pytest.raises(video_lib.BrokenData) as e:
    sources.WebVid(webvid)
  assert words in str(e.value) and "results_2M_train.csv" in str(e.value)
  assert "\n" not in str(e.value)


def test_a_missing_path_ends_in_one_sentence(tmp_path, webvid):
  for make in (sources.WebVid, folders.Folder):
    with pytest.raises(video_lib.BrokenData, match="no folder at .*nowhere; set config.data.path"):
      make(tmp_path / "nowhere")
    with pytest.raises(video_lib.BrokenData, match="no path to the data is given"):
      make("")
  with pytest.raises(video_lib.BrokenData, match="no file .*results_2M_val.csv"):
    sources.WebVid(webvid, "val")
  (tmp_path / "empty").mkdir()
  with pytest.raises(video_lib.BrokenData, match="no video files in"):
    folders.Folder(tmp_path / "empty")


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(frames=0), "config.data.frames is 0"),
    (dict(frames=-8), "config.data.frames is -8"),
    (dict(size=0), "config.data.size is 0"),
    (dict(size=(64, -1)), "config.data.size is (64, -1)"),
    (dict(size=(64, 64, 3)), "config.data.size is (64, 64, 3)"),
    (dict(size=()), "config.data.size is ()"),
    (dict(strides=0), "config.data.strides is 0"),
    (dict(strides=(3, 1)), "config.data.strides is (3, 1); expected the least before the most."),
  ],
)
def test_numbers_that_make_no_sense_are_refused_by_their_key(webvid, options, words):
  for make in (lambda **o: sources.WebVid(webvid, **o), lambda **o: folders.Folder(webvid, **o)):
    with pytest.raises(errors.UserError) as e:
      make(**options)
    assert words in str(e.value)


def test_a_source_without_clips_is_refused(tmp_path):
  with pytest.raises(video_lib.BrokenData, match="lists no clips; set config.data.path to another"):
    sources.Videos(tmp_path, [])


# Where what can lie.


@pytest.mark.parametrize("file", ["../secret.mp4", "/secret.mp4", "a/../../secret.mp4", "a\0.mp4"])
def test_a_name_that_leads_out_of_the_data_set_is_a_broken_clip(tmp_path, file):
  clips.write_clip(tmp_path / "secret.mp4")
  (tmp_path / "root").mkdir()
  file = file if file != "/secret.mp4" else str(tmp_path / "secret.mp4")
  source = sources.Videos(tmp_path / "root", [sources.Entry(file, "")], frames=4, size=8)
  with pytest.raises(video_lib.BrokenClip, match="which is no file below it"):
    source.read(0, np.random.default_rng(0))


# Where WebVid's videos lie.


def test_webvid_is_found_flat_and_in_the_folders_of_its_download_script(tmp_path):
  rows = "1,u,d,p1,one\n2,u,d,p1,two\n3,u,d,p2,three\n4,u,d,,four\n5,u,d,gone,five\n"
  (tmp_path / "results_2M_train.csv").write_text(HEADER + rows)
  clips.touch(tmp_path, "videos/p1/1.mp4", "videos/p1/2.mp4", "videos/p2/x.mp4", "videos/3.mp4")
  source = sources.WebVid(tmp_path)
  assert source.root == tmp_path / "videos"
  # A row whose video is nowhere is named by the place where it would be looked for first.
  assert clips.listed(source) == ["p1/1.mp4", "p1/2.mp4", "3.mp4", "4.mp4", "5.mp4"]
  (tmp_path / "2M_train").symlink_to("videos")
  assert sources.WebVid(tmp_path).root == tmp_path / "2M_train"
  assert clips.listed(sources.WebVid(tmp_path)) == clips.listed(source)


def test_webvid_is_looked_for_once_not_for_each_clip(tmp_path, monkeypatch):
  rows = "".join(f"{i},u,d,p{i % 3},x\n" for i in range(500))
  (tmp_path / "results_2M_train.csv").write_text(HEADER + rows)
  clips.touch(tmp_path, *(f"2M_train/p{i}/{i}.mp4" for i in range(3)))
  looks = []
  for name in ("stat", "lstat", "listdir", "scandir"):
    look = getattr(os, name)
    monkeypatch.setattr(os, name, lambda *a, f=look, **k: looks.append(a) or f(*a, **k))
  assert clips.listed(sources.WebVid(tmp_path))[:3] == ["p0/0.mp4", "p1/1.mp4", "p2/2.mp4"]
  assert len(looks) < 20


# What a run would train on.


def test_the_digest_tells_other_data_and_nothing_else(webvid, tmp_path):
  def digest(path=webvid, **options):
    return sources.WebVid(path, **options).digest()

  table = webvid / "results_2M_train.csv"
  rows = table.read_text()
  first = digest()
  assert re.fullmatch("[0-9a-f]{16}", first) and digest() == first
  assert digest(frames=4, size=(8, 16), strides=2) == first
  (webvid / "2M_train/007.mp4").unlink()
  assert digest() == first
  moved = tmp_path / "elsewhere"
  moved.mkdir()
  shutil.copytree(webvid / "2M_train", moved / "2M_train")
  shutil.copy(table, moved)
  assert digest(moved) == first
  (moved / "2M_train").rename(moved / "d")
  (moved / "2M_train").mkdir()
  (moved / "d").rename(moved / "2M_train/d")
  assert sources.WebVid(moved).name(1) == "d/12.mp4" and digest(moved) == first
  header, cat, dog = rows.splitlines(keepends=True)
  others = {
    "cut": header + cat,
    "caption": header + cat + dog.replace("dog", "dot"),
    "order": header + dog + cat,
    "file": header + cat.replace("007", "7") + dog,
    "one more": rows + dog,
  }
  seen = {first}
  for name, changed in others.items():
    table.write_text(changed)
    seen.add(digest())
    assert len(seen) == 2 + list(others).index(name), name


def test_the_digest_tells_labels_splits_and_seeds(tmp_path):
  entries = [sources.Entry("a.mp4", "x", 1), sources.Entry("b.mp4", "x", 2)]
  labels = [entries, [entries[0], entries[1]._replace(label=3)], entries[:1]]
  assert len({sources.Videos(tmp_path, found).digest() for found in labels}) == 3
  made = [synthetic.Shapes(**o).digest() for o in ({}, dict(frames=4, size=(16, 24)))]
  made += [synthetic.Shapes(**o).digest() for o in (dict(seed=1), dict(split="val"), dict(clips=9))]
  made += [synthetic.Shapes(motions=("left",)).digest()]
  assert made[0] == made[1] and len(set(made)) == 5


def test_a_digest_of_many_rows_holds_few_of_them():
  rows = ((f"{i}.mp4", f"caption {i}", -1) for i in range(40_000))
  tracemalloc.start()
  transforms.digest(rows)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 5e6


def test_the_real_clips_in_webvids_layout_stream(shared):
  assert len(sources.WebVid(shared / "videos/webvid")) == 25
  source = sources.WebVid(shared / "videos/webvid", "val", frames=8, size=32)
  stream = clips.batches(source, batch_size=8)
  batch = next(stream)
  stream.close()
  assert sorted(batch["index"]) == list(range(8)) and not batch["replaced"].any()
  assert len(set(batch["stride"])) > 2
  assert (batch["video"].reshape(8, -1).std(1) > 10).all()


def test_the_corrupt_tables_have_a_sensible_end(shared, tmp_path):
  corrupt = shared / "videos/corrupt"
  (tmp_path / "2M_train").symlink_to(corrupt)

  def open_table(name):
    (tmp_path / "results_2M_train.csv").write_bytes((corrupt / name).read_bytes())
    return sources.WebVid(tmp_path, frames=8, size=16)

  for name, words in {
    "results_bad_quoting.csv": "a quote may never close",
    "results_extra_columns.csv": "7 fields where the header has 5",
    "results_latin1.csv": "is not UTF-8",
  }.items():
    with pytest.raises(video_lib.BrokenData, match=words):
      open_table(name)
  assert len(open_table("results_missing_file.csv")) == 3
  source = open_table("results_bad_rows.csv")
  assert len(source) == 17
  stream = clips.batches(source, batch_size=17)
  batch = next(stream)
  stream.close()
  bad = {"audio_only", "five_frames", "text", "truncated", "truncated_faststart", "zero_byte"}
  bad = {f"{name}.mp4" for name in bad | {"404404404"}}
  assert batch["replaced"].sum() == sum(source.name(i) in bad for i in range(17))
  assert not {source.name(int(i)) for i in batch["index"]} & bad


def test_ucf101_keeps_its_official_lists_apart(shared):
  path = shared / "videos/ucf101"
  train, val = (sources.UCF101(path, split, frames=8, size=32) for split in ("train", "val"))
  assert (len(train), len(val)) == (14, 6)
  assert not {train.name(i) for i in range(14)} & {val.name(i) for i in range(6)}
  assert train.classes[0] == "CricketShot"
  for source in (train, val):
    for i in range(len(source)):
      assert source.entries[i].label == source.classes.index(source.name(i).split("/")[0])
  clip = train.read(0, np.random.default_rng(0))
  assert clip.video.shape == (8, 32, 32, 3) and clip.stride == 3
  assert clip.caption == "flipping pancake" and clip.label == 1


def test_ucf101_in_its_published_setting_trains_on_all_clips(shared):
  path = shared / "videos/ucf101"
  train, val = (sources.UCF101(path, s, protocol="all") for s in ("train", "val"))
  assert len(train) == len(val) == 20
  with pytest.raises(ValueError, match="data.protocol is 'mine'"):
    sources.UCF101(path, protocol="mine")


def test_class_names_become_words():
  assert sources._words("PlayingGuitar") == "playing guitar"
  assert sources._words("YoYo") == "yo yo"
  assert sources._words("UnevenBars") == "uneven bars"


def test_msrvtt_takes_one_caption_a_clip_fixed_by_the_seed(shared):
  path = shared / "videos/msrvtt"
  one, again, other = (sources.MSRVTT(path, "val", seed=s, frames=8, size=32) for s in (0, 0, 1))
  assert len(one) == 8
  captions = [[source.caption(i) for i in range(8)] for source in (one, again, other)]
  assert captions[0] == captions[1] != captions[2]
  assert one.read(0, np.random.default_rng(0)).video.shape == (8, 32, 32, 3)


MSRVTT = {
  "videos": [{"video_id": "b", "split": "train"}, {"video_id": "a", "split": "train"}],
  "sentences": [
    {"sen_id": 0, "video_id": "a", "caption": "a \ud83d cat"},
    {"sen_id": 1, "video_id": "b", "caption": "a dog"},
  ],
}


@pytest.fixture
def msrvtt(tmp_path):
  """A function that writes MSR-VTT's layout with some json in its place."""
  for name in "ab":
    clips.write_clip(tmp_path / f"videos/{name}.mp4")

  def write(content):
    content = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "train_videodatainfo.json").write_text(content)
    (tmp_path / "._train_videodatainfo.json").write_bytes(b"\0\xff")  # macOS leaves these.
    return tmp_path

  return write


def test_captions_of_json_can_always_be_encoded(msrvtt):
  source = sources.MSRVTT(msrvtt(MSRVTT), frames=4, size=8)
  assert [source.caption(i) for i in range(2)] == ["a \ufffd cat", "a dog"]
  assert not next(clips.batches(source))["replaced"].any()


@pytest.mark.parametrize(
  "content, words",
  [
    ("{", "is no valid json"),
    ([], "has no list 'videos'"),
    ({"videos": MSRVTT["videos"]}, "has no list 'sentences'"),
    (MSRVTT | {"videos": [{"video_id": "a"}]}, "videos[0] has no 'split' of type str"),
    (MSRVTT | {"videos": [{"video_id": 1, "split": "train"}]}, "videos[0] has no 'video_id'"),
    (MSRVTT | {"sentences": [{"video_id": "a"}]}, "sentences[0] has no 'sen_id' of type int"),
    (MSRVTT | {"sentences": []}, "a has no caption"),
    (MSRVTT | {"videos": []}, "lists no clips"),
  ],
)
def test_json_of_another_form_ends_in_one_sentence(msrvtt, content, words):
  with pytest.raises(video_lib.BrokenData) as e:
    sources.MSRVTT(msrvtt(content))
  assert words in str(e.value) and "\n" not in str(e.value)


def test_the_lists_of_ucf101_end_lines_only_where_lines_end(tmp_path):
  lists = tmp_path / "ucfTrainTestlist"
  lists.mkdir()
  (tmp_path / "UCF-101").mkdir()
  (lists / "classInd.txt").write_bytes(b"\xef\xbb\xbf1 YoYo\r2 Bowling\r\n\x0c\r\n")
  (lists / "trainlist01.txt").write_bytes(b"\xef\xbb\xbfYoYo/a.avi 1\rBowling/b.avi\x0c2\n")
  source = sources.UCF101(tmp_path)
  assert [(e.file, e.label) for e in source.entries] == [("Bowling/b.avi", 1), ("YoYo/a.avi", 0)]
  (lists / "trainlist01.txt").write_text("\n")
  with pytest.raises(video_lib.BrokenData, match="lists no clips"):
    sources.UCF101(tmp_path)
  with pytest.raises(errors.UserError, match="data.fold is 0"):
    sources.UCF101(tmp_path, fold=0)
