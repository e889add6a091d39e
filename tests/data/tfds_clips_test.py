import hashlib
import json
import logging
import os
import pathlib
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from configs import ucf101_bridge
from fbjax import build
from fbjax.data import folder as folders
from fbjax.data import pipeline, sources, tfds_clips, tokenizers
from fbjax.data import video as video_lib

SIZES = dict(frames=4, size=(16, 24), strides=(1, 3))
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def write_clip(path, seed=0, frames=20):
  """A clip in which every frame has a grey level of its own."""
  levels = np.random.default_rng(seed).permutation(256)[:frames, None, None, None]
  video_lib.write_mp4(path, np.broadcast_to(levels, (frames, 16, 24, 3)).astype(np.uint8))


@pytest.fixture
def videos(tmp_path):
  """A folder of three clips to train on and two that are held out."""
  root = tmp_path / "videos"
  for i, name in enumerate(("a.mp4", "b/c d.mp4", "ü.mp4", "val/e.mp4", "val/f.mp4")):
    write_clip(root / name, i)
  (root / "ü.txt").write_text("ein „Ü“,\nund mehr", encoding="utf-8")
  return root


@pytest.fixture
def ucf101(tmp_path):
  """UCF-101's layout with two classes; the last clip of each is held out."""
  root = tmp_path / "ucf"
  lists = root / "ucfTrainTestlist"
  lists.mkdir(parents=True)
  (lists / "classInd.txt").write_text("1 YoYo\r\n2 PlayingGuitar\r\n")
  for fold in (1, 2):
    held = 4 - fold
    names = [f"{c}/v_{c}_g0{g}_c01.avi" for c in ("YoYo", "PlayingGuitar") for g in (1, 2, 3)]
    test = [name for name in names if f"g0{held}" in name]
    (lists / f"testlist0{fold}.txt").write_text("\n".join(test))
    (lists / f"trainlist0{fold}.txt").write_text("\n".join(sorted(set(names) - set(test))))
  for i, name in enumerate(names):
    # The container is told by the content: an mp4 under the name that UCF-101 has.
    write_clip(root / "UCF-101" / name, i)
  return root


def both(make, **options):
  return {split: make(split=split, **options) for split in ("train", "val")}


def assert_same(ours, files, seeds=3):
  """Two sources have the same clips in the same order, whatever is drawn of them."""
  assert len(ours) == len(files) and list(ours.entries) == list(files.entries)
  for i in range(len(files)):
    assert (ours.name(i), ours.caption(i)) == (files.name(i), files.caption(i))
    for seed in range(seeds):
      a, b = (source.read(i, np.random.default_rng(seed)) for source in (ours, files))
      np.testing.assert_array_equal(a.video, b.video)
      assert a[1:] == b[1:]


def test_a_folder_reads_back_as_its_files_do(videos, tmp_path):
  files = both(lambda split: folders.Folder(videos, split, **SIZES))
  folder = tfds_clips.prepare(files, tmp_path / "out")
  for split, source in files.items():
    for path in (tmp_path / "out", folder):
      assert_same(tfds_clips.TFDS(path, split, **SIZES), source)
  captions = [files["train"].caption(i) for i in range(3)]
  assert captions == ["a", "c d", "ein „Ü“, und mehr"]


def test_ucf101_keeps_its_lists_and_the_names_of_its_classes(ucf101, tmp_path):
  for fold in (1, 2):
    files = both(lambda split, fold=fold: sources.UCF101(ucf101, split, fold=fold, **SIZES))
    folder = tfds_clips.prepare(files, tmp_path / f"fold{fold}")
    for split, source in files.items():
      assert_same(tfds_clips.TFDS(folder, split, **SIZES), source)
    label = tfds.builder_from_directory(folder).info.features["label"]
    assert label.names == ["YoYo", "PlayingGuitar"]


def test_the_published_setting_trains_on_every_clip(ucf101, tmp_path):
  official = both(lambda split: sources.UCF101(ucf101, split))
  tfds_clips.prepare(official, tmp_path / "out")
  everything = sources.UCF101(ucf101, protocol="all")
  for split in ("train", "val"):
    ours = tfds_clips.TFDS(tmp_path / "out", split, protocol="all")
    assert sorted(ours.entries) == sorted(everything.entries)
  with pytest.raises(video_lib.BrokenData, match="data.protocol is 'mine'"):
    tfds_clips.TFDS(tmp_path / "out", protocol="mine")


def test_the_config_of_ucf101_takes_it_in_place_of_the_files(ucf101, tmp_path):
  tfds_clips.prepare(both(lambda split: sources.UCF101(ucf101, split)), tmp_path / "out")
  config = ucf101_bridge.get_config()
  config.data.name, config.data.path = "tfds", str(tmp_path / "out")
  assert len(build.make_source(config.to_dict(), "train")) == 6


def test_tfds_reads_the_files_by_itself(videos, tmp_path):
  """Bytes come back as they lie on disk, also with zeros at the end."""
  with open(videos / "a.mp4", "ab") as file:
    file.write(bytes(8))
  tfds_clips.prepare({"train": folders.Folder(videos)}, tmp_path / "out")
  records = tfds.data_source("fbjax_clips", data_dir=tmp_path / "out", split="train")
  for record, name in zip(records, ("a.mp4", "b/c d.mp4", "ü.mp4"), strict=True):
    assert record["id"].decode() == name and record["fps"] == 8 and record["label"] == -1
    assert record["video"] == (videos / name).read_bytes()


def test_order_outlives_shards(videos, tmp_path, monkeypatch):
  """Shards of about one clip each, one of them left empty by its broken file."""
  (videos / "b" / "c d.mp4").write_text("no video")
  monkeypatch.setattr(tfds_clips, "SHARD_BYTES", 600)
  source = folders.Folder(videos, **SIZES)
  folder = tfds_clips.prepare({"train": source}, tmp_path / "out")
  shards = sorted(folder.glob("*.array_record-*"))
  readers = [array_record_module.ArrayRecordReader(str(shard)) for shard in shards]
  assert [reader.num_records() for reader in readers] == [1, 0, 1]
  assert all("group_size:1," in reader.writer_options_string() for reader in readers)
  source.entries = [source.entries[0], source.entries[2]]
  assert_same(tfds_clips.TFDS(folder, **SIZES), source)


def test_shards_are_few_enough_to_stay_open(videos, monkeypatch):
  monkeypatch.setattr(tfds_clips, "SHARD_BYTES", 1)
  for most, shards in ((2, 2), (512, 3)):
    monkeypatch.setattr(tfds_clips, "MOST_SHARDS", most)
    assert len(tfds_clips._Split("train", folders.Folder(videos), []).shards()) == shards


def test_writing_holds_one_video_at_a_time(tmp_path):
  size = 1 << 20
  for i in range(24):
    path = tmp_path / "videos" / f"{i}.mp4"
    write_clip(path, i)
    with open(path, "ab") as file:
      file.write(bytes(size))
  source = folders.Folder(tmp_path / "videos")
  tracemalloc.start()
  tfds_clips.prepare({"train": source}, tmp_path / "out")
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 12 * size


def test_missing_and_broken_files_are_left_out_named_and_counted(videos, tmp_path, caplog):
  whole = (videos / "a.mp4").read_bytes()
  (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
  (videos / "empty.mp4").touch()
  (videos / "text.mp4").write_text("no video")
  source = folders.Folder(videos)
  source.entries.append(sources.Entry("gone.mp4", "gone"))
  with caplog.at_level(logging.INFO):
    folder = tfds_clips.prepare({"train": source}, tmp_path / "out")
  for words in ("cut.mp4 cannot be decoded", "empty.mp4 is empty", "gone.mp4 does not exist"):
    assert sum(words in line and line.endswith(" Left out.") for line in caplog.messages) == 1
  assert any(line.startswith("train: 3 clips in 1 files") for line in caplog.messages)
  assert any(line.endswith("4 left out.") for line in caplog.messages)
  ours = tfds_clips.TFDS(folder)
  assert [ours.name(i) for i in range(len(ours))] == ["a.mp4", "b/c d.mp4", "ü.mp4"]
  left_out = tfds.builder_from_directory(folder).info.metadata["left_out"]
  assert left_out == {"train": ["cut.mp4", "empty.mp4", "text.mp4", "gone.mp4"]}


def test_a_file_that_no_record_has_room_for_is_left_out(videos, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(tfds_clips, "RECORD_BYTES", (videos / "a.mp4").stat().st_size)
  write_clip(videos / "long.mp4", frames=200)
  source = folders.Folder(videos)
  source.entries = [entry for entry in source.entries if entry.file in ("a.mp4", "long.mp4")]
  tfds_clips.prepare({"train": source}, tmp_path / "out")
  assert len(tfds_clips.TFDS(tmp_path / "out")) == 1
  assert "long.mp4 is larger than the 2 GB of a record. Left out." in caplog.text


def test_a_source_of_which_nothing_can_be_read_leaves_nothing_behind(tmp_path):
  for name in ("a.mp4", "b.mp4"):
    (tmp_path / "videos").mkdir(exist_ok=True)
    (tmp_path / "videos" / name).touch()
  with pytest.raises(
    video_lib.BrokenData, match="none of the 2 clips of train can be read; .*b.mp4"
  ):
    tfds_clips.prepare({"train": folders.Folder(tmp_path / "videos")}, tmp_path / "out")
  assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def contents(folder):
  files = sorted(folder.iterdir())
  return {f.name: (f.stat().st_mtime_ns, hashlib.md5(f.read_bytes()).digest()) for f in files}


def test_prepared_once_it_is_not_written_again(videos, tmp_path, caplog):
  first = tfds_clips.prepare({"train": folders.Folder(videos)}, tmp_path / "out")
  before = contents(first)
  with caplog.at_level(logging.INFO):
    again = tfds_clips.prepare({"train": folders.Folder(videos)}, tmp_path / "out")
  assert again == first and contents(again) == before
  assert "is there already; delete it to write it anew" in caplog.text
  assert "train: 3 clips" in caplog.text


def test_other_clips_or_captions_are_not_taken_for_the_same(videos, tmp_path):
  folder = tfds_clips.prepare({"train": folders.Folder(videos)}, tmp_path / "out")
  before = contents(folder)
  (videos / "a.txt").write_text("another caption")
  for split in ("train", "val"):
    with pytest.raises(video_lib.BrokenData, match="was made of other clips or captions; choose"):
      tfds_clips.prepare({"train": folders.Folder(videos, split)}, tmp_path / "out")
  assert contents(folder) == before


def test_cut_off_it_begins_anew(videos, tmp_path, monkeypatch, caplog):
  """Nothing is at its place before all is there; what a kill leaves behind is named."""
  read = video_lib.frame_rate

  def fail_at_the_last(path, data):
    if path.name == "ü.mp4":
      raise KeyboardInterrupt
    return read(path, data)

  source = folders.Folder(videos, **SIZES)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(video_lib, "frame_rate", fail_at_the_last)
    tfds_clips.prepare({"train": source}, tmp_path / "out")
  with pytest.raises(video_lib.BrokenData, match="holds no tfds data set"):
    tfds_clips.TFDS(tmp_path / "out")
  killed = tmp_path / "out/fbjax_clips/incomplete.ABC_1.0.0"
  killed.mkdir()
  (killed / "dataset_info.json").touch()
  tfds_clips.prepare({"train": source}, tmp_path / "out")
  assert "incomplete.ABC_1.0.0 is left of a run that was cut off" in caplog.text
  assert_same(tfds_clips.TFDS(tmp_path / "out", **SIZES), source)


def test_clips_that_two_splits_share_are_written_once(videos, tmp_path, caplog):
  files = both(lambda split: folders.Folder(videos / "val", split, **SIZES))
  folder = tfds_clips.prepare(files, tmp_path / "out")
  assert len(list(folder.glob("*array_record*"))) == 1
  assert_same(tfds_clips.TFDS(folder, **SIZES), files["train"])
  caplog.clear()
  assert_same(tfds_clips.TFDS(folder, "val", **SIZES), files["val"])
  assert "has no split val: nothing is held out" in caplog.text


def test_links_and_odd_names_and_captions_survive(videos, tmp_path):
  latin = os.fsdecode(b"caf\xe9.mp4")
  (videos / latin).write_bytes((videos / "a.mp4").read_bytes())
  (videos / "linked").symlink_to(videos.parent / "store")
  write_clip(tmp_path / "store/z.mp4", 9)
  source = folders.Folder(videos, **SIZES)
  source.entries.append(sources.Entry("val/e.mp4", "a \ud83d cat"))
  source.entries.append(sources.Entry("../store/z.mp4", "out of the data set"))
  folder = tfds_clips.prepare({"train": source}, tmp_path / "out")
  ours = tfds_clips.TFDS(folder, **SIZES)
  names = ["a.mp4", "b/c d.mp4", latin, "linked/z.mp4", "ü.mp4", "val/e.mp4"]
  assert [ours.name(i) for i in range(len(ours))] == names
  assert ours.caption(5) == "a \ufffd cat"
  assert not any(batch["replaced"].any() for batch in take(batches(ours), 2))


def test_the_digest_is_that_of_the_files_and_tells_what_was_left_out(videos, tmp_path):
  files = both(lambda split: folders.Folder(videos, split, **SIZES))
  folder = tfds_clips.prepare(files, tmp_path / "out")
  for split, source in files.items():
    assert tfds_clips.TFDS(folder, split).digest() == source.digest()
    assert tfds_clips.TFDS(folder, split, frames=2, size=8).digest() == source.digest()
  digests = {
    tfds_clips.TFDS(folder, s, protocol=p).digest() for s in files for p in ("official", "all")
  }
  assert len(digests) == 3
  moved = tmp_path / "moved"
  folder.rename(moved)
  assert tfds_clips.TFDS(moved).digest() == files["train"].digest()
  (videos / "a.mp4").write_text("no video")
  less = tfds_clips.TFDS(tfds_clips.prepare({"train": files["train"]}, tmp_path / "less"))
  assert less.digest() not in digests


@pytest.mark.parametrize(
  "file, content",
  [
    ("dataset_info.json", b""),
    ("dataset_info.json", b"[]"),
    ("dataset_info.json", b'{"splits": [{}], "fileFormat": "array_record"}'),
    ("dataset_info.json", b'{"splits": [{"name": "train"}], "fileFormat": "array_record"}'),
    ("features.json", b"\xff"),
    ("features.json", b'{"featuresDict": 3}'),
    ("features.json", b'{"featuresDict": {"features": {}}}'),
    ("metadata.json", b"{"),
    ("metadata.json", b"{}"),
    ("metadata.json", b'{"digests": {}, "left_out": {}}'),
    ("metadata.json", None),
    ("features.json", None),
  ],
)
def test_a_damaged_description_ends_in_one_sentence(videos, tmp_path, file, content):
  folder = tfds_clips.prepare({"train": folders.Folder(videos / "val")}, tmp_path / "out")
  (folder / file).unlink()
  if content is not None:
    (folder / file).write_bytes(content)
  for action in (
    lambda: tfds_clips.TFDS(folder),
    lambda: tfds_clips.prepare({"train": folders.Folder(videos / "val")}, tmp_path / "out"),
  ):
    with pytest.raises(video_lib.BrokenData) as e:
      action()
    assert str(folder) in str(e.value) and "\n" not in str(e.value)


def test_what_is_no_such_data_set_ends_in_one_sentence(videos, tmp_path):
  source = folders.Folder(videos)
  one, two = (tfds_clips.prepare({"val": source}, tmp_path / "two" / name) for name in "ab")
  (tmp_path / "empty").mkdir()
  for path, words in {
    tmp_path / "nowhere": "no folder at .*nowhere; set config.data.path",
    "": "no path to the data is given",
    tmp_path / "empty": "empty holds no tfds data set; write one with python -m",
    videos: "videos holds no tfds data set",
    one: "has no split train; it has val",
  }.items():
    with pytest.raises(video_lib.BrokenData, match=words) as e:
      tfds_clips.TFDS(path)
    assert "\n" not in str(e.value)
  two.rename(one.parent / "2.0.0")
  with pytest.raises(
    video_lib.BrokenData, match="holds 2 tfds data sets; set config.data.path to one"
  ):
    tfds_clips.TFDS(tmp_path / "two" / "a")
  next(one.glob("*array_record*")).unlink()
  with pytest.raises(video_lib.BrokenData, match="no file .*val.array_record-00000-of-00001; copy"):
    tfds_clips.TFDS(one, "val")
  (one / "features.json").write_text("{")
  with pytest.raises(video_lib.BrokenData, match="1.0.0 cannot be read: JSONDecodeError"):
    tfds_clips.TFDS(one, "val")


def test_data_sets_of_other_builders_are_refused_by_what_they_hold(tmp_path, capfd):
  """As tfds' own `ucf101`, whose feature `Video` cannot even be loaded without TensorFlow."""
  name = "tensorflow_datasets.core.features.video_feature.Video"
  features = {"video": {"pythonClassName": name, "video": {}}, "label": {}}
  info = {"name": "ucf101", "fileFormat": "tfrecord", "splits": [{"name": "train"}]}
  (tmp_path / "dataset_info.json").write_text(json.dumps(info))
  (tmp_path / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
  with pytest.raises(video_lib.BrokenData, match="holds label, video as tfrecord, not clips as"):
    tfds_clips.TFDS(tmp_path)
  assert not any(capfd.readouterr())


def batches(source, **options):
  return pipeline.Batches(source, tokenizers.Bytes(8), **{"batch_size": 3, "seed": 1} | options)


def take(stream, n):
  out = [next(stream) for _ in range(n)]
  stream.close()
  return out


def test_a_damaged_record_is_replaced(videos, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(tfds_clips, "SHARD_BYTES", 600)
  folder = tfds_clips.prepare({"train": folders.Folder(videos)}, tmp_path / "out")
  # Pickled, since the type checker of the tests has opened a file or two.
  pickled = pickle.dumps(tfds_clips.TFDS(folder, **SIZES))
  first, second, _ = sorted(folder.glob("*array_record-*"))
  data = bytearray(first.read_bytes())
  data[150:170] = bytes(20)
  first.write_bytes(data)
  second.write_bytes(second.read_bytes()[: 1 << 16])
  ours = pickle.loads(pickled)
  with pytest.raises(
    video_lib.BrokenClip, match=r"record 0 of .*1\.0\.0 cannot be read: Corrupted"
  ):
    ours.read(0, np.random.default_rng(0))
  with pytest.raises(video_lib.BrokenClip, match=r"record 1 of .*1\.0\.0 is empty\."):
    ours.read(1, np.random.default_rng(0))
  assert {int(i) for batch in take(batches(ours), 4) for i in batch["index"]} == {2}


def test_a_clip_that_is_too_short_is_broken_as_the_file_is(videos, tmp_path):
  folder = tfds_clips.prepare({"train": folders.Folder(videos)}, tmp_path / "out")
  ours = tfds_clips.TFDS(folder, frames=30)
  words = r"^a\.mp4 of .*1\.0\.0 has 20 frames, fewer than the 30 of a clip\.$"
  with pytest.raises(video_lib.BrokenClip, match=words):
    ours.read(0, np.random.default_rng(0))


def test_threads_and_worker_processes_read_what_the_files_give(videos, tmp_path):
  """Also where a reader was open already when the workers got their copy."""
  files = folders.Folder(videos, **SIZES)
  ours = tfds_clips.TFDS(tfds_clips.prepare({"train": files}, tmp_path / "out"), **SIZES)
  expected = take(batches(files), 4)
  for options in ({"threads": 4}, {"workers": 1}):
    for a, b in zip(take(batches(ours, **options), 4), expected, strict=True):
      for field in b:
        np.testing.assert_array_equal(a[field], b[field], err_msg=field)
  assert len(pickle.dumps(ours)) < 20_000


def run(*code, **environment):
  return subprocess.run(
    [sys.executable, "-c", "\n".join(code)],
    cwd=REPOSITORY,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    check=False,
  )


def test_nothing_imports_tensorflow_or_talks_of_its_own(videos, tmp_path):
  """From the command line to a clip; who does not use it does not import tfds either."""
  (videos / "text.mp4").write_text("no video")
  # Whoever tries to import TensorFlow is told on.
  (tmp_path / "tensorflow.py").write_text("import os; os.write(2, b'imports TensorFlow')")
  done = run(
    "import runpy, sys",
    "from fbjax.data import tfds_clips",
    "assert 'tensorflow_datasets' not in sys.modules",
    f"sys.argv[1:] = ['folder', '--path={videos}', '--out={tmp_path}/out']",
    "del sys.modules['fbjax.data.tfds_clips']",
    "runpy.run_module('fbjax.data.tfds_clips', run_name='__main__')",
    "import numpy as np",
    f"source = tfds_clips.TFDS('{tmp_path}/out', 'val', frames=4, size=8)",
    "print(source.read(1, np.random.default_rng(0)).video.shape, 'tensorflow' in sys.modules)",
    PYTHONPATH=str(tmp_path),
    PYTHONIOENCODING="utf-8",
  )
  assert done.stdout == "(4, 8, 8, 3) False\n"
  lines = [line.split("  ", 1)[1] for line in done.stderr.splitlines()]
  assert len(lines) == 4
  assert lines[0].endswith(
    "text.mp4 cannot be decoded: Invalid data found when processing input. Left out."
  )
  assert lines[1].startswith("train: 3 clips in 1 files") and lines[1].endswith("; 1 left out.")
  assert lines[2].startswith("val: 2 clips in 1 files") and lines[2].endswith("; 0 left out.")
  assert lines[3] == (f"read it with --config.data.name=tfds --config.data.path={tmp_path}/out")


def test_the_command_line_writes_the_splits_it_is_asked_for(ucf101, tmp_path, capsys):
  tfds_clips.main(["ucf101", f"--path={ucf101}", f"--out={tmp_path}/out", "--fold=2"])
  fold = both(lambda split: sources.UCF101(ucf101, split, fold=2, **SIZES))
  for split, source in fold.items():
    assert_same(tfds_clips.TFDS(tmp_path / "out", split, **SIZES), source)
  tfds_clips.main(["ucf101", f"--path={ucf101}", f"--out={tmp_path}/val", "--splits=val"])
  assert list(tfds.builder_from_directory(tfds_clips._find(tmp_path / "val")).info.splits) == [
    "val"
  ]
  with pytest.raises(SystemExit) as e:
    tfds_clips.main(["webvid", f"--path={tmp_path}/nowhere", f"--out={tmp_path}/none"])
  assert str(e.value).startswith("error: no folder at ") and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
  "flags, words",
  [
    ("", "the following arguments are required: webvid|folder|table|webdataset|ucf101|msrvtt"),
    ("nonsense", "invalid choice: 'nonsense'"),
    ("folder", "the following arguments are required: --path, --out"),
    ("folder --path={videos}", "the following arguments are required: --out"),
    ("folder --path={videos} --out", "argument --out: expected one argument"),
    ("folder --path={videos} --out={out} --fold=2", "unrecognized arguments: --fold=2"),
    ("folder --path={videos} --out={out} more", "unrecognized arguments: more"),
    ("folder --path={videos} --out={out} --splits=test", "argument --splits: invalid choice"),
    ("ucf101 --path={videos} --out={out} --fold=x", "argument --fold: invalid int value: 'x'"),
    ("ucf101 --path={videos} --out={out} --fold=0", "data.fold is 0; expected a whole number"),
    ("ucf101 --path={videos} --out={out}", "no file {videos}/ucfTrainTestlist/classInd.txt"),
    ("folder --path= --out={out}", "no path to the data is given"),
    ("folder --path={nothing} --out={out}", "no folder at {nothing}"),
    ("folder --path={empty} --out={out}", "no video files in {empty}"),
    ("folder --path={videos} --out={file}", "{file} is no folder; choose another --out"),
    ("folder --path={videos} --out={file}/out", "{file} is no folder; choose another --out"),
    ("folder --path={videos} --out=", "no --out is given"),
  ],
)
def test_mistakes_on_the_command_line_end_in_one_sentence(videos, tmp_path, capsys, flags, words):
  places = {name: tmp_path / name for name in ("videos", "out", "nothing", "empty", "file")}
  places["empty"].mkdir()
  places["file"].touch()
  with pytest.raises(SystemExit) as e:
    tfds_clips.main([flag.format(**places) for flag in flags.split()])
  message = str(e.value)
  assert message.startswith("error: ") and words.format(**places) in message
  assert "\n" not in message and not any(capsys.readouterr())
  assert not places["out"].exists()


def test_where_nothing_can_be_written_it_says_so(videos, tmp_path):
  with pytest.raises(SystemExit, match="error: /proc/nowhere cannot be written: "):
    tfds_clips.main(["folder", f"--path={videos}", "--out=/proc/nowhere"])


def test_the_command_line_knows_every_source_of_files():
  made_up = {"synthetic", "tfds", "mixture"}
  assert tfds_clips.LAYOUTS.items() == {
    (name, source) for name, source in build.SOURCES.items() if name not in made_up
  }


@pytest.mark.parametrize(
  "layout, options",
  [("webvid", {}), ("ucf101", {"fold": 1}), ("msrvtt", {"seed": 3}), ("folder", {})],
)
def test_real_clips_read_back_as_their_files_do(shared, tmp_path, layout, options):
  path = shared / "videos" / (layout if layout != "folder" else "corrupt")
  flags = [f"--{key}={value}" for key, value in options.items()]
  tfds_clips.main([layout, f"--path={path}", f"--out={tmp_path}", *flags])
  for split in ("train", "val"):
    files = tfds_clips.LAYOUTS[layout](path, split, **options, frames=5, size=32, strides=(1, 4))
    if layout == "folder":
      bad = ("audio_only", "text", "truncated", "truncated_faststart", "zero_byte")
      files.entries = [entry for entry in files.entries if entry.file[:-4] not in bad]
      assert len(files) == 6
    ours = tfds_clips.TFDS(tmp_path, split, frames=5, size=32, strides=(1, 4))
    assert_same(ours, files, seeds=1)
