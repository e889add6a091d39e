"""Study 3: the still image or a coarse video as the start of a bridge, and as mere condition.

  python -m studies.prior --home=runs/study
  python -m studies.prior --smoke --home=/tmp/study

The regression of configs/study_prior.py is trained once; the arms go on from it. What ended before is not done again.
Writes docs/evidence/prior.json and its part of docs/evidence.md.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from configs import study_prior
from studies import arms, jobs, report

OWN = flags.FlagValues()  # apart from those of the program, some of which have the same names
HOME = flags.DEFINE_string("home", "runs/study", "Folder of the workdirs", flag_values=OWN)
ARMS = flags.DEFINE_list("arms", list(study_prior.ARMS), "Which", flag_values=OWN)
SEEDS = flags.DEFINE_list(
  "seeds", ["0", "1", "2"], "Seeds of the best learning rate", flag_values=OWN
)
RATES = flags.DEFINE_list(
  "rates", ["0.002", "0.005", "0.0125"], "Learning rates that all arms try", flag_values=OWN
)
CLIPS = flags.DEFINE_integer("clips", 1024, "Held-out clips", flag_values=OWN)
AT_ONCE = flags.DEFINE_integer("at_once", 2, "Trainings at a time", flag_values=OWN)
LARGE = flags.DEFINE_bool("large", False, "Sizes for a GPU", flag_values=OWN)
SMOKE = flags.DEFINE_bool(
  "smoke", False, "Two steps of each; writes nothing but workdirs", flag_values=OWN
)


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  study = arms.Study("study_prior", ["large"] * LARGE.value, HOME.value, AT_ONCE.value, SMOKE.value)
  clips = 8 if SMOKE.value else CLIPS.value
  last = study.config(ARMS.value[0]).train.steps
  own = study.config("coarse").train.steps
  coarse = study.job("coarse", 0, {}, [{"step": own, "clips": clips, "random": True}])
  found = jobs.run(HOME.value, [coarse], 1)
  run = pathlib.Path(HOME.value) / coarse.name
  behind = {arm: {} if arm == "still" else {"prior_run": run} for arm in ARMS.value}
  tried = {"step": last, "steps": 8, "clips": min(arms.CHOSEN_BY, clips)}
  rates = arms.tuned(study, ARMS.value, RATES.value, tried, behind)
  plans = [tried] + [
    {"step": last, "steps": nfe, "clips": max(clips // share, 8), "random": True}
    for nfe, share in ((4, 1), (8, 1), (50, 4))
  ]
  wanted = [
    study.job(arm, seed, behind[arm] | {"optim.lr": rates[arm]}, plans)
    for seed in SEEDS.value
    for arm in ARMS.value
  ]
  rows = arms.rows(wanted, jobs.run(HOME.value, wanted, AT_ONCE.value))
  if not SMOKE.value:
    write("prior" + "_large" * LARGE.value, arms.rows([coarse], found), rows, wanted, plans)


def write(
  name: str, coarse: list[dict], rows: list[dict], wanted: list[jobs.Job], plans: list[dict]
) -> None:
  """Scores, a figure and tables of the study."""
  report.keep(f"{name}.json", [*coarse, *rows])
  final = [row for row in rows if "distance_random" in row]
  report.sheet(f"{name}.png", *report.shown(HOME.value, report.of_seed(wanted, 0), plans[2]))
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
  if "--help" in sys.argv:
    sys.exit(f"{__doc__}\n{OWN.get_help()}")
  main(sys.argv)
