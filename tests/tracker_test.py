import json
import logging
import types

import numpy as np
import pytest

from fbjax import tracker


def test_a_line_of_progress_tells_everything(monkeypatch, tmp_path, caplog):
  monkeypatch.setattr(tracker, "peak_flops", lambda device: 1e12)
  clock = iter([0.0, 10.0])
  monkeypatch.setattr(tracker, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
  log = tracker.Tracker(str(tmp_path), steps=400, batch_size=16, flops=8 * 2e11)
  log.waited(2.5)
  with caplog.at_level(logging.INFO, "fbjax"):
    log.write(20, {"loss": 0.25, "replaced": 3})
  log.close()
  assert caplog.messages[-1] == (
    "step 20/400  loss 0.25000  2.00 steps/s  32.0 clips/s  data 25%  ETA 3m10s  MFU 40%"
    "  3 clips replaced"
  )


def test_metrics_are_rows_of_json_and_tensorboard_events(tmp_path):
  log = tracker.Tracker(str(tmp_path), steps=10, batch_size=2)
  log.write(5, {"loss": 0.5})
  log.write(10, {"loss": 0.25})
  log.picture("sheet", 10, np.zeros((4, 4, 3), np.uint8))
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


@pytest.mark.parametrize(
  ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (3725, "1h02m"), (float("inf"), "?")]
)
def test_durations_read_well(seconds, text):
  assert tracker.duration(seconds) == text


def test_a_contact_sheet_shows_every_frame_of_every_block():
  given = np.full((1, 8, 8, 3), 10, np.uint8)
  truth = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (20, 30)])
  sheet = tracker.contact_sheet([{"given": given, "truth": truth}] * 2, ["one", "two"], cell=16)
  colours = {int(v) for v in np.unique(sheet[..., 0])}
  assert {10, 20, 30} <= colours
  # Two rows of one 16x16 tile each.
  assert (sheet == 30).all(-1).sum() == 2 * 16 * 16
