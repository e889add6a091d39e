"""The programs of the studies at toy size: what they train, what they score, and that nothing is done twice."""

import pathlib

import jax
import pytest

from fbjax import build, sharding
from studies import bridge, few_steps, jobs, prior, saf, scoring, variations

PROGRAMS = {
  "bridge": (bridge, ["bridge"]),
  "saf": (saf, ["published"]),
  "prior": (prior, ["start"]),
  "few_steps": (few_steps, ["narrow"]),
  "variations": (variations, ["narrow"]),
}


@pytest.fixture
def here(monkeypatch):
  """Jobs run in this process, on one device."""
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  monkeypatch.setattr(build, "make_mesh", lambda config: one)
  started = []

  def start(home, job, cores):
    del cores
    path, _, changes = job.config.partition(":")
    config = jobs.config_of(path, changes)
    for key, value in job.overrides.items():
      group, _, name = key.rpartition(".")
      to = config[group] if group else config
      to[name] = type(to[name])(value)
    started.append(job.name)
    scoring.run(config.to_dict(), f"{home}/{job.name}", job.plans)

  monkeypatch.setattr(jobs, "start", start)
  return started


@pytest.mark.parametrize("name", [
  pytest.param("bridge"),
  pytest.param("saf", marks=pytest.mark.thorough),
  pytest.param("prior", marks=pytest.mark.thorough),
  pytest.param("few_steps", marks=pytest.mark.thorough),
  pytest.param("variations", marks=pytest.mark.thorough),
])  # fmt: skip
def test_a_study_trains_and_scores_its_arms_once(name, here, tmp_path):
  program, arms = PROGRAMS[name]
  command = ["study", f"--home={tmp_path}", f"--arms={','.join(arms)}", "--seeds=0"]
  command += ["--rates=0.005", "--smoke"]
  program.main(command)
  first = list(here)
  (trained,) = [job for job in first if arms[0] in job][:1]
  rows = scoring.scores(str(tmp_path / trained))
  assert len(rows) > 1 and all(row["distance"] > 0 and row["error"] > 0 for row in rows)
  assert (pathlib.Path(tmp_path) / trained / "checkpoints").exists()
  program.main(command)
  assert here == first  # all of it is there
