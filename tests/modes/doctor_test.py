"""The doctor on planted faults, on the real clips, and its manifest as data."""

import ast
import json
import logging
import os
import shlex

import numpy as np
import pytest
from data.health_test import scene

import toy
from fbjax import build, errors
from fbjax.data import sources, video
from fbjax.modes import doctor


def config_of(**data):
  config = toy.config()
  return config | {"data": {"frames": 4, "size": 16} | data}


def test_what_is_planted_is_found_and_the_rest_can_be_trained_on(tmp_path):
  folder = tmp_path / "clips"
  (folder / "val").mkdir(parents=True)
  for i in range(3):
    video.write_mp4(folder / f"a cat {'abc'[i]}.mp4", scene(i), fps=8)
  video.write_mp4(folder / "twice.mp4", scene(1), fps=8)
  video.write_mp4(folder / "still.mp4", scene(5)[:1].repeat(8, axis=0), fps=8)
  (folder / "broken.mp4").write_bytes(b"no video")
  video.write_mp4(folder / "val" / "nan.mp4", scene(7), fps=8)
  video.write_mp4(folder / "val" / "a dog.mp4", scene(8), fps=8)
  out = tmp_path / "out"
  run = tmp_path / "run"
  run.mkdir()
  rows = [{"step": i, "clips_per_s": 4.0} for i in range(3)]
  (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
  report = doctor.doctor(config_of(name="folder", path=str(folder)), str(out), str(run))
  rate = report["splits"]["train"]["reading"]["clips_per_s_per_reader"]
  assert report["needed"] == {"clips_per_s": 4.0, "readers": 4.0 / rate}
  train, val = (report["splits"][split] for split in ("train", "val"))
  assert {fault: set(of) for fault, of in train["faults"].items()} == {
    "duplicate": {"twice.mp4"},
    "static": {"still.mp4"},
    "undecodable": {"broken.mp4"},
  }
  assert train["clips"] == 6 and train["healthy"] == 3
  assert val["faults"] == {"caption": {"val/nan.mp4": "the caption is 'nan', a placeholder"}}
  assert train["reading"]["clips_per_s_per_reader"] > 0
  assert json.loads((out / "report.json").read_text())["splits"]["train"]["healthy"] == 3
  text = (out / "report.html").read_text()
  assert text.count("<figure>") == 4 and "data:image/jpeg" in text and "twice.mp4" in text

  table = dict(name="table", path=str(out / "clean/train.csv"), val=str(out / "clean/val.csv"))
  clean = config_of(**table, root=str(folder))
  source = build.make_source(clean, "train")
  assert [source.caption(i) for i in range(len(source))] == ["a cat a", "a cat b", "a cat c"]
  assert source.read(0, np.random.default_rng(0)).video.shape == (4, 16, 16, 3)
  assert [build.make_source(clean, "val").name(0)] == ["val/a dog.mp4"]
  again = doctor.doctor(clean, str(tmp_path / "again"))
  assert not any(of["faults"] for of in again["splits"].values())


def test_the_clean_table_keeps_the_classes_and_the_advice_trains_on_it(shared, tmp_path, caplog):
  config = config_of(
    name="ucf101", path=str(shared / "videos" / "ucf101"), protocol="all", strides=2
  )
  with caplog.at_level(logging.INFO):
    doctor.doctor(config, str(tmp_path))
  told = next(text for text in caplog.messages if text.startswith("To train on"))
  data = ast.literal_eval(shlex.split(told)[-1].removeprefix("--config.data="))
  assert data["frames"] == 4 and data["strides"] == 2
  source, theirs = (
    build.make_source(config | {"data": data}, "train"),
    build.make_source(config, "train"),
  )
  labels = lambda source: {  # noqa: E731
    source.name(i).rpartition("/")[2]: source.read(i, np.random.default_rng(0)).label
    for i in range(len(source))
  }
  assert labels(source) == labels(theirs) and len(set(labels(source).values())) > 1


def test_one_of_two_that_show_the_same_stays_and_so_does_a_file_with_two_captions(tmp_path):
  for name, seed in (("a", 0), ("b", 0), ("c", 1)):
    video.write_mp4(tmp_path / "2M_train" / f"{name}.mp4", scene(seed), fps=8)
  rows = "videoid,name\na,nan\nb,a cat\nc,a dog\nc,a brown dog\n"
  for split in ("train", "val"):
    (tmp_path / f"results_2M_{split}.csv").write_text(rows)
  (tmp_path / "2M_val").symlink_to("2M_train")
  found = doctor.doctor(config_of(name="webvid", path=str(tmp_path)), str(tmp_path / "out"))
  faults = found["splits"]["train"]["faults"]
  assert faults == {"caption": {"a.mp4": "the caption is 'nan', a placeholder"}}
  table = (tmp_path / "out/clean/train.csv").read_text()
  assert table == "file,caption\n2M_train/b.mp4,a cat\n2M_train/c.mp4,a dog\n"


def test_a_name_that_no_table_can_hold_is_a_fault(tmp_path):
  folder = tmp_path / "clips"
  for i, name in enumerate(["a cat.mp4", os.fsdecode(b"a d\xf6g.mp4")]):
    video.write_mp4(tmp_path / "made.mp4", scene(i), fps=8)
    folder.mkdir(exist_ok=True)
    (tmp_path / "made.mp4").rename(folder / name)
  found = doctor.doctor(config_of(name="folder", path=str(folder)), str(tmp_path / "out"))
  assert list(found["splits"]["train"]["faults"]["name"]) == ["a d\udcf6g.mp4"]
  assert (tmp_path / "out/clean/train.csv").read_text() == "file,caption\na cat.mp4,a cat\n"
  assert "a d\\udcf6g.mp4" in (tmp_path / "out/report.html").read_text()


def test_clips_without_a_class_among_others_stay_so_in_the_clean_table(tmp_path):
  for i in range(3):
    video.write_mp4(tmp_path / f"{i}.mp4", scene(i), fps=8)
  told = "file,caption,label\n0.mp4,a cat,0\n1.mp4,a dog,1\n2.mp4,a cow,\n"
  (tmp_path / "clips.csv").write_text(told)
  doctor.doctor(config_of(name="table", path=str(tmp_path / "clips.csv")), str(tmp_path / "out"))
  assert (tmp_path / "out/clean/train.csv").read_text() == told


def test_what_is_left_out_while_listing_is_in_the_report_and_no_healthy_clip_is_told(
  tmp_path, caplog
):
  folder = tmp_path / "clips"
  folder.mkdir()
  (folder / "broken.mp4").write_bytes(b"no video")
  (folder / "captions.csv").write_text("file,caption\nbroken.mp4,a cat\ngone.mp4,a dog\n")
  report = doctor.doctor(config_of(name="folder", path=str(folder)), str(tmp_path / "out"))
  assert (
    len(report["listing"]) == 2
    and "files that are not there, such as gone.mp4" in report["listing"][0]
  )
  assert "gone.mp4" in (tmp_path / "out" / "report.html").read_text()
  assert "No clip of train is healthy" in caplog.text and "To train on" not in caplog.text


def test_the_real_clips_are_healthy_and_the_broken_ones_are_found(shared, tmp_path):
  videos = shared / "videos"
  for data in (
    dict(name="webvid", path=str(videos / "webvid")),
    dict(name="ucf101", path=str(videos / "ucf101")),
    dict(name="msrvtt", path=str(videos / "msrvtt")),
  ):
    report = doctor.doctor(config_of(**data, strides=1), str(tmp_path / data["name"]))
    for split, found in report["splits"].items():
      assert not found["faults"], (data["name"], split)
  table = videos / "corrupt" / "all.csv"
  assert not table.exists()
  found = doctor.doctor(
    config_of(name="folder", path=str(videos / "corrupt"), frames=16), str(tmp_path / "corrupt")
  )["splits"]["train"]
  assert {fault: sorted(of) for fault, of in found["faults"].items()} == {
    "short": ["five_frames.mp4"],
    "truncated": ["truncated_faststart.mp4"],
    "undecodable": ["audio_only.mp4", "text.mp4", "truncated.mp4", "zero_byte.mp4"],
  }


def test_the_time_to_time_reading_grows_with_the_clips_and_no_faster(monkeypatch):
  class Healthy(list):
    passes = 0

    def __iter__(self):
      self.passes += 1
      return super().__iter__()

  entries = [sources.Entry(f"{i}.mp4", "a cat") for i in range(100)]
  source = sources.Videos(".", entries)
  monkeypatch.setattr(source, "read", lambda index, rng: None)
  healthy = Healthy(entry.file for entry in entries)
  assert doctor.speed(source, healthy) and healthy.passes == 1


def test_what_the_doctor_cannot_look_at_is_told(tmp_path):
  with pytest.raises(errors.UserError, match="the doctor looks at video files"):
    doctor.doctor(toy.config(), str(tmp_path))
  with pytest.raises(errors.UserError, match="needs --out"):
    doctor.doctor(toy.config(), None)
  with pytest.raises(errors.UserError, match="has no metrics of a training"):
    doctor.doctor(toy.config(), str(tmp_path), str(tmp_path))
