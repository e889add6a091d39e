"""Shards of healthy clips: what is in them, what goes on after a kill, whatever makes them."""

import importlib.util
import json

import numpy as np
import pytest

from fbjax import build, errors, prepare
from fbjax.data import synthetic, video

CLIPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """Six clips with captions: 1 is no video, 3 stands still, 4 and 5 are both broken."""
  folder = tmp_path_factory.mktemp("clips")
  source = synthetic.Shapes(frames=12, size=48)
  for i in range(CLIPS):
    clip = source.read(i, np.random.default_rng(i)).video
    clip = clip[:1].repeat(12, axis=0) if i == 3 else clip
    video.write_mp4(folder / f"{i}.mp4", clip, fps=12)
    if i in (1, 4, 5):
      (folder / f"{i}.mp4").write_bytes(b"no video")
    (folder / f"{i}.txt").write_text(f"clip {i}")
  return {"data": {"name": "folder", "path": str(folder), "frames": 4, "size": 32, "strides": 1}}


def contents(out):
  return {str(x.relative_to(out)): x.read_bytes() for x in sorted(out.rglob("*")) if x.is_file()}


def test_healthy_clips_are_what_the_ordinary_source_then_reads(config, tmp_path):
  shards = prepare.plan(config, str(tmp_path), size=2)
  assert [shard.count for shard in shards] == [3, 3, 3]  # nothing is held out: no val
  reports = [prepare.prepare_shard(shard) for shard in shards]
  assert [report["healthy"] for report in reports] == [1, 1, 0]
  assert "1.mp4" in reports[0]["faults"]["undecodable"]
  assert list(reports[1]["faults"]["static"]) == ["3.mp4"]
  data = {"name": "webdataset", "path": str(tmp_path / "train"), "frames": 12, "size": 32}
  made = build.make_source({"data": data | {"strides": 1}}, "train")
  assert [made.caption(i) for i in range(len(made))] == ["clip 0", "clip 2"]
  there = build.make_source({"data": config["data"] | {"frames": 12}}, "train")
  for i, index in enumerate((0, 2)):
    ours, theirs = (
      s.read(k, np.random.default_rng(0)).video for s, k in ((made, i), (there, index))
    )
    # Brightness: at this size, colours that are halved once more differ.
    assert np.abs((ours.astype(int) - theirs) @ (0.299, 0.587, 0.114)).mean() < 3
    assert video.frame_rate(*made.content(i)) == 12


def test_a_shard_is_made_once_and_after_a_kill_as_if_there_had_been_none(
  config, tmp_path, monkeypatch
):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  for shard in prepare.plan(config, str(whole), size=3):
    prepare.prepare_shard(shard)
  first, second = prepare.plan(config, str(killed), size=3)
  encoded, seen = prepare.encoded, []

  def dies(source, index):
    seen.append(index)
    if len(seen) == 2:
      raise KeyboardInterrupt
    return encoded(source, index)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(prepare, "encoded", dies)
    prepare.prepare_shard(first)
  assert prepare.missing([first, second]) == [first, second]
  for shard in prepare.missing(prepare.plan(config, str(killed), size=3)):
    prepare.prepare_shard(shard)
  assert prepare.missing([first, second]) == []
  assert contents(killed) == contents(whole)
  monkeypatch.setattr(prepare, "encoded", None)
  assert prepare.prepare_shard(first) == json.loads(contents(whole)["train/00000-of-00002.json"])


def test_shards_may_lie_in_a_bucket(config, tmp_path):
  out = f"file://{tmp_path}/bucket"
  (shard,) = prepare.plan(config, out)
  assert prepare.prepare_shard(shard)["healthy"] == 2 and prepare.missing([shard]) == []
  made = build.make_source({"data": {"name": "webdataset", "path": f"{out}/train"}}, "train")
  assert len(made) == 2


def test_a_folder_of_other_clips_and_data_without_files_are_refused(config, tmp_path):
  prepare.plan(config, str(tmp_path))
  with pytest.raises(
    errors.UserError, match=r"begun with other size: \[32, 32\] there, \[16, 16\]"
  ):
    prepare.plan({"data": config["data"] | {"size": 16}}, str(tmp_path))
  with pytest.raises(errors.UserError, match="only video files are prepared"):
    prepare.plan({"data": {"name": "synthetic"}}, str(tmp_path / "other"))
  with pytest.raises(SystemExit, match="error: give --out"):
    prepare.cli(["prepare", "--config=configs/folder.py"])


def test_without_beam_it_is_told_how_to_get_it(monkeypatch):
  def absent(name):
    raise ImportError(name)

  monkeypatch.setattr(prepare.importlib, "import_module", absent)
  with pytest.raises(errors.UserError, match="pip install -r requirements-prepare.txt"):
    prepare.on_beam([], [])


@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="Apache Beam is not here")
def test_beam_makes_what_the_function_makes(config, tmp_path):
  for shard in prepare.plan(config, f"{tmp_path}/whole", size=2):
    prepare.prepare_shard(shard)
  prepare.on_beam(prepare.plan(config, f"{tmp_path}/beam", size=2), ["--runner=DirectRunner"])
  assert contents(tmp_path / "beam") == contents(tmp_path / "whole")
