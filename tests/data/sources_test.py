import logging

import numpy as np
import pytest

from fbjax.data import pipeline, sources, tokenizers
from fbjax.data import video as video_lib

HEADER = "videoid,contentUrl,duration,page_dir,name\n"


def write_clip(path, level=0, frames=12):
  video = np.full((frames, 16, 16, 3), level, np.uint8)
  video_lib.write_mp4(path, video)


@pytest.fixture
def webvid(tmp_path):
  for i, name in enumerate(("007", "12")):
    write_clip(tmp_path / "2M_train" / f"{name}.mp4", 100 * i)
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
  for make in (sources.WebVid, sources.Folder):
    with pytest.raises(video_lib.BrokenData, match="no folder at .*nowhere; set data.path"):
      make(tmp_path / "nowhere")
    with pytest.raises(video_lib.BrokenData, match="no path to the data is given"):
      make("")
  with pytest.raises(video_lib.BrokenData, match="no file .*results_2M_val.csv"):
    sources.WebVid(webvid, "val")
  (tmp_path / "empty").mkdir()
  with pytest.raises(video_lib.BrokenData, match="no video files in"):
    sources.Folder(tmp_path / "empty")


def test_strides_are_checked(webvid):
  for strides in (0, (3, 1)):
    with pytest.raises(ValueError, match="strides"):
      sources.WebVid(webvid, strides=strides)


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
    source = sources.Folder(tmp_path)
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
  splits = [sources.Folder(tmp_path, split) for split in ("train", "val")]
  names = [[source.name(i) for i in range(len(source))] for source in splits]
  assert names == [["a.mp4", "b/c.mp4", "value.mp4"], ["val/d.mp4", "val/e/f.mp4"]]
  with caplog.at_level(logging.WARNING):
    assert len(sources.Folder(tmp_path / "b", "val")) == 1
  assert "has no folder val: nothing is held out" in caplog.text


def batches(source, **options):
  return pipeline.Batches(source, tokenizers.Bytes(64), **{"batch_size": 4} | options)


def test_broken_files_are_replaced_in_the_stream(tmp_path, caplog):
  for i in range(3):
    write_clip(tmp_path / f"good{i}.mp4", 100 * i)
  (tmp_path / "empty.mp4").touch()
  write_clip(tmp_path / "short.mp4", frames=3)
  source = sources.Folder(tmp_path, frames=4, size=8)
  with caplog.at_level(logging.WARNING):
    stream = batches(source, batch_size=5)
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
  stream = batches(sources.Folder(tmp_path))
  with pytest.raises(video_lib.BrokenData, match="20 clips in a row are broken; the last: .*empty"):
    next(stream)
  stream.close()


def test_the_real_clips_in_webvids_layout_stream(shared):
  assert len(sources.WebVid(shared / "videos/webvid")) == 25
  source = sources.WebVid(shared / "videos/webvid", "val", frames=8, size=32)
  stream = batches(source, batch_size=8)
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
  stream = batches(source, batch_size=17)
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
