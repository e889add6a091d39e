"""Study 1: is a bridge better than a diffusion, and which of its parts makes it so?

  python -m studies.bridge --network=latte --home=runs/study       # then --network=unet
  python -m studies.bridge --smoke --home=/tmp/study                # two minutes

Every arm of configs/study_bridge.py is trained at each of the same learning rates with seed 0; the best by the
distance at 8 evaluations is trained with the other seeds. What ended before is not done again. Writes
docs/evidence/bridge_<network>.json, figures beside it, and its part of docs/evidence.md.
"""

from collections.abc import Sequence

from absl import app, flags

from configs import study_bridge
from studies import arms, intervals, jobs, report

HOME = flags.DEFINE_string("home", "runs/study", "Folder of the workdirs")
NETWORK = flags.DEFINE_enum("network", "latte", ["latte", "unet"], "Of all arms")
ARMS = flags.DEFINE_list("arms", list(study_bridge.ARMS), "Which")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the best learning rate")
RATES = flags.DEFINE_list("rates", ["0.002", "0.005", "0.0125"], "Learning rates that all arms try")
CLIPS = flags.DEFINE_integer("clips", 1024, "Held-out clips")
AT_ONCE = flags.DEFINE_integer("at_once", 2, "Trainings at a time")
LARGE = flags.DEFINE_bool("large", False, "Sizes for a GPU")
SMOKE = flags.DEFINE_bool("smoke", False, "Two steps of each; writes nothing but workdirs")

EVALUATIONS = (4, 8, 16, 50)
CHOSEN_BY = 256  # clips, at 8 evaluations


def main(argv: list[str]) -> None:
  del argv
  sizes = [NETWORK.value] * (NETWORK.value == "unet") + ["large"] * LARGE.value
  study = arms.Study("study_bridge", sizes, HOME.value, AT_ONCE.value, SMOKE.value)
  last = study.config(ARMS.value[0]).train.steps
  clips = 8 if SMOKE.value else CLIPS.value
  tried = {"step": last, "steps": 8, "clips": min(CHOSEN_BY, clips)}
  rates = arms.tuned(study, ARMS.value, RATES.value, [tried])
  plans = [tried, *curve(study, tried), *at_the_end(last, clips)]
  wanted = [
    study.job(arm, seed, {"optim.lr": rates[arm]}, plans)
    for seed in SEEDS.value
    for arm in ARMS.value
  ]
  rows = arms.rows(wanted, jobs.run(HOME.value, wanted, AT_ONCE.value))
  print(report.table(best_samplers(rows, last, clips), "arm", "steps", "distance", "diffusion"))


def curve(study: arms.Study, tried: dict) -> list[dict]:
  """The same as what learning rates are chosen by, at the checkpoints before the last."""
  every = study.config(ARMS.value[0]).train.save_every
  return [tried | {"step": step} for step in range(every, tried["step"], every)]


def at_the_end(last: int, clips: int) -> list[dict]:
  """Both ends of the first-order family, at each number of evaluations."""
  return [
    {"step": last, "steps": nfe, "clips": clips, "random": nfe in (8, 50)}
    | {"sampler": {"name": "first_order", "eta": eta}}
    for eta in (0.0, 1.0)
    for nfe in EVALUATIONS
  ]


def best_samplers(rows: Sequence[dict], last: int, clips: int) -> list[dict]:
  """Of each arm and number of evaluations the sampler with the least mean distance."""
  found = []
  final = [row for row in rows if row["step"] == last and "sampler" in row]
  for arm, nfe in sorted({(row["arm"], row["steps"]) for row in final}):
    here = [row for row in final if (row["arm"], row["steps"]) == (arm, nfe)]
    by_eta = {eta: [r for r in here if r["sampler"]["eta"] == eta] for eta in (0.0, 1.0)}
    found += min(
      by_eta.values(), key=lambda rows: intervals.mean([r["distance"] for r in rows]).value
    )
  return found


if __name__ == "__main__":
  app.run(main)
