"""Study 3: the still image or a coarse video as the start of a bridge, and as mere condition.

  python -m studies.prior --home=runs/study
  python -m studies.prior --smoke --home=/tmp/study

The regression of configs/study_prior.py is trained once; the arms go on from it. What ended before is not done again.
Writes docs/evidence/prior.json and its part of docs/evidence.md.
"""

import pathlib
from collections.abc import Sequence

from configs import study_prior
from studies import arms, asked, jobs, report

OWN = asked.common(study_prior.ARMS, arms.RATES, 1024, "Held-out clips")


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  study = asked.study(OWN, "study_prior")
  clips = asked.clips(OWN)
  last = study.config(OWN.arms[0]).train.steps
  own = study.config("coarse").train.steps
  coarse = study.job("coarse", 0, {}, [{"step": own, "clips": clips, "random": True}])
  found = jobs.run(OWN.home, [coarse], min(study.at_once, 1))
  run = pathlib.Path(OWN.home) / coarse.name
  behind = {arm: {} if arm == "still" else {"prior_run": run} for arm in OWN.arms}
  tried = {"step": last, "steps": 8, "clips": min(arms.CHOSEN_BY, clips)}
  rates = arms.tuned(study, OWN.arms, OWN.rates, tried, behind)
  plans = [tried] + [
    {"step": last, "steps": nfe, "clips": clips, "random": True} for nfe in (4, 8, 50)
  ]
  wanted, rows = arms.trained(study, OWN.arms, OWN.seeds, rates, plans, behind)
  if not OWN.smoke:
    write("prior" + "_large" * OWN.large, arms.rows([coarse], found), rows, wanted, plans)


def write(
  name: str, coarse: list[dict], rows: list[dict], wanted: list[jobs.Job], plans: list[dict]
) -> None:
  """Scores, a figure and tables of the study."""
  report.keep(f"{name}.json", [*coarse, *rows])
  final = [row for row in rows if "distance_random" in row]
  report.sheet(f"{name}.png", *report.shown(OWN.home, report.of_seed(wanted, 0), plans[2]))
  (regression,) = coarse
  parts = [
    f"The regression by itself: distance {regression['distance']:.3g}, error {regression['error']:.3g} of the still "
    "image's.",
    "Fréchet distance by evaluations, and in that of `still`:",
    report.table(final, "arm", "steps", "distance", "still"),
    "The same through a random I3D:",
    report.table(final, "arm", "steps", "distance_random", "still"),
    "At 8 evaluations:",
    report.scores([row for row in final if row["steps"] == 8]),
    f"![Given frame, truth and arms](evidence/{name}.png)",
  ]
  report.put(name, "\n\n".join(parts))
  print("\n\n".join(parts))


if __name__ == "__main__":
  asked.start(main, OWN, __doc__)
