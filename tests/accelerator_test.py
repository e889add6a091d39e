"""The accelerator benchmark at toy size, as a user starts it; what it counts is counted by hand."""

import json
import os
import subprocess
import sys

import pytest

import settings

BATCH = 16
NAMES = ("peak", "latte_train")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  out = tmp_path_factory.mktemp("accelerator") / "out.json"
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(settings.CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }
  command = [sys.executable, "-m", "benchmarks.accelerator", "--toy", f"--out={out}"]
  run = subprocess.run(
    [*command, f"--only={','.join(NAMES)},unknown"],
    cwd=settings.ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  written = json.loads(out.read_text())
  said = [json.loads(line) for line in run.stdout.splitlines()]
  assert len(said) == len(written["rows"]) + len(written["missing"])
  return written


def rows(report, name):
  return [row for row in report["rows"] if row["measurement"] == name]


def test_everything_asked_for_is_measured_or_missed(report):
  assert {row["measurement"] for row in report["rows"]} == set(NAMES)
  assert list(report["missing"]) == ["unknown"] and "unknown" in report["missing"]["unknown"]


def test_figures_are_of_one_another(report):
  (peak,) = rows(report, "peak")
  step, profile = rows(report, "latte_train")
  assert 0 < step["mfu"] < 1.5 and step["planned_gb"] > 0
  assert step["mfu"] == pytest.approx(step["tflops"] / peak["tflops"], rel=1e-3)
  assert step["finite"] and step["batch"] == BATCH
  assert step["step_ms"] == min(step["rounds_ms"])
  assert step["clips_a_second"] == pytest.approx(1e3 * BATCH / step["step_ms"], rel=1e-5)
  kernels = profile["kernels"]
  assert 0 < len(kernels) <= 10 and sum(row["share"] for row in kernels) <= 1 + 1e-4
  assert [row["ms"] for row in kernels] == sorted((row["ms"] for row in kernels), reverse=True)


def test_flops_of_a_latte_are_those_of_a_hand_count(report):
  c, frames, places, inputs = 32, 5, 16, 2 * 2 * 48
  tokens = frames * places
  patches, time_up, time_out = tokens * inputs * c, 256 * c, c * c
  block = c * 6 * c + tokens * (3 * c * c + c * c + 2 * c * 4 * c)
  attention = frames * 2 * places**2 * c + places * 2 * frames**2 * c
  head = c * 2 * c + (tokens - places) * c * inputs
  forward = patches + time_up + time_out + 2 * block + attention + head
  # The gradient takes each product twice, but for what only data comes into.
  macs = 3 * forward - patches - time_up
  assert rows(report, "latte_train")[0]["model_tflop"] * 1e12 == pytest.approx(
    2 * BATCH * macs, rel=1e-5
  )
