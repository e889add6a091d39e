import importlib.machinery
import json
import logging
import os
import pathlib
import struct
import sys
import types

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from tensorboardX.proto import event_pb2

from fbjax import errors, hardware, tracker
from fbjax.tracker import plots, progress, tensorboard


def test_a_line_of_progress_tells_everything(monkeypatch, tmp_path, caplog):
  monkeypatch.setattr(hardware, "chip", lambda device: hardware.Chip(1e12, 1e9, 1e9, 1e9))
  clock = iter([0.0, 10.0])
  monkeypatch.setattr(tracker, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
  log = tracker.Tracker(str(tmp_path), steps=400, batch_size=16)
  log.computed(20 * 8 * 2e11)
  log.waited(2.5)
  with caplog.at_level(logging.INFO, "fbjax"):
    log.write(20, {"loss": 0.01234, "grad_norm": 0.5221, "lr": 3e-4, "replaced": 3})
  log.close()
  assert caplog.messages[-1] == (
    "step 20/400  loss 0.01234  grad 0.522  lr 3.0e-04  2 steps/s  32 clips/s  data 25%  ETA 3m10s"
    "  MFU 40%  3 clips replaced"
  )


@pytest.mark.parametrize(
  ("x", "text"),
  [(9.1234, "9.12"), (146.4, "146"), (20480.0, "20480"), (2.0, "2"), (1e-7, "1e-07"), (0.0, "0")],
)
def test_numbers_have_three_digits_or_are_whole(x, text):
  assert progress.number(x) == text


def test_a_line_leaves_out_what_is_not_known():
  row = {"loss": 1.0, "steps_per_s": 1.0, "clips_per_s": 8.0, "data_wait": 0.0}
  assert progress.progress_line(1, 3, row) == (
    "step 1/3  loss 1  1 steps/s  8 clips/s  data 0%  ETA 2s"
  )


def test_metrics_are_rows_of_json_and_tensorboard_events(tmp_path):
  log = tracker.Tracker(str(tmp_path), steps=10, batch_size=2)
  log.write(5, {"loss": 0.5})
  log.write(10, {"loss": 0.25})
  log.preview(10, np.zeros((4, 4, 3), np.uint8), {})
  log.close()
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(row["step"], row["loss"]) for row in rows] == [(5, 0.5), (10, 0.25)]
  assert "mfu" not in rows[0]  # nobody knows the peak of a CPU
  assert list((tmp_path / "tensorboard").iterdir())
  assert (tmp_path / "loss.png").stat().st_size > 1000


def test_a_resumed_run_overwrites_the_steps_it_repeats(tmp_path):
  log = tracker.Tracker(str(tmp_path), steps=10, batch_size=2)
  for step in (2, 4, 6):
    log.write(step, {"loss": float(step)})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "lo')  # cut off by a kill
  log = tracker.Tracker(str(tmp_path), steps=10, batch_size=2, start=4)
  log.write(6, {"loss": 60.0})
  log.close()
  rows = tracker.read_metrics(tmp_path / "metrics.jsonl")
  assert [(row["step"], row["loss"]) for row in rows] == [(2, 2.0), (4, 4.0), (6, 60.0)]


def events(workdir) -> list[event_pb2.Event]:
  """What TensorBoard would read."""
  found = []
  for file in sorted((workdir / "tensorboard").iterdir()):
    content = file.read_bytes()
    while content:
      (length,) = struct.unpack("<Q", content[:8])
      found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
      content = content[12 + length + 4 :]
  return found


def test_tensorboard_gets_scalars_pictures_and_where_a_run_was_resumed(tmp_path):
  log = tracker.Tracker(str(tmp_path), steps=10, batch_size=2, start=4)
  log.write(6, {"loss": 0.5})
  log.preview(6, np.zeros((4, 5, 3), np.uint8), {})
  # At once: a killed run has them too.
  assert events(tmp_path)[1].session_log.status == event_pb2.SessionLog.START
  assert events(tmp_path)[1].step == 5
  scalars, picture = events(tmp_path)[2:]
  values = {value.tag: value.simple_value for value in scalars.summary.value}
  assert scalars.step == 6 and values["loss"] == 0.5 and values["clips_per_s"] > 0
  assert (picture.summary.value[0].image.height, picture.summary.value[0].image.width) == (4, 5)
  log.close()


STRANGE = {
  "binary": b"\x00\xff\xfe\x80 not text\n",
  "other json": b'[1, 2]\n"text"\n3\nnull\n',
  "no step": b'{"loss": 1.0}\n',
  "no loss": b'{"step": 1}\n{"step": 2, "loss": null}\n{"step": 3, "loss": "high"}\n',
  "strange steps": b'{"step": "1"}\n{"step": true}\n{"step": 1.5}\n',
  "not finite": b'{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n',
  "empty": b"",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_metrics_cost_nothing_and_are_kept_beside(tmp_path, kind, caplog):
  (tmp_path / "metrics.jsonl").write_bytes(STRANGE[kind])
  with caplog.at_level(logging.WARNING, "fbjax"):
    log = tracker.Tracker(str(tmp_path), steps=10, batch_size=2, start=4)
    log.write(5, {"loss": 0.5})
    log.close()
  rows = tracker.read_metrics(tmp_path / "metrics.jsonl")
  assert (rows[-1]["step"], rows[-1]["loss"]) == (5, 0.5)
  assert (tmp_path / "loss.png").exists()
  if kind in ("binary", "other json", "no step", "strange steps"):
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == STRANGE[kind]
    assert len(caplog.messages) == 1
  else:
    assert not caplog.messages


@pytest.mark.parametrize("name", ["metrics.jsonl", "loss.png", "tensorboard"])
def test_what_is_in_the_way_of_a_log_is_told_once_and_the_rest_is_written(tmp_path, name, caplog):
  """A folder where a file is wanted, and the other way round."""
  if name == "tensorboard":
    (tmp_path / name).write_text("")
  else:
    (tmp_path / name).mkdir()
    (tmp_path / name / "inside").write_text("")
  with caplog.at_level(logging.WARNING, "fbjax"):
    log = tracker.Tracker(str(tmp_path), steps=10, batch_size=2)
    for step in (5, 10):
      log.write(step, {"loss": 0.5})
      log.preview(step, np.zeros((4, 4, 3), np.uint8), {})
    log.close()
  told = [message for message in caplog.messages if f" {name} (" in message]
  assert len(told) == 1 and "training goes on without it" in told[0]
  if name != "metrics.jsonl":
    assert len(tracker.read_metrics(tmp_path / "metrics.jsonl")) == 2
  if name != "tensorboard":
    assert len(events(tmp_path)) == 6


class Broken:
  """A writer of which everything fails, as on a full disk."""

  def __init__(self, *args):
    pass

  def scalars(self, step, row):
    raise OSError(28, os.strerror(28))

  picture = scalars

  def close(self):
    raise OSError("handle is closed")


def test_a_writer_whose_disk_is_full_is_told_of_once(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(tensorboard, "TensorBoard", Broken)
  with caplog.at_level(logging.WARNING, "fbjax"):
    log = tracker.Tracker(str(tmp_path), steps=1000, batch_size=2)
    for step in range(1, 40):
      log.write(step, {"loss": 0.5})
    log.close()
  assert caplog.messages == [
    "Could not write tensorboard (OSError: [Errno 28] No space left on device): training goes on without it."
  ]
  assert len(tracker.read_metrics(tmp_path / "metrics.jsonl")) == 39


@pytest.mark.parametrize(
  ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (3725, "1h02m"), (float("inf"), "?")]
)
def test_durations_read_well(seconds, text):
  assert tracker.duration(seconds) == text


COLOURS = [(10, 90, 200), (200, 20, 90), (20, 200, 10)]  # which no letter has


def test_a_contact_sheet_shows_every_frame_of_every_block():
  given, *truth = (np.broadcast_to(np.uint8(c), (8, 8, 3)) for c in COLOURS)
  rows = [{"given": given[None], "truth": np.stack(truth)}] * 2
  sheet = tracker.contact_sheet(rows, ["one", "two"], cell=16)
  # Two rows of one 16x16 tile each.
  assert [(sheet == np.uint8(c)).all(-1).sum() for c in COLOURS] == [2 * 16 * 16] * 3


@pytest.mark.parametrize("cell", [32, 64, 104])
def test_a_long_caption_stays_within_its_sheet_and_off_the_frames(cell):
  caption = "A LARGE WHITE STAR moves quickly to the lower left " * 3 + "x" * 1000
  clip = np.full((2, 8, 8, 3), COLOURS[0], np.uint8)
  sheet = tracker.contact_sheet([{"": clip}] * 2, [caption, "кот"], cell=cell)
  assert (sheet == clip[0, 0, 0]).all(-1).sum() == 2 * 2 * cell**2
  ink = (sheet < 128).all(-1)
  assert ink.any() and not ink[:, :6].any() and not ink[:, -6:].any()
  one, two = (tracker.contact_sheet([{"": clip}], [x], cell=cell) for x in ("кот", caption))
  assert len(two) - len(one) == 2 * 16  # three lines, and one


def test_captions_have_letters_of_more_than_one_script():
  """A letter that a font does not have is a box, as all others."""
  clip = np.zeros((2, 8, 8, 3), np.uint8)
  cat, box = (tracker.contact_sheet([{"": clip}], [x]) for x in ("кот", "ток"))
  assert (cat != box).any()


def test_a_script_that_the_own_font_lacks_is_written_in_a_font_of_the_machine(
  monkeypatch, tmp_path
):
  clip = np.zeros((2, 8, 8, 3), np.uint8)

  def told_apart() -> bool:
    plots.font_of.cache_clear()
    one, two = (tracker.contact_sheet([{"": clip}], [x]) for x in ("a ⌒", "a ⌓"))
    return (one != two).any()

  (tmp_path / "no.ttf").write_text("no font")
  fonts = [str(tmp_path / "no.ttf")]
  monkeypatch.setattr(font_manager, "findSystemFonts", lambda: fonts)
  assert not told_apart()
  fonts.append(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSansMono.ttf")
  assert told_apart()
  plots.font_of.cache_clear()


def test_a_moving_sheet_shows_one_frame_of_every_block_at_a_time():
  given, first, second = (np.broadcast_to(np.uint8(c), (8, 8, 3)) for c in COLOURS)
  rows = [{"given": given[None], "truth": np.stack([first, second])}] * 5
  moving = tracker.moving_sheet(rows, list("abcde"), cell=16)
  counts = [[(frame == np.uint8(c)).all(-1).sum() for c in COLOURS] for frame in moving]
  tiles = 5 * 16 * 16
  assert counts == [[tiles, tiles, 0], [tiles, 0, tiles]]
  assert moving.shape[2] > moving.shape[1] * 0.7  # in two columns


class StandIn(types.ModuleType):
  """wandb's interface, as far as it is used; a run keeps what it is told, and only steps that go on."""

  def __init__(self):
    super().__init__("wandb")
    self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    self.runs: dict[str, types.SimpleNamespace] = {}
    self.Image = lambda image: ("image", image.shape)
    self.Video = lambda file, format: ("video", format, pathlib.Path(file).read_bytes())

  def init(self, *, project, name, id, resume, config, dir):
    assert resume == "allow" and os.path.isdir(dir)
    run = self.runs.setdefault(id, types.SimpleNamespace(id=id, rows={}, starts=0, ended=False))
    run.starts, run.project, run.called, run.config = run.starts + 1, project, name, config

    def log(row, step):
      if step >= max(run.rows, default=0):
        run.rows.setdefault(step, {}).update(row)

    run.log, run.finish = log, lambda: setattr(run, "ended", True)
    return run


@pytest.fixture
def stand_in(monkeypatch):
  made = StandIn()
  monkeypatch.setitem(sys.modules, "wandb", made)
  monkeypatch.delitem(sys.modules, "fbjax.tracker.wandb", raising=False)
  for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
    monkeypatch.delenv(name, raising=False)
  yield made
  sys.modules.pop("fbjax.tracker.wandb", None)


def test_wandb_gets_scalars_pictures_and_clips_and_goes_on_in_the_same_run(tmp_path, stand_in):
  workdir = tmp_path / "one"
  workdir.mkdir()
  (workdir / "config.json").write_text('{"seed": 3}')
  (workdir / "0000004.gif").write_bytes(b"GIF")

  def log(start, steps):
    log = tracker.Tracker(
      str(workdir), steps=9, batch_size=2, start=start, written="tensorboard,wandb"
    )
    for step in steps:
      log.write(step, {"loss": float(step + 10 * start)})
    picture = np.zeros((4, 5, 3), np.uint8)
    log.preview(steps[-1], picture, {"motion_ratio": 0.5}, workdir / "0000004.gif")
    log.close()

  log(0, (2, 4))
  (run,) = stand_in.runs.values()
  assert (run.project, run.called, run.config, run.ended) == ("fbjax", "one", {"seed": 3}, True)
  assert run.rows[4]["loss"] == 4 and run.rows[4]["preview/motion_ratio"] == 0.5
  assert run.rows[4]["preview"] == ("image", (4, 5, 3))
  assert run.rows[4]["preview_moving"] == ("video", "gif", b"GIF")
  log(2, (3, 4, 6))  # from the checkpoint of step 2
  assert list(stand_in.runs.values()) == [run] and run.starts == 2
  assert list(run.rows) == [2, 4, 6] and run.rows[6]["loss"] == 26
  assert len(events(workdir)) > 8
  log(0, (1,))  # a training that begins anew is another run
  assert len(stand_in.runs) == 2


def test_a_wandb_that_fails_costs_its_metrics_alone(tmp_path, stand_in, caplog):
  stand_in.init = None
  (tmp_path / "config.json").write_text("{}")
  with caplog.at_level(logging.WARNING, "fbjax"):
    log = tracker.Tracker(str(tmp_path), steps=9, batch_size=2, written="wandb")
    log.write(1, {"loss": 1.0})
    log.close()
  assert len(caplog.messages) == 1 and caplog.messages[0].startswith("Could not write wandb")
  assert len(tracker.read_metrics(tmp_path / "metrics.jsonl")) == 1
  assert not (tmp_path / "tensorboard").exists()


class Kept:
  """A writer of one's own."""

  rows: list = []

  def __init__(self, workdir, start):
    self.rows.append((workdir, start))

  def scalars(self, step, row):
    self.rows.append((step, row["loss"]))

  def close(self):
    self.rows.append("closed")


def test_a_writer_of_ones_own_is_named_by_its_module(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "own_code", types.SimpleNamespace(Kept=Kept))
  tracker.check_installed("own_code:Kept")
  log = tracker.Tracker(str(tmp_path), steps=9, batch_size=2, start=3, written="own_code:Kept")
  log.write(4, {"loss": 1.0})
  log.close()
  assert Kept.rows == [(str(tmp_path), 3), (4, 1.0), "closed"]


@pytest.mark.parametrize(
  ("written", "sentence"),
  [
    ("wandb,tensorboard", "pip install wandb"),
    ("mlflow", "expected some of tensorboard, wandb, or a class of your own as module:Class"),
    ("nobody_has_this:Writer", "cannot be imported"),
    ("json:Writer", "cannot be imported"),
  ],
)
def test_a_writer_that_is_not_there_is_one_sentence(written, sentence, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(errors.UserError, match=sentence) as told:
    tracker.check_installed(written)
  assert "config.train.writers names" in str(told.value)
