"""Runs the arms of a study, some at a time, each on cores of its own and in a workdir of its own."""

import concurrent.futures
import importlib
import json
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from studies import scoring


class Job(NamedTuple):
  """An arm with a seed: its name, which is its workdir's, the config, overrides by key, and plans of `scoring`."""

  name: str
  config: str
  overrides: Mapping[str, Any]
  plans: list[scoring.Plan]

  @property
  def arm(self) -> str:
    return self.config.split(":")[1].split("+")[0]


def config_of(path: str, changes: str) -> ConfigDict:
  """The config of a file in configs/ with the changes that are named behind its colon."""
  module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
  return module.get_config(changes)


def run(home: str, jobs: Iterable[Job], at_once: int) -> dict[str, list[dict[str, Any]]]:
  """Runs jobs that have not ended yet; at the first that fails, no further one begins.

  Args:
    home: folder of the workdirs.
    jobs: in their order; what of them was done before is not done again.
    at_once: jobs at a time; above 1 each has its share of this machine's cores, at 0 none is run.

  Returns:
    The scores of each job, by its name.
  """
  if not at_once:
    return {job.name: scoring.scores(f"{home}/{job.name}") for job in jobs}
  cores = sorted(os.sched_getaffinity(0))
  share = max(1, len(cores) // at_once)
  free: queue.Queue[list[int]] = queue.Queue()
  for i in range(at_once):
    free.put(cores[i * share % len(cores) :][:share])

  def work(job: Job) -> list[dict[str, Any]]:
    workdir = pathlib.Path(home) / job.name
    # One without plans is still to be trained.
    if job.plans and ended(job, scoring.scores(str(workdir))):
      return scoring.scores(str(workdir))
    own = free.get()
    try:
      start(home, job, own)
    finally:
      free.put(own)
    return scoring.scores(str(workdir))

  with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    waiting = {job.name: pool.submit(work, job) for job in jobs}
    try:
      return {name: future.result() for name, future in waiting.items()}
    finally:
      pool.shutdown(cancel_futures=True)


def ended(job: Job, rows: list[dict[str, Any]]) -> bool:
  """Whether all of its plans were scored."""
  done = [row["plan"] for row in rows]
  return all(plan in done for plan in job.plans)


def start(home: str, job: Job, cores: list[int]) -> None:
  """Runs one job to its end; what it says goes to a log beside its workdir."""
  workdir = pathlib.Path(home) / job.name
  workdir.parent.mkdir(parents=True, exist_ok=True)
  log = workdir.with_name(f"{workdir.name}.log")
  environment = {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(home) / "compiled")} | os.environ
  command = [sys.executable, "-m", "studies.one", f"--config={job.config}", f"--workdir={workdir}"]
  command += [f"--config.{key}={value}" for key, value in job.overrides.items()]
  command += [f"--plans={json.dumps(job.plans)}", f"--cores={','.join(map(str, cores))}"]
  with log.open("a") as file:
    done = subprocess.run(
      command,
      stdout=file,
      stderr=subprocess.STDOUT,
      env=environment,
      check=False,
    )
  if done.returncode:
    end = "\n".join(log.read_text().splitlines()[-20:])
    raise SystemExit(f"{job.name} ended with {done.returncode}; the end of {log}:\n{end}")
  print(f"{job.name}: done", flush=True)
