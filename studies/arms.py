"""Arms of a study as jobs: the same data, network, steps and tuning for all of them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from studies import jobs, scoring

RATES = ("0.003", "0.008")  # learning rates of the Latte and the UNet, which all arms try
CHOSEN_BY = 128  # clips, at 8 evaluations, that learning rates are chosen by


class Study(NamedTuple):
  """A study and where it is done.

  config: its module in configs/, whose arms are named behind the colon. sizes: further names for all of
  them. home: folder of the workdirs. at_once: trainings at a time; at 0 what ended so far is all there is.
  smoke: two steps of each.
  """

  name: str
  sizes: Sequence[str]
  home: str
  at_once: int
  smoke: bool = False

  def changes(self, arm: str) -> str:
    return "+".join([arm, *self.sizes, *["smoke"] * self.smoke])

  def config(self, arm: str) -> ConfigDict:
    return jobs.config_of(f"configs/{self.name}.py", self.changes(arm))

  def job(
    self, arm: str, seed: int | str, overrides: Mapping[str, Any], plans: list[scoring.Plan]
  ) -> jobs.Job:
    """An arm with a seed; its workdir is named after all that is particular to it."""
    named = {k: x for k, x in overrides.items() if not isinstance(x, pathlib.Path)}
    told = "".join(f"_{key.split('.')[-1]}{of_value(x)}" for key, x in named.items())
    size = "".join(f"_{x}" for x in self.sizes) + "_smoke" * self.smoke
    return jobs.Job(
      f"{self.name}{size}/{arm}{told}_seed{seed}",
      f"configs/{self.name}.py:{self.changes(arm)}",
      {"seed": seed} | overrides,
      plans,
    )


def of_value(x: Any) -> str:
  """A value in the name of a folder."""
  return "-".join(map(str, x)).replace(" ", "-") if isinstance(x, tuple) else str(x)


def tuned(
  study: Study,
  arms: Sequence[str],
  rates: Sequence[str],
  plan: scoring.Plan,
  overrides: Mapping[str, Mapping[str, Any]] | None = None,
  whole: bool = False,
) -> dict[str, str]:
  """The learning rate of each arm whose distance is the least after a third of the steps with seed 0.

  With `whole` after all of them. Without arms whose rates were not all tried yet, which is so only where
  nothing is trained.
  """
  if len(rates) == 1:
    return dict.fromkeys(arms, rates[0])
  shorter = {} if whole else {"train.steps": max(plan["step"] // 3, 1)}
  plan = plan | {"step": shorter.get("train.steps", plan["step"])}
  tried = {
    (arm, rate): study.job(
      *(arm, 0, {**(overrides or {}).get(arm, {}), "optim.lr": rate, **shorter}, [plan])
    )
    for arm in arms
    for rate in rates
  }
  found = jobs.run(study.home, tried.values(), study.at_once)

  distance = {
    key: row["distance"]
    for key, job in tried.items()
    for row in found[job.name]
    if row["plan"] == plan
  }
  ended = [arm for arm in arms if all((arm, rate) in distance for rate in rates)]
  return {arm: min(rates, key=lambda rate: distance[arm, rate]) for arm in ended}


def trained(
  study: Study,
  arms: Sequence[str],
  seeds: Sequence[str],
  rates: Mapping[str, str],
  plans: list[scoring.Plan],
  overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[jobs.Job], list[dict[str, Any]]]:
  """Each arm with each seed at its learning rate, all arms of a seed before the next: see `done`."""
  wanted = [
    study.job(arm, seed, {**(overrides or {}).get(arm, {}), "optim.lr": rates[arm]}, plans)
    for seed in seeds
    for arm in arms
    if arm in rates
  ]
  return done(study, wanted)


def done(study: Study, wanted: Sequence[jobs.Job]) -> tuple[list[jobs.Job], list[dict[str, Any]]]:
  """Runs jobs; they and their `rows`. Where nothing is trained, those of which every plan was scored."""
  found = jobs.run(study.home, wanted, study.at_once)
  wanted = [job for job in wanted if jobs.ended(job, found[job.name])]
  if not wanted:
    raise SystemExit(f"nothing of {study.name} has ended in {study.home} yet, with these plans")
  return wanted, rows(wanted, found)


def rows(
  wanted: Sequence[jobs.Job], found: Mapping[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
  """Scores with their plans and what the job was, one flat row each."""
  flat = []
  for job in wanted:
    own = {"job": job.name, "arm": job.arm} | {
      k: x for k, x in job.overrides.items() if not isinstance(x, pathlib.Path)
    }
    flat += [
      own | row["plan"] | {name: x for name, x in row.items() if name != "plan"}
      for row in found[job.name]
      if row["plan"] in job.plans
    ]
  return flat
