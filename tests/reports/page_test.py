"""Pages of runs, from folders as a training leaves them; and what becomes of damaged ones."""

import base64
import io
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

import toy
from fbjax import errors, reports
from fbjax.data import video
from fbjax.evaluation import card as cards
from fbjax.evaluation import motion
from fbjax.evaluation.numbers import Number
from fbjax.reports import page, run
from fbjax.train import goodput
from pages import HOSTILE, check_safe


def write_run(folder, lr=0.5, scale=1.0, protocol=None, **changes):
  """A workdir of two previews and two cards."""
  (folder / "samples").mkdir(parents=True)
  config = toy.config(steps=20) | changes
  given = toy.config(steps=40)
  config["optim"]["lr"] = given["optim"]["lr"] = lr
  (folder / "config.json").write_text(json.dumps(config))
  rows = [
    {"step": s, "loss": scale / s, "grad_norm": 1.0, "lr": lr, "steps_per_s": 2.0}
    for s in range(1, 21)
  ]
  rows += [
    {"step": s, "preview/motion_ratio": r, "preview/loss": r} for s, r in ((10, 0.9), (20, 0.4))
  ]
  rows.append({"step": 20, "seconds/steps": 30.0, "seconds/compiling": 10.0})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  noise = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), np.uint8)
  for step in (10, 20):
    video.write_gif(folder / f"samples/{step:07}.gif", noise[: step // 5], fps=8)
  protocol = {"source": "synthetic", "clips": 8, "metrics": {}} | (protocol or {})
  for steps in (4, 8):
    numbers = {w: {"psnr": Number(scale * steps, 0.5)} for w in ("made", "still")}
    card = cards.make(protocol, {"steps": steps}, numbers, {})
    cards.write(str(folder / f"evaluation/0000020-{steps}.json"), card)
  reports.note_start(str(folder), config, "configs/toy.py", given)
  return folder


def page_of(*folders, ended="") -> str:
  out = folders[0].parent / "page.html"
  reports.write([str(folder) for folder in folders], str(out), ended)
  return out.read_text()


def shown_gifs(text: str) -> list[bytes]:
  return [base64.b64decode(x) for x in re.findall(r'"data:image/gif;base64,([^"]*)"', text)]


def test_a_page_shows_what_a_run_was_and_became(tmp_path):
  made = page_of(write_run(tmp_path / "run"))
  seen = check_safe(made)
  text = seen.text.replace("\N{NBSP}", " ")
  assert "Step 20 of 20" in text and "configs/toy.py" in text
  changed = re.search(r"<tbody>(.*?)</tbody>", made)[1]  # the first table is of what differs
  assert re.sub("<[^>]*>", " ", changed).split() == ["train.steps", "40", "20"]
  assert "jax" in text and run.version("jax") in text
  assert "75.0%" in text and "30.0 s" in text  # of the steps: the goodput
  assert "moved 0.9 times before: it is going static" in text
  assert "4 ± 0.5" in text and "8 ± 0.5 *" in text and "still image" in text
  for title in ("Loss", "Norm of the gradient", "Learning rate", "Motion of samples / of truth"):
    assert f"<figcaption>{title}" in made
  (gif,) = shown_gifs(made)
  assert gif == (tmp_path / "run/samples/0000020.gif").read_bytes()
  details = [name for name, attributes in seen.elements if name == "details" and not attributes]
  assert details and "optim.weight_decay = " in text
  assert "prefers-color-scheme: dark" in made and "width=device-width" in made


def test_a_run_whose_samples_hardly_move_says_so(tmp_path):
  for ratio, hardly in ((0.1, True), (0.9, False)):
    folder = write_run(tmp_path / f"run{ratio}")
    row = {"step": 20, "preview/motion_ratio": ratio}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert ("hardly, so far" in page_of(folder)) == hardly


def test_all_that_is_measured_is_explained():
  still = np.zeros((1, 2, 16, 16, 3), np.uint8)
  assert set(page.WATCHED) == {"loss", *motion.report(still, still)}
  assert tuple(page.PHASES) == goodput.PHASES


def test_nothing_in_a_run_becomes_part_of_the_page(tmp_path):
  named = HOSTILE.replace("/", "_").replace("\x00", "")
  folder = write_run(tmp_path / named, protocol={"source": HOSTILE})
  config = json.loads((folder / "config.json").read_text())
  config["system"]["name"] = config["sampling"]["images"] = HOSTILE
  config["system"][HOSTILE] = config["train"]["steps"] = HOSTILE
  (folder / "config.json").write_text(json.dumps(config))
  start = {"config": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}}
  start["changed"] = [[HOSTILE, HOSTILE, HOSTILE]]
  (folder / "start.json").write_text(json.dumps(start))
  (folder / "changes.jsonl").write_text(json.dumps({"step": HOSTILE, "key": HOSTILE}) + "\n")
  (folder / "metrics.jsonl").write_text(
    json.dumps({"step": 3, "loss": HOSTILE, HOSTILE: 1.0, "lr": 10**400}) + "\n"
  )
  plain = write_run(tmp_path / "plain")
  for folders in ([folder], [folder, plain]):
    seen = check_safe(page_of(*folders, ended=HOSTILE))
    assert "<script>alert" in seen.text


DAMAGE = {
  "metrics.jsonl": b"\xff\x00{\n[1]\n",
  "start.json": b"[[[",
  "changes.jsonl": b"3\n",
  "evaluation/0000020-4.json": b'{"digest": 3}',
  "samples/0000020.gif": b"GIF89a" + bytes(100),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_left_out_and_the_rest_is_shown(tmp_path, name):
  folder = write_run(tmp_path / "run")
  (folder / name).write_bytes(DAMAGE[name])
  seen = check_safe(page_of(folder))
  assert "8\N{NBSP}±\N{NBSP}0.5" in seen.text
  if name not in ("metrics.jsonl", "samples/0000020.gif"):
    assert name.rpartition("/")[2] in seen.text


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(toy.config()))
  reports.leave(str(tmp_path))
  assert "Step 0 of 4" in check_safe((tmp_path / "report.html").read_text()).text


def test_large_samples_are_made_smaller_and_still_move(tmp_path, monkeypatch):
  folder = write_run(tmp_path / "run")
  most = (folder / "samples/0000020.gif").stat().st_size * 2 // 3
  monkeypatch.setattr(reports, "MOVING", most)
  (gif,) = shown_gifs(page_of(folder))
  with Image.open(io.BytesIO(gif)) as moving:
    assert moving.n_frames == 4 and 20 < moving.width < 60
  assert len(gif) <= most
  monkeypatch.setattr(reports, "MOVING", 100)
  made = page_of(folder)
  assert not shown_gifs(made) and "samples/0000020.gif is too large" in made


def test_runs_side_by_side_show_what_differs_and_compare_what_can_be(tmp_path):
  one, two = write_run(tmp_path / "x/one"), write_run(tmp_path / "x/two", lr=0.25, scale=3.0)
  made = page_of(one, two)
  seen = check_safe(made)
  text = seen.text.replace("\N{NBSP}", " ")
  keys = re.findall(r"<th><code>([\w.]*)</code></th>", made)
  assert keys[0] == "optim.lr" and "train.steps" not in keys
  assert len(shown_gifs(made)) == 2 and made.count("<polyline") >= 12
  assert "two: 0000020-4" in text and "12 ± 0.5 *" in text and "not compared" not in text
  other = write_run(tmp_path / "x/other", protocol={"clips": 9})
  text = check_safe(page_of(one, other)).text
  assert "Numbers of different protocols are not compared" in text and "9 clips of" in text
  assert run.names(["a/x", "b/x", "c/y/"]) == ["a/x", "b/x", "c/y"]


def test_a_run_that_dies_leaves_a_page_that_says_of_what(tmp_path):
  folder = write_run(tmp_path / "run")
  with pytest.raises(errors.UserError), reports.leaving(str(folder)):
    raise errors.UserError("loss nan at step 20")
  assert "It ended: loss nan at step 20" in (folder / "report.html").read_text()
  with reports.leaving(str(folder)):
    pass
  assert "It ended" not in (folder / "report.html").read_text()


def test_a_page_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
  folder = write_run(tmp_path / "run")
  (folder / "report.html").mkdir()
  (folder / "start.json").unlink()
  (folder / "start.json").mkdir()
  with caplog.at_level(logging.WARNING, "fbjax"), reports.leaving(str(folder)):
    reports.note_start(str(folder), toy.config())
  assert len(caplog.messages) == 2 and "the run does without it" in caplog.messages[1]
  assert list((folder / "report.html").iterdir()) == []
  reports.leave(str(tmp_path / "nothing"))
  assert len(caplog.messages) == 2


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  folder = write_run(tmp_path / "run")
  (folder / "start.json").unlink()
  monkeypatch.setattr(reports.jax, "process_index", lambda: 1)
  with reports.leaving(str(folder)):
    reports.note_start(str(folder), toy.config())
  assert not (folder / "report.html").exists() and not (folder / "start.json").exists()
