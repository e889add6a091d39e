"""Which sampler, grid and first step hold at 4, 8 and 16 evaluations what 50 have.

  python -m studies.few_steps --home=runs/study       # after studies.bridge, whose trained arms it samples

Writes docs/evidence/few_steps.json and its part of docs/evidence.md.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from studies import arms, asked, jobs, report

OWN = flags.FlagValues()  # apart from those of the program, some of which have the same names
HOME = flags.DEFINE_string("home", "runs/study", "Folder of the workdirs", flag_values=OWN)
ARMS = flags.DEFINE_list("arms", ["bridge", "narrow"], "Of studies.bridge", flag_values=OWN)
SEEDS = flags.DEFINE_list("seeds", ["0"], "Which of its seeds", flag_values=OWN)
RATES = flags.DEFINE_list(
  "rates", list(arms.RATES), "Learning rates that studies.bridge tried", flag_values=OWN
)
CLIPS = flags.DEFINE_integer("clips", 256, "Held-out clips", flag_values=OWN)
AT_ONCE = flags.DEFINE_integer("at_once", 2, "Runs at a time", flag_values=OWN)

EVALUATIONS = (4, 8, 16)
FAR = 1 - 5e-5  # of the prior, so near that the state is its noise alone
SAMPLERS: dict[str, dict[str, Any]] = {
  "flow, order 1": {"name": "first_order", "eta": 0.0},
  "flow, order 2 (dbim)": {"name": "dbim", "order": 2},
  "flow, order 3 (dbim)": {"name": "dbim", "order": 3},
  "flow, heun": {"name": "heun"},
  "SDE, order 1": {"name": "first_order", "eta": 1.0},
}
GRIDS: dict[str, dict[str, Any] | None] = {
  "own grid": None,
  "karras": {"name": "karras"},
  "karras from 1 - 5e-5": {"name": "karras", "first": FAR},
}


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  study = arms.Study("study_bridge", [], HOME.value, AT_ONCE.value)
  last = study.config(ARMS.value[0]).train.steps
  tried = {"step": last, "steps": 8, "clips": arms.CHOSEN_BY}
  rates = arms.tuned(study, ARMS.value, RATES.value, tried)
  named = plans(last)
  wanted = [
    study.job(arm, seed, {"optim.lr": rates[arm]}, list(named.values()))
    for arm in ARMS.value
    for seed in SEEDS.value
  ]
  found = jobs.run(HOME.value, wanted, AT_ONCE.value)
  rows = []
  for job in wanted:
    scores = {str(row["plan"]): row for row in found[job.name]}
    for (how, nfe), plan in named.items():
      score = {k: x for k, x in scores[str(plan)].items() if k != "plan"}
      rows.append(
        {"arm": job.arm, "seed": job.overrides["seed"], "how": how, "evaluations": nfe} | score
      )
  report.keep("few_steps.json", rows)
  parts = []
  for arm in ARMS.value:
    own = [row for row in rows if row["arm"] == arm]
    parts += [f"`{arm}`:", report.table(own, "how", "evaluations", "distance")]
  report.put("few_steps", "\n\n".join(parts))
  print("\n\n".join(parts))


def plans(last: int) -> dict[tuple[str, int], dict[str, Any]]:
  """By what is said of them: sampler and grid, and the number of evaluations."""
  found = {}
  for told, sampler in SAMPLERS.items():
    for where, grid in GRIDS.items():
      for nfe in EVALUATIONS:
        times = (nfe + 1) // 2 if sampler["name"] == "heun" else nfe
        found[f"{told}, {where}", nfe] = plan(last, times, sampler, grid)
  published = SAMPLERS["flow, order 1"] | {"start": "published"}
  for nfe in EVALUATIONS:
    found["flow, order 1, own grid, from the prior itself", nfe] = plan(last, nfe, published, None)
  for told in ("flow, order 1", "SDE, order 1"):
    found[f"{told}, own grid", 50] = plan(last, 50, SAMPLERS[told], None)
  return found


def plan(
  last: int, steps: int, sampler: dict[str, Any], grid: dict[str, Any] | None
) -> dict[str, Any]:
  given = {"step": last, "steps": steps, "clips": CLIPS.value, "sampler": sampler}
  return given | ({"grid": grid} if grid else {})


if __name__ == "__main__":
  asked.start(main, OWN, __doc__)
