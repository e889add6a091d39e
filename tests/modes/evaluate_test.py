"""Evaluations of networks and of folders of videos, and what they refuse."""

import logging
import os
import pathlib
import subprocess
import sys

import multiprocess_test
import numpy as np
import pytest

import settings
import toy
from fbjax import errors
from fbjax.data import video
from fbjax.evaluation import card, fvd, networks
from fbjax.modes import evaluate, port


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return toy.wild(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def clips():
  rng = np.random.default_rng(0)
  first = rng.integers(0, 256, (4, 1, 4, 4, 3), np.uint8).repeat(8, axis=2).repeat(8, axis=3)
  return np.concatenate([np.roll(first, 2 * t, axis=3) for t in range(9)], axis=1)


def write(folder, clips):
  folder.mkdir()
  for i, clip in enumerate(clips):
    video.write_mp4(folder / f"{i:02}.mp4", clip, fps=8)
  return str(folder)


def test_a_run_is_measured_the_same_whatever_the_batch(run, capsys):
  options = {"clips": 5, "seed": 3}
  one = evaluate.evaluate(None, run, **options)
  written = card.read(f"{run}/evaluation/0000004.json")
  assert "0000004" in pathlib.Path(run, "report.html").read_text()
  assert written["digest"] == one["digest"]
  assert "still image" in capsys.readouterr().out
  # Of other settings the card lies beside it; the same once more is the same card.
  for steps in (1, None):
    evaluate.evaluate(None, run, steps=steps, **options)
  files = sorted(file.name for file in pathlib.Path(run, "evaluation").iterdir())
  assert files == ["0000004-2.json", "0000004.json"]
  assert card.read(f"{run}/evaluation/0000004.json")["digest"] == one["digest"]
  smaller = toy.config()
  smaller["sampling"]["batch_size"] = 3
  other = evaluate.evaluate(smaller, run, **options)
  for name, (value, _) in one["numbers"]["made"].items():
    assert other["numbers"]["made"][name][0] == pytest.approx(value, abs=0.02), name
  # Another seed, sampler's steps or checkpoint is another subject, under the same protocol.
  for change in ({"seed": 4}, {"steps": 1}, {"step": 2}, {"ema": False}):
    changed = evaluate.evaluate(None, run, out=f"{run}/x.json", **(options | change))
    assert changed["protocol"] == one["protocol"] and changed["subject"] != one["subject"]
    assert changed["numbers"]["made"] != one["numbers"]["made"]


def test_a_folder_of_videos_is_measured_by_its_pairs(tmp_path, clips):
  truth = write(tmp_path / "truth", clips)
  still = write(tmp_path / "still", clips[:, :1].repeat(9, axis=1))
  same = evaluate.evaluate(None, None, made=truth, truth=truth)["numbers"]["made"]
  assert same["psnr"][0] == 100 and same["motion_ratio"][0] == 1
  bad = evaluate.evaluate(None, None, made=still, truth=truth)["numbers"]["made"]
  assert bad["psnr"][0] < 30 and bad["motion_ratio"][0] < 0.1 and bad["static"][0] == 1
  # Of other names they have no pairs; the sets are compared.
  other = write(tmp_path / "other", clips)
  for file in (tmp_path / "other").iterdir():
    file.rename(file.with_stem(f"x{file.stem}"))
  sets = evaluate.evaluate(None, None, made=other, truth=truth)["numbers"]["made"]
  assert "psnr" not in sets and sets["motion_ratio"][0] == 1
  alone = evaluate.evaluate(None, None, made=other)["numbers"]
  assert set(alone) == {"made"}


def test_a_pair_is_measured_by_the_first_frames_of_a_longer_truth(tmp_path, clips):
  """What a clip was told is the first frame of its truth."""
  longer = np.concatenate([clips, 255 - clips[:, ::-1]], axis=1)
  truth, made = write(tmp_path / "truth", longer), write(tmp_path / "made", clips)
  found = evaluate.evaluate(None, None, made=made, truth=truth)
  assert found["numbers"]["made"]["first_frame_psnr"][0] > 30
  assert found["numbers"]["made"]["psnr"][0] > 30 and found["protocol"]["paired"] is True
  (tmp_path / "made/00.mp4").rename(tmp_path / "made/stray.mp4")
  with pytest.raises(
    errors.UserError, match=r"3 of the 4 .*stray.mp4 has none: give each its pair"
  ):
    evaluate.evaluate(None, None, made=made, truth=truth)


def test_true_videos_of_another_size_are_told(tmp_path, clips, caplog):
  caplog.set_level(logging.INFO, "fbjax")
  truth, made = write(tmp_path / "truth", clips), write(tmp_path / "made", clips)
  evaluate.evaluate(None, None, made=made, truth=truth)
  assert "scaled" not in caplog.text
  wide = clips[:1].repeat(2, axis=2).repeat(3, axis=3)
  video.write_mp4(tmp_path / "truth/02.mp4", wide[0])
  evaluate.evaluate(None, None, made=made, truth=truth)
  told = f"1 of the 4 videos of {truth} are not of the 32x32 of those of {made}, such as 02.mp4 of 64x96: they are"
  assert told in caplog.text


# argv: compilation cache, folder, process, processes, port
COMMAND = """
import functools, sys
sys.path[:0] = ["tests", "tests/modes"]
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
folder, process, processes, port = sys.argv[2], *map(int, sys.argv[3:])
if processes > 1:
  jax.distributed.initialize(f"127.0.0.1:{port}", processes, process, heartbeat_timeout_seconds=30)
import numpy as np
from fbjax import errors
from fbjax import processes as joined
from fbjax.evaluation import metrics
from fbjax.modes import evaluate
joined.join()
look = lambda batch: batch.clips[:, :, 0, 0].reshape(len(batch.clips), -1) / 7
distance = functools.partial(metrics.distance, "fvd", unbiased=False)
metrics.opened = lambda *_: ({"fvd": metrics.Metric(look, distance)}, {"fvd": {"i3d": "x"}})
of = lambda name, **options: evaluate.evaluate(None, out=f"{folder}/{name}{processes}.json", **options)
of("run", workdir=f"{folder}/run", clips=5)
of("pairs", workdir=None, made=f"{folder}/made", truth=f"{folder}/truth")
of("sets", workdir=None, made=f"{folder}/few", truth=f"{folder}/truth")
for bad in ("damaged", "missing"):
  try:
    of(bad, workdir=None, made=f"{folder}/{bad}")
  except errors.UserError as error:
    print(error, file=sys.stderr)
"""


def start(folder, process=0, processes=1, port=0):
  environment = os.environ | {"XLA_FLAGS": settings.FAST_COMPILATION, "JAX_PLATFORMS": "cpu"}
  argv = [str(settings.CACHE), *map(str, (folder, process, processes, port))]
  return subprocess.Popen(
    [sys.executable, "-c", COMMAND, *argv],
    cwd=settings.ROOT,
    env=environment,
    stdout=folder.with_name(f"{folder.name}{process}.out").open("w"),
    stderr=folder.with_name(f"{folder.name}{process}.log").open("w"),
  )


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_two_processes_write_the_card_of_one_and_hear_of_each_others_failures(
  tmp_path, run, clips, capfd
):
  folder = tmp_path / "all"
  folder.mkdir()
  (folder / "run").symlink_to(run)
  for name, some in (
    ("truth", clips),
    ("made", clips[::-1]),
    ("few", clips[1:]),
    ("damaged", clips),
  ):
    write(folder / name, some)
  for file in (folder / "few").iterdir():
    file.rename(file.with_stem(f"x{file.stem}"))
  (folder / "damaged/03.mp4").write_bytes(b"no video")  # the second process's
  multiprocess_test.finish(folder, start(folder))
  port = multiprocess_test.free_port()
  multiprocess_test.finish(folder, *(start(folder, i, 2, port) for i in range(2)))
  for name in ("run", "pairs", "sets"):
    one, two = (card.read(f"{folder}/{name}{n}.json") for n in (1, 2))
    assert one["numbers"] == two["numbers"] and one["digest"] == two["digest"]
    assert one["numbers"]["made"]["fvd"][1] > 0
  first, second = ((tmp_path / f"all{i}.log").read_text() for i in range(2))
  for told in (first, second):
    assert "damaged/03.mp4" in told and "missing: there is no such folder" in told
  assert (tmp_path / "all0.out").read_text().count("still image") == 3
  assert "still image" not in (tmp_path / "all1.out").read_text()


def test_what_cannot_be_measured_is_told(tmp_path, run, clips):
  made = write(tmp_path / "made", clips)
  (tmp_path / "none").mkdir()

  def told(match, config=None, workdir=None, **options):
    with pytest.raises(errors.UserError, match=match):
      evaluate.evaluate(config, workdir, **options)

  told("holds 4 videos, and 5 are asked for", made=made, clips=5)
  told("holds 4 videos, and 2,048 are asked for", made=made, fvd_protocol="framebridge")
  told("--fvd=x: expected one of styleganv", made=made, fvd_protocol="x")
  told("no video files in .*none", made=str(tmp_path / "none"))
  told("--made=.*nowhere: there is no such folder", made=str(tmp_path / "nowhere"))
  told("leave out what says how to sample", made=made, steps=4)
  told("give both", truth=made, workdir=run)
  told("asks for 2,000,000 clips, and there are 1,000,000", workdir=run, clips=2_000_000)
  told("has 9 frames of 32x32, and config.data 3 of 16x16", toy.config(), made=made)
  told("--compare takes two cards", compare=["a.json"])
  video.write_mp4(tmp_path / "made" / "09.mp4", clips[0, :5], fps=8)
  told("09.mp4 has 5 frames of 32x32, and the first video has 9", made=made)


@pytest.mark.thorough
def test_fvd_looks_through_weights_that_were_ported(
  tmp_path, clips, monkeypatch, caplog, one_device
):
  torch = pytest.importorskip("torch")
  monkeypatch.setenv("FBJAX_METRICS", str(tmp_path / "metrics"))
  truth = write(tmp_path / "truth", clips[:2])
  caplog.set_level("INFO", "fbjax")
  assert "fvd" not in evaluate.evaluate(None, None, made=truth, truth=truth)["numbers"]["made"]
  assert "--mode=port --network=i3d --weights=<file>" in caplog.text

  leaves = port.table.layout("i3d", {}).leaves({"classes": 400})
  rng = np.random.default_rng(0)

  def draw(leaf):
    size = leaf.shape
    if len(size) == 1:
      return np.abs(rng.normal(1, 0.1, size)) if leaf.key.endswith(("weight", "var")) else 0
    return rng.normal(0, np.prod(size[1:]) ** -0.5, size)

  tensors = {
    leaf.key: torch.tensor(np.broadcast_to(draw(leaf), leaf.shape).astype(np.float32))
    for leaf in leaves
  }
  torch.save(tensors, tmp_path / "i3d.pt")
  port.port_network("i3d", [str(tmp_path / "i3d.pt")], None)
  assert networks.is_there("i3d")
  found = evaluate.evaluate(None, None, made=truth, truth=truth)
  assert found["protocol"]["metrics"].keys() == {"fvd"}
  under = found["protocol"]["metrics"]["fvd"]
  assert under["protocol"] == "styleganv" and len(under["i3d"]) == 32
  numbers = found["numbers"]
  assert 0 <= numbers["made"]["fvd"][0] < 1e-6 < numbers["still"]["fvd"][0]
  with pytest.raises(errors.UserError, match="FVD needs clips of 9 frames or more"):
    fvd.check_frames(8)
  with pytest.raises(errors.UserError, match="already holds"):
    port.port_network("i3d", [str(tmp_path / "i3d.pt")], None)
