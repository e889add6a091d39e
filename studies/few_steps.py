"""Which sampler, grid and first step hold at 4, 8 and 16 evaluations what 50 have.

  python -m studies.few_steps --home=runs/study       # after studies.bridge, whose trained arms it samples

Writes docs/evidence/few_steps.json and its part of docs/evidence.md.
"""

from collections.abc import Sequence
from typing import Any

from studies import arms, asked, report

OWN = asked.common(["bridge", "narrow"], arms.RATES, 256, "Held-out clips")

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
  study = asked.study(OWN, "study_bridge")
  last, clips = study.config(OWN.arms[0]).train.steps, asked.clips(OWN)
  tried = {"step": last, "steps": 8, "clips": min(arms.CHOSEN_BY, clips)}
  rates = arms.tuned(study, OWN.arms, OWN.rates, tried)
  named = plans(last, clips)
  if OWN.smoke:
    named = dict(list(named.items())[:2])
  _, rows = arms.trained(study, OWN.arms, OWN.seeds, rates, list(named.values()))
  if not OWN.smoke:
    write(rows, named)


def write(rows: list[dict[str, Any]], named: dict[tuple[str, int], dict[str, Any]]) -> None:
  """Scores and tables of the study."""
  told = [
    row | {"how": how, "evaluations": nfe}
    for (how, nfe), plan in named.items()
    for row in rows
    if plan.items() <= row.items() and ("grid" in row) == ("grid" in plan)
  ]
  report.keep("few_steps.json", told)
  parts = []
  for arm in dict.fromkeys(row["arm"] for row in told):
    own = [row for row in told if row["arm"] == arm]
    parts += [f"`{arm}`:", report.table(own, "how", "evaluations", "distance")]
  report.put("few_steps", "\n\n".join(parts))
  print("\n\n".join(parts))


def plans(last: int, clips: int) -> dict[tuple[str, int], dict[str, Any]]:
  """By what is said of them: sampler and grid, and the number of evaluations."""

  def plan(
    steps: int, sampler: dict[str, Any], grid: dict[str, Any] | None = None
  ) -> dict[str, Any]:
    given = {"step": last, "steps": steps, "clips": clips, "sampler": sampler}
    return given | ({"grid": grid} if grid else {})

  found = {}
  for told, sampler in SAMPLERS.items():
    for where, grid in GRIDS.items():
      for nfe in EVALUATIONS:
        times = (nfe + 1) // 2 if sampler["name"] == "heun" else nfe
        found[f"{told}, {where}", nfe] = plan(times, sampler, grid)
  published = SAMPLERS["flow, order 1"] | {"start": "published"}
  for nfe in EVALUATIONS:
    found["flow, order 1, own grid, from the prior itself", nfe] = plan(nfe, published)
  for told in ("flow, order 1", "SDE, order 1"):
    found[f"{told}, own grid", 50] = plan(50, SAMPLERS[told])
  return found


if __name__ == "__main__":
  asked.start(main, OWN, __doc__)
