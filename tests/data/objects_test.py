"""Data that is not on this machine, read by fsspec: in memory, by file://, over a bad network."""

import concurrent.futures
import os
import pickle
import threading
import time
import types

import fsspec
import numpy as np
import pytest
from data import clips
from fsspec.implementations import memory

from fbjax import errors
from fbjax.data import folder as folders
from fbjax.data import kept, objects, sources, table, tfds_clips, webdataset
from fbjax.data import tars as tars_lib
from fbjax.data import video as video_lib

SIZES = dict(frames=4, size=16, strides=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FBJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(objects, "PAUSE", 0)
  objects._version.cache_clear()
  return tmp_path / "cache"


class Flaky(memory.MemoryFileSystem):
  """Fails for the paths and as often as `failing` says, and counts what was asked."""

  protocol = "flaky"
  cachable = False
  store = {}
  pseudo_dirs = [""]
  failing = {}
  asked = []

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix("flaky://"))

  def cat_file(self, path, start=None, end=None, **kwargs):
    Flaky.asked.append(path)
    for part in Flaky.failing:
      if part in path and Flaky.failing[part] > 0:
        Flaky.failing[part] -= 1
        raise ConnectionResetError("Connection reset by peer")
    return super().cat_file(path, start=start, end=end)


@pytest.fixture
def flaky():
  fsspec.register_implementation("flaky", Flaky, clobber=True)
  Flaky.store.clear()
  Flaky.asked.clear()
  Flaky.failing.clear()
  return Flaky


def fill(address, files):
  system, path = fsspec.url_to_fs(address)
  if system.exists(path):
    system.rm(path, recursive=True)
  for name, data in files.items():
    system.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
    system.pipe_file(f"{path}/{name}", data if isinstance(data, bytes) else data.encode())


@pytest.fixture(params=["memory://set/clips", "file://{tmp}/a bucket", "flaky://set"])
def root(request, tmp_path, flaky):
  return request.param.format(tmp=tmp_path)


def level(source, index):
  return round(float(source.read(index, np.random.default_rng(0)).video.mean()), -1)


def rows(source):
  return [(source.name(i), source.caption(i)) for i in range(len(source))]


def test_a_folder_in_a_bucket_is_as_one_on_disk(root, tmp_path):
  files = {
    "a cat.mp4": clips.encoded(20),
    "dogs/run.mp4": clips.encoded(60),
    "dogs/run.txt": "a dog\nruns",
    "named.mp4": clips.encoded(100),
    "val/e.mp4": clips.encoded(140),
    ".hidden/x.mp4": b"",
    "@eaDir/y.mp4": b"",
    "notes.md": "",
    "metadata.jsonl": '{"file_name": "named.mp4", "text": "of the table"}',
  }
  fill(root, files)
  fill(f"file://{tmp_path}/disk", files)
  for split in ("train", "val"):
    there = folders.Folder(root, split, **SIZES)
    here = folders.Folder(tmp_path / "disk", split, **SIZES)
    assert rows(there) == rows(here) and there.digest() == here.digest()
    again = pickle.loads(pickle.dumps(there))
    assert [level(again, i) for i in range(len(here))] == [level(here, i) for i in range(len(here))]


def test_a_table_in_a_bucket_or_beside_it(root, tmp_path):
  words = f"file,caption\na.mp4,x\n{root}/sub/b.mp4,y\n"
  fill(root, {"clips.csv": words, "a.mp4": clips.encoded(20), "sub/b.mp4": clips.encoded(60)})
  (tmp_path / "mine.csv").write_text(words)
  for source in (
    table.Table(f"{root}/clips.csv", **SIZES),
    table.Table(tmp_path / "mine.csv", root=root, **SIZES),
  ):
    assert rows(source) == [("a.mp4", "x"), ("sub/b.mp4", "y")]
    assert [level(source, i) for i in (0, 1)] == [20, 60]


def test_tars_in_a_bucket(root, tmp_path):
  tars = {}
  for i in range(3):
    members = [(f"{i}.mp4", clips.encoded(20 + 40 * i)), (f"{i}.txt", f"clip {i}".encode())]
    clips.write_tar(tmp_path / "one.tar", members)
    tars[f"{i}.tar"] = (tmp_path / "one.tar").read_bytes()
  fill(root, tars)
  for path, wanted in (("", "012"), ("/{0..1}.tar", "01"), ("/*.tar", "012"), ("/2.tar", "2")):
    source = webdataset.WebDataset(root + path, **SIZES)
    assert rows(source) == [(f"{i}.tar/{i}.mp4", f"clip {i}") for i in wanted]
    assert [level(source, i) for i in range(len(source))] == [20 + 40 * int(i) for i in wanted]
  with pytest.raises(video_lib.BrokenData, match=r"3\.tar does not exist"):
    webdataset.WebDataset(f"{root}/{{0..3}}.tar")


def test_an_index_of_a_tar_survives_a_network_that_fails(flaky, tmp_path, monkeypatch):
  monkeypatch.setattr(objects, "BLOCK", 4096)
  members = [(f"{i}.{kind}", b"word" * 900) for i in range(9) for kind in ("mp4", "txt")]
  clips.write_tar(tmp_path / "a.tar", members)
  fill("flaky://set", {"a.tar": (tmp_path / "a.tar").read_bytes()})
  flaky.failing["a.tar"] = objects.TRIES - 1
  source = webdataset.WebDataset("flaky://set", **SIZES)
  assert len(source) == 9 and source.content(8)[1] == b"word" * 900
  flaky.failing["a.tar"] = 10**6
  tars_lib._index.cache_clear()
  assert len(webdataset.WebDataset("flaky://set")) == 9, "the index is kept"
  objects._version.cache_clear()
  fill("flaky://set", {"a.tar": b"another"})
  with pytest.raises(video_lib.BrokenData, match=r"a\.tar cannot be read, tried 4 times"):
    webdataset.WebDataset("flaky://set")


def test_tfds_is_made_of_a_bucket(root, tmp_path):
  fill(root, {"a.mp4": clips.encoded(20), "b.mp4": clips.encoded(60), "bad.mp4": b"no video"})
  tfds_clips.main(["folder", f"--path={root}", f"--out={tmp_path}/out"])
  source = tfds_clips.TFDS(tmp_path / "out", **SIZES)
  assert rows(source) == [("a.mp4", "a"), ("b.mp4", "b")]
  assert [level(source, i) for i in (0, 1)] == [20, 60]


def test_what_came_once_is_not_fetched_again_until_it_changes(flaky):
  fill("flaky://set", {"a.mp4": clips.encoded(20)})
  source = folders.Folder("flaky://set", **SIZES)
  assert [level(source, 0) for _ in range(5)] == [20] * 5
  assert flaky.asked.count("/set/a.mp4") == 1
  time.sleep(0.01)
  fill("flaky://set", {"a.mp4": clips.encoded(60)})
  objects._version.cache_clear()  # as when the next run begins
  assert level(source, 0) == 60


def test_a_network_that_fails_now_and_then_is_asked_again(flaky):
  fill("flaky://set", {"a.mp4": clips.encoded(20), "b.mp4": clips.encoded(60), "a.txt": "words"})
  flaky.failing.update({"a.txt": 2, "a.mp4": objects.TRIES - 1, "b.mp4": 10**6})
  source = folders.Folder("flaky://set", **SIZES)
  assert rows(source)[0] == ("a.mp4", "words")
  assert level(source, 0) == 20
  with pytest.raises(
    video_lib.BrokenClip, match=r"flaky://set/b\.mp4 cannot be read, tried 4 times: Connection"
  ):
    level(source, 1)
  assert flaky.asked.count("/set/b.mp4") == objects.TRIES


def test_another_clip_takes_the_place_of_one_that_cannot_be_reached(flaky, caplog):
  fill("flaky://set", {"a.mp4": clips.encoded(20), "b.mp4": clips.encoded(60)})
  flaky.failing["b.mp4"] = 10**6
  batches = clips.batches(folders.Folder("flaky://set", **SIZES))
  batch = next(batches)
  batches.close()
  assert 0 < batch["replaced"].sum() < 4 and set(batch["index"]) == {0}
  assert caplog.text.count("flaky://set/b.mp4 cannot be read") == 1


def test_a_file_that_comes_in_part_is_fetched_anew(flaky, monkeypatch):
  fill("flaky://set", {"a.mp4": clips.encoded(20)})
  whole, cuts = Flaky.cat_file, [10, 20]

  def cut(self, path, start=None, end=None, **kwargs):
    data = whole(self, path, start, end)
    return data[: cuts.pop()] if cuts else data

  monkeypatch.setattr(Flaky, "cat_file", cut)
  assert level(folders.Folder("flaky://set", **SIZES), 0) == 20


def test_what_is_kept_is_bounded_and_the_least_recently_used_goes(cache, tmp_path, monkeypatch):
  # Threads that read ahead for another test may still be at their last clip.
  own = threading.current_thread()
  mine = lambda: cache if threading.current_thread() is own else tmp_path / "others"  # noqa: E731
  monkeypatch.setattr(kept, "folder", mine)
  monkeypatch.setattr(kept, "LIMIT", 350)
  monkeypatch.setattr(kept, "SWEEP", 1)
  # The disk of whoever runs this may be full but for what is reserved for root.
  monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**9))
  fetched = []

  def get(name):
    return kept.clip(name, 100, lambda: fetched.append(name) or name.encode() * 100)

  for name in ("a", "b", "c", "a", "d", "a"):
    assert get(name) == name.encode() * 100
    time.sleep(0.01)
  assert fetched == ["a", "b", "c", "d"]
  get("b")
  assert fetched == ["a", "b", "c", "d", "b"]
  files = [f for f in cache.rglob("*") if f.is_file()]
  assert len(files) == 3
  files[0].write_bytes(b"cut")  # as when the disk was full
  for name in ("a", "d", "b"):
    assert get(name) == name.encode() * 100


def test_a_disk_that_cannot_be_written_keeps_nothing(flaky, monkeypatch):
  monkeypatch.setenv("FBJAX_CACHE", "/proc/nowhere")
  fill("flaky://set", {"a.mp4": clips.encoded(20)})
  source = folders.Folder("flaky://set", **SIZES)
  assert [level(source, 0) for _ in range(3)] == [20] * 3
  assert flaky.asked.count("/set/a.mp4") == 3


def test_a_disk_that_cannot_be_written_is_told_once_by_many_threads(monkeypatch):
  monkeypatch.setenv("FBJAX_CACHE", "/proc/nowhere")
  kept._tell.cache_clear()
  told = []
  monkeypatch.setattr(kept.logger, "warning", lambda *words: time.sleep(0.05) or told.append(words))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda i: kept.write(kept.file("tars", str(i)), b""), range(8)))
  assert len(told) == 1


def test_several_processes_mirror_into_one_folder_and_a_disk_that_cannot_be_written_is_told(
  cache, monkeypatch
):
  bring = lambda name, file: file.write_bytes(name.encode())  # noqa: E731
  home = kept.mirror("gs://mine", "key", {"a": 1}, bring)
  (home / ".b.partial").symlink_to("gone")  # one that another process has moved meanwhile
  assert kept.mirror("gs://mine", "key", {"a": 1, "b": 1}, bring) == home
  assert [(home / name).read_text() for name in "ab"] == ["a", "b"]
  monkeypatch.setenv("FBJAX_CACHE", "/proc/nowhere")
  with pytest.raises(errors.UserError, match="cannot write .*set FBJAX_CACHE to another folder"):
    kept.mirror("gs://mine", "key", {"a": 1}, bring)


@pytest.mark.parametrize(
  ("path", "words"),
  [
    ("gs://bucket/clips", "gs://bucket/clips needs another package: pip install gcsfs"),
    ("s3://bucket/clips", "pip install s3fs"),
    ("nonsense://bucket", "nonsense://bucket.* is no address that can be read"),
    ("memory://set/nowhere", "no folder at memory://set/nowhere"),
  ],
)
def test_an_address_that_cannot_be_read_ends_in_one_sentence(path, words, monkeypatch):
  for make in (folders.Folder, webdataset.WebDataset, lambda path: table.Table(f"{path}/a.csv")):
    if make is folders.Folder or "nowhere" not in path:
      with pytest.raises(video_lib.BrokenData, match=words.replace("/clips n", ".* n")) as e:
        make(path)
      assert "\n" not in str(e.value)


def test_sources_that_read_this_machine_alone_say_so():
  for source in (sources.WebVid, sources.UCF101, sources.MSRVTT, tfds_clips.TFDS):
    with pytest.raises(video_lib.BrokenData, match="only folder, table and webdataset"):
      source("gs://bucket/clips")


def test_a_file_is_put_as_a_whole_or_not_at_all(flaky, tmp_path, monkeypatch):
  (tmp_path / "a").write_bytes(b"whole")
  address = objects.Address("flaky://set/in/a")
  assert address.parent.sizes() == {}

  def breaks(self, source, target, **options):
    flaky.store[target] = memory.MemoryFile(self, target, b"ha")
    raise ConnectionResetError("Connection reset by peer")

  with monkeypatch.context() as patch:
    patch.setattr(flaky, "put_file", breaks)
    with pytest.raises(objects.Unreachable, match=r"in/a cannot be written, tried 4 times: Connec"):
      address.put(tmp_path / "a")
  assert "a" not in address.parent.sizes()
  address.put(tmp_path / "a")
  assert address.parent.sizes()["a"] == 5 and address.read_bytes() == b"whole"
  address.get(tmp_path / "b")
  assert (tmp_path / "b").read_bytes() == b"whole"


def test_names_do_not_lead_out_of_a_bucket(flaky):
  fill("flaky://set", {"in/clips.csv": "file,caption\n../a.mp4,x\n", "a.mp4": clips.encoded(20)})
  with pytest.raises(video_lib.BrokenClip, match="which is no file below it"):
    level(table.Table("flaky://set/in/clips.csv", **SIZES), 0)


def test_a_clip_too_large_for_memory_is_named(flaky, monkeypatch):
  fill("flaky://set", {"a.mp4": clips.encoded(20)})
  monkeypatch.setattr(objects, "MOST_BYTES", 10)
  with pytest.raises(video_lib.BrokenClip, match=r"a\.mp4 is .* GB, more than a clip in a bucket"):
    level(folders.Folder("flaky://set", **SIZES), 0)


def test_paths_of_this_machine_do_without_fsspec(tmp_path, monkeypatch):
  monkeypatch.setattr(fsspec, "url_to_fs", None)
  clips.write_clip(tmp_path / "a.mp4", 20)
  source = folders.Folder(tmp_path, **SIZES)
  assert level(source, 0) == 20 and source.content(0) == (tmp_path / "a.mp4", None)
