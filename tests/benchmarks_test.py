"""Benchmarks at toy size: what they tell of is there, and belongs together."""

import json

import numpy as np
import pytest

import fbjax
from benchmarks import beside_diffusers, kept, sizes


def run(benchmark, tmp_path, *flags):
  out = tmp_path / "out.json"
  benchmark.main([benchmark.__name__, *flags, f"--out={out}"])
  return json.loads(out.read_text())


@pytest.mark.thorough
def test_twice_the_clips_are_twice_the_work_of_step_and_sampler(tmp_path, capsys):
  options = ("--systems=latte", "--axes=clips", "--factors=0.5,1", "--calls=1")
  found = run(sizes, tmp_path, "--toy", *options)
  rows = {(row["program"], row["clips"]): row for row in found["rows"]}
  assert rows.keys() == {(x, n) for x in ("step", "sampler") for n in (8, 16)}
  for row in rows.values():
    rate = row["flops"] / row["seconds"]
    assert row["mfu"] == pytest.approx(rate / found["peak"])
    assert row["bytes"] > row["temporary_bytes"] > 0
  for x in found["exponents"]:
    # Some weights are met once, however many clips there are; memory has those of all clips.
    assert x["flops"] == pytest.approx(1, abs=0.01) and 0 < x["bytes"] < 1
  assert capsys.readouterr().out.count("growth") == len(found["exponents"]) == 2


CALLS = {"cogvideox": ["forward", "gradient"], "vae_video": ["encode", "decode"]}
CALLS["vae_image"] = CALLS["vae_video"]


@pytest.mark.parametrize("name", [
  "cogvideox", pytest.param("vae_video", marks=pytest.mark.thorough), "vae_image"
])  # fmt: skip
def test_networks_are_those_of_diffusers_and_times_side_by_side(tmp_path, capsys, name):
  found = run(beside_diffusers, tmp_path, "--toy", f"--networks={name}", "--calls=1")
  assert [row["call"] for row in found["rows"]] == CALLS[name]
  for row in found["rows"]:
    assert 0 < row["difference"] < 2e-4
    assert row["ratio"] == pytest.approx(row["seconds"] / row["diffusers_seconds"])
  assert len(capsys.readouterr().out.splitlines()) == len(found["rows"])


def test_samples_that_are_kept_are_not_made_again(tmp_path, monkeypatch):
  monkeypatch.setattr(kept, "BATCH", 2)
  net = fbjax.load("zoo/quickstart")
  inputs = {"video": np.arange(3 * 2 * 3, dtype=np.uint8).reshape(3, 2, 1, 1, 3)}
  sampled = []

  def sample(params, frozen, batch, keys):
    sampled.append(len(keys))
    return batch["video"], np.ones(len(keys), bool)

  def videos(steps):
    return kept.samples(net, sample, inputs, f"{tmp_path}/{kept.name(net, {'steps': steps})}")

  assert np.array_equal(videos(1), inputs["video"]) and sampled == [2, 1]
  sorted(tmp_path.iterdir())[0].unlink()
  assert np.array_equal(videos(1), inputs["video"]) and sampled[2:] == [2]
  videos(2)
  assert sampled[3:] == [2, 1]
