"""Caches made at toy size: what trains from them, what goes on after a kill, what is refused."""

import functools
import itertools
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import multiprocess_test
import numpy as np
import pytest
from fsspec.implementations import local
from PIL import Image

import settings
import toy
from fbjax import build, caches, errors, tracker
from fbjax.data import cache as records
from fbjax.data import kept, objects, video
from fbjax.modes import cache, train

VAE = {"name": "autoencoder", "width": 8, "mult": (1, 2), "blocks": 1, "groups": 4, "c_latent": 4}


def config(data=None, cached=None, **train_options):
  """A video UNet with an autoencoder and a frozen text network."""
  c = toy.config(**{"steps": 3, "batch_size": 2, "preview_every": 3, **train_options})
  c["data"] = {"name": "synthetic", "frames": 3, "size": 16, "clips": 6} | (data or {})
  c["system"] |= {"codec": dict(VAE), "train_text": False}
  c["cache"] = {"shard": 2, "batch_size": 2} | (cached or {})
  return c


def make(c):
  return build.make_system(c, build.make_tokenizer(c))


@pytest.fixture(scope="module")
def made(tmp_path_factory, one_device):
  out = tmp_path_factory.mktemp("made") / "cache"
  cache.cache(config(cached={"dtype": "float32"}), str(out))
  return out


def rows(workdir):
  return tracker.read_metrics(pathlib.Path(workdir) / "metrics.jsonl")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder of images to animate at every preview."""
  folder = tmp_path_factory.mktemp("images")
  for i, noise in enumerate(np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), np.uint8)):
    Image.fromarray(noise).save(folder / f"{i}.png")
  (folder / "prompts.txt").write_text("up\ndown\nleft\n")
  return str(folder)


@pytest.fixture(scope="module")
def online(tmp_path_factory, one_device, images):
  workdir = tmp_path_factory.mktemp("online")
  c = config()
  c["sampling"]["images"] = images
  train.train(c, str(workdir))
  return workdir


def trained(folder, workdir, monkeypatch, images=""):
  """Metrics of a run from a cache, and the frozen networks of its step."""
  seen, loop = {}, train.loop.train

  @functools.wraps(loop)
  def spy(*, frozen, **rest):
    seen.update(frozen)
    return loop(frozen=frozen, **rest)

  monkeypatch.setattr(train.loop, "train", spy)
  c = config()
  c["cache"], c["sampling"]["images"] = {"path": str(folder)}, images
  train.train(c, str(workdir))
  return rows(workdir), seen


def test_training_from_a_cache_is_training_online_without_the_encoders(
  made, online, images, tmp_path, monkeypatch
):
  """The same losses, also on held-out clips, and the same previews; in float32 up to the rounding
  of another program."""
  found, frozen = trained(made, tmp_path / "run", monkeypatch, images)
  assert set(frozen) == {"nulls"} and set(frozen["nulls"]) == {"null_text"}
  assert len(found) == len(rows(online))
  for ours, theirs in zip(found, rows(online), strict=True):
    for name in ("loss", "grad_norm", "preview/loss", "preview/motion_ratio"):
      if name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, err_msg=name)
  for name in ("0000003", "0000003-images"):  # images are encoded before the training
    ours, theirs = (sorted((at / "samples" / name).iterdir()) for at in (tmp_path / "run", online))
    assert [x.name for x in ours] == [x.name for x in theirs]
    for a, b in zip(ours, theirs, strict=True):
      apart = video.read_all(a).astype(int) - video.read_all(b)
      assert np.abs(apart).mean() < 0.5, a


@pytest.mark.thorough
def test_half_precision_changes_the_loss_less_than_a_tenth_of_a_percent(
  online, tmp_path, monkeypatch
):
  cache.cache(config(), str(tmp_path / "half"))
  found, _ = trained(tmp_path / "half", tmp_path / "run", monkeypatch)
  np.testing.assert_allclose(found[0]["loss"], rows(online)[0]["loss"], rtol=1e-3)


def test_records_know_their_clip(made):
  c = config()
  c["cache"] = {"path": str(made)}
  found = caches.opened(c, make(c))
  source = build.make_source(c, "train")
  assert len(found.train) == len(source) == 6
  for i in range(6):
    record = found.train.record(i, 0)
    assert record.about["caption"] == source.caption(i) and record.about["name"] == source.name(i)
    assert record.about["index"] == i and {"stride", "label"} <= set(record.about)
    assert found.train.caption(i) == source.caption(i) and found.train.name(i) == source.name(i)
  shown = found.shown.record(0, 0).arrays
  np.testing.assert_array_equal(shown["video"], build.make_source(c, "val")[0].video)


@pytest.mark.parametrize(("group", "change", "told"), [
  ("data", {"size": 8}, "config.data.size: 16 there, 8 now"),
  ("data", {"frames": 2}, "config.data.frames: 3 there, 2 now"),
  ("data", {"motions": ("left",)}, r"config.data.motions"),
  ("system", {"codec": VAE | {"draw": "mode"}}, "config.system.codec.draw: '.absent.' there, 'mode'"),
  ("system", {"train_text": True}, r"config.system.text"),
  ("tokenizer", {"length": 12}, "config.tokenizer.length: 16 there, 12 now"),
  ("cache", {"windows": 2}, "config.cache.windows: 1 there, 2 now"),
])  # fmt: skip
def test_a_cache_of_another_config_is_refused_by_the_key_that_differs(made, group, change, told):
  c = config()
  c["cache"] = {"path": str(made)}
  c[group] = c[group] | change
  with pytest.raises(errors.UserError, match=told) as error:
    caches.opened(c, make(c))
  assert "\n" not in str(error.value)


def test_other_weights_of_the_encoders_and_other_clips_are_refused(made, monkeypatch):
  c = config(data={"clips": 5})
  c["cache"] = {"path": str(made)}
  with pytest.raises(errors.UserError, match="config.data.clips: 6 there, 5 now"):
    caches.opened(c, make(c))
  c = config() | {"cache": {"path": str(made)}, "seed": 1}
  with pytest.raises(errors.UserError, match="the encoders' weights .* drawn from config.seed=0"):
    caches.opened(c, make(c))
  about = caches.read_about(str(made))
  c = config() | {"cache": {"path": str(made)}}
  for split in ("train", "val"):
    changed = about | {"sources": about["sources"] | {split: "x"}}
    monkeypatch.setattr(caches, "read_about", lambda folder, changed=changed: changed)
    with pytest.raises(errors.UserError, match=rf"config.data lists now \({split}\): x there"):
      caches.opened(c, make(c))


def test_what_is_no_cache_or_a_damaged_one_is_told(made, tmp_path):
  c = config()
  c["cache"] = {"path": str(tmp_path)}
  with pytest.raises(errors.UserError, match="holds no cache.json: make a cache with --mode=cache"):
    caches.opened(c, make(c))
  copy = shutil.copytree(made, tmp_path / "copy")
  c["cache"] = {"path": str(copy)}
  (copy / "nulls.record").write_bytes(b"\0" * 100)
  with pytest.raises(errors.UserError, match="nulls.record is missing or damaged .* remove it"):
    caches.opened(c, make(c))
  about = json.loads((copy / "cache.json").read_text())
  (copy / "cache.json").write_text(json.dumps(about | {"seed": 3}))
  with pytest.raises(errors.UserError, match="cache.json is damaged"):
    caches.opened(c, make(c))
  with pytest.raises(errors.UserError, match="needs --out"):
    cache.cache(config(), None)
  with pytest.raises(errors.UserError, match="nowhere://b/c.* is no address that can be read"):
    cache.cache(config(), "nowhere://b/c")


def test_the_rate_that_is_told_is_without_the_compilation(monkeypatch, caplog):
  """A minute of which comes before the first batch; the others take four seconds."""
  clock = itertools.chain([0], itertools.count(60, 4))
  now = [next(clock)]
  monkeypatch.setattr(cache.time, "monotonic", lambda: now[0])

  def made(batches):
    for size in batches:
      now[0] = next(clock)
      yield from [records.Record({}, {})] * size

  caplog.set_level(logging.INFO, "fbjax")
  batches = [8, 8, 8, 8, 4]
  assert len(list(cache.telling("train", made(batches), batches, split(18, 2)))) == 36
  assert caplog.messages == [
    "train: 4/18 clips",
    "train: 16/18 clips  1 clips/s  ETA 2s",
    "train: 18/18 clips  0.875 clips/s  ETA 0s",
  ]
  caplog.clear()
  assert list(cache.telling("val", made([3]), [3], split(3, 1)))
  assert caplog.messages == ["val: 3/3 clips"]


def split(clips, windows):
  return cache.Split(None, clips, windows, 0, lambda frozen, batch: ({}, None))


def test_a_part_of_the_clips_may_all_be_broken_and_the_whole_may_not():
  """A part such as the last shard, which another process has, or a killed run has left."""
  broken = [records.Record({}, {"error": "a.mp4 is empty."})] * 2
  assert list(cache.telling("train", iter(broken), [2], split(3, 1))) == broken
  with pytest.raises(errors.UserError, match="none of the clips of train .* a.mp4 is empty"):
    list(cache.telling("train", iter(broken), [2], split(2, 1)))


def test_a_shard_that_breaks_off_is_told_from_a_whole_one(made, tmp_path):
  """So that the same command makes it anew."""
  whole = next(pathlib.Path(made).glob("train-*.records"))
  broken = tmp_path / whole.name
  broken.write_bytes(whole.read_bytes()[: 1 << 15])
  assert cache.is_damaged(broken) and not cache.is_damaged(whole)


@pytest.mark.thorough
def test_a_folder_of_videos_is_read_in_windows_and_trains_when_it_is_gone(tmp_path, caplog):
  videos = tmp_path / "videos"
  videos.mkdir()
  rng = np.random.default_rng(0)
  for name in "abc":
    video.write_mp4(videos / f"{name}.mp4", rng.integers(0, 256, (20, 24, 24, 3), np.uint8))
  (videos / "b.mp4").write_bytes(b"no video")
  c = config(steps=1, preview_every=0)
  c["data"] = {"name": "folder", "path": str(videos), "frames": 3, "size": 16, "strides": (1, 4)}
  c["cache"] |= {"windows": 4}
  cache.cache(c, str(tmp_path / "cache"))
  assert caplog.text.count("b.mp4") and "Trainings will read another clip" in caplog.text
  c["cache"] = {"path": str(tmp_path / "cache")}
  found = caches.opened(c, make(c))
  kept = [found.train.record(0, w).arrays["clip/mean"] for w in range(4)]
  assert len({x.tobytes() for x in kept}) > 1
  assert "error" in found.train.record(1, 0).about
  shutil.rmtree(videos)
  caplog.set_level(logging.INFO, "fbjax")
  train.train(c, str(tmp_path / "run"))
  assert "Only the cache in" in caplog.text and (tmp_path / "run/checkpoints/1").exists()


# argv: out, process, processes, port, seconds a clip
COMMAND = """
import sys
sys.path[:0] = ["tests", "tests/modes"]
import jax
out, process, processes, port, slow = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
jax.config.update("jax_compilation_cache_dir", sys.argv[6])
if processes > 1:
  jax.distributed.initialize(f"127.0.0.1:{port}", processes, process, heartbeat_timeout_seconds=30)
import time
import cache_test
from fbjax import processes as joined
from fbjax.data import synthetic
from fbjax.modes import cache
read = synthetic.Shapes.read
def slowly(self, index, rng):
  time.sleep(slow)
  return read(self, index, rng)
synthetic.Shapes.read = slowly
joined.join()
cache.cache(cache_test.config(cached={"dtype": "float32"}), out)
"""


def start(out, process=0, processes=1, port=0, slow=0.0):
  environment = os.environ | {"XLA_FLAGS": settings.FAST_COMPILATION, "JAX_PLATFORMS": "cpu"}
  argv = [*map(str, (out, process, processes, port, slow)), str(settings.CACHE)]
  return subprocess.Popen(
    [sys.executable, "-c", COMMAND, *argv],
    cwd=settings.ROOT,
    env=environment,
    stderr=out.with_name(f"{out.name}{process}.log").open("w"),
  )


def finish(out, *processes):
  try:
    codes = [process.wait(timeout=600) for process in processes]
  finally:
    for process in processes:
      process.kill()
  logs = [log.read_text() for log in sorted(out.parent.glob(f"{out.name}*.log"))]
  assert set(codes) == {0}, "\n".join(logs)


def contents(folder):
  """Every record of a cache, by shard."""
  assert not list(folder.glob("*.partial"))
  c = config() | {"cache": {"path": str(folder)}}
  found = caches.opened(c, make(c))
  return [split.record(i, 0) for split in (found.train, found.shown) for i in range(6)]


def check_same(ours, theirs):
  """The same records, up to the rounding of a program for another number of devices."""
  for a, b in zip(ours, theirs, strict=True):
    assert a.about == b.about and a.arrays.keys() == b.arrays.keys()
    for name, x in a.arrays.items():
      np.testing.assert_allclose(x, b.arrays[name], atol=1e-5, err_msg=name)


@pytest.mark.thorough
@pytest.mark.timeout(1500)
def test_a_killed_run_goes_on_and_two_processes_write_what_one_writes(made, tmp_path):
  whole = contents(made)
  killed = tmp_path / "killed"
  process = start(killed, slow=0.5)
  while not (killed / "train-00000.records").exists():
    assert process.poll() is None, killed.with_name("killed0.log").read_text()
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  done = {x: x.stat().st_mtime_ns for x in killed.glob("*.records")}
  assert 0 < len(done) < 6
  (killed / "train-00001.partial").write_bytes(b"half a shard")
  finish(killed, start(killed))
  check_same(contents(killed), whole)
  assert all(file.stat().st_mtime_ns == at for file, at in done.items())

  together, port = tmp_path / "together", multiprocess_test.free_port()
  finish(together, *(start(together, i, 2, port) for i in range(2)))
  check_same(contents(together), whole)
  assert (together / "cache.json").read_bytes() == (made / "cache.json").read_bytes()
  assert records.read_one(together / "nulls.record").arrays.keys() == {"null_text"}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """An address, as one in a bucket is, and the folder that stands for it."""
  monkeypatch.setenv("FBJAX_CACHE", str(tmp_path / "kept"))
  monkeypatch.setattr(objects, "PAUSE", 0)
  return f"file://{tmp_path}/bucket/cache", tmp_path / "bucket/cache"


def test_a_cache_in_a_bucket_goes_on_after_a_kill_and_is_fetched_once(
  made, bucket, tmp_path, monkeypatch
):
  address, folder = bucket
  c, put = config(cached={"dtype": "float32"}), local.LocalFileSystem.put_file

  def dies(self, source, target, **options):
    if "train-00001" in target:
      pathlib.Path(target).write_bytes(b"half a shard")
      raise KeyboardInterrupt
    put(self, source, target, **options)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(local.LocalFileSystem, "put_file", dies)
    cache.cache(c, address)
  there = {file: file.stat().st_mtime_ns for file in folder.glob("*.records")}
  assert [file.name for file in there] == ["train-00000.records"]
  reads = config() | {"cache": {"path": address}}
  with pytest.raises(errors.UserError, match=f"{address} lacks 2 of the 3 shards of train"):
    caches.opened(reads, make(reads))
  assert not (tmp_path / "kept").exists()
  cache.cache(c, address)
  assert all(file.stat().st_mtime_ns == at for file, at in there.items())
  there = {x.name for x in folder.iterdir() if x.suffix != ".partial"}
  assert there == {x.name for x in made.iterdir()}

  found = caches.opened(reads, make(reads))
  ours = [split.record(i, 0) for split in (found.train, found.shown) for i in range(6)]
  check_same(ours, contents(made))
  monkeypatch.setattr(objects.Address, "get", None)  # nothing is fetched twice
  caches.opened(reads, make(reads))


def test_a_cache_that_the_disk_has_no_room_for_is_not_fetched(made, bucket, monkeypatch):
  address, folder = bucket
  shutil.copytree(made, folder)
  c = config() | {"cache": {"path": address}}
  monkeypatch.setattr(kept, "FILLED", 1e-9)
  with pytest.raises(errors.UserError, match="GB to fetch, .* or mount the bucket"):
    caches.opened(c, make(c))


def test_a_folder_of_another_cache_is_not_gone_on_with(made):
  with pytest.raises(errors.UserError, match="config.data.clips: 6 there, 7 now"):
    cache.cache(config(data={"clips": 7}, cached={"dtype": "float32"}), str(made))
  with pytest.raises(errors.UserError, match="config.cache.dtype: 'float32' there, 'float16' now"):
    cache.cache(config(), str(made))
