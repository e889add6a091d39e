"""Study 2: what alignment with a pretrained text-to-video diffusion is worth, step by step of fine-tuning.

  python -m studies.saf --home=runs/study
  python -m studies.saf --smoke --home=/tmp/study

The text-to-video diffusion of configs/study_saf.py is trained once, and packed; the arms go on from it, each at the
learning rate that serves it best with seed 0. What ended before is not done again. Writes
docs/evidence/saf.json, a figure beside it, and its part of docs/evidence.md.
"""

import pathlib
from collections.abc import Sequence

from configs import study_saf
from fbjax.modes import pack
from studies import arms, asked, jobs, report

OWN = asked.common(
  study_saf.ARMS, ["0.002", "0.006"], 1024, "Held-out clips at the end, a quarter before"
)


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  study = asked.study(OWN, "study_saf")
  text = study.job("text", 0, {}, [])
  packed = pathlib.Path(OWN.home) / f"{text.name}_packed"
  if OWN.train and not packed.exists():
    jobs.run(OWN.home, [text], 1)
    pack.pack(None, str(pathlib.Path(OWN.home) / text.name), str(packed))
  train = study.config(OWN.arms[0]).train
  clips = asked.clips(OWN)
  plans = [
    {"step": step, "steps": 8, "clips": max(clips // 4, 8)}
    for step in range(0, train.steps, train.save_every)
  ]
  plans.append({"step": train.steps, "steps": 8, "clips": max(clips // 4, 8)})
  plans += [{"step": train.steps, "steps": nfe, "clips": clips, "random": True} for nfe in (8, 50)]
  from_text = {arm: {} if arm == "scratch" else {"weights": packed} for arm in OWN.arms}
  # Early on the lower rate of two is ahead where the network can paint already, and not in the end.
  rates = arms.tuned(study, OWN.arms, OWN.rates, plans[-2], from_text, whole=True)
  wanted, rows = arms.trained(study, OWN.arms, OWN.seeds, rates, plans, from_text)
  if not OWN.smoke:
    write("saf" + "_large" * OWN.large, rows, wanted, plans)


def write(name: str, rows: list[dict], wanted: list[jobs.Job], plans: list[dict]) -> None:
  """Figures, scores and tables of the study."""
  report.keep(f"{name}.json", rows)
  tuning = [row for row in rows if "distance_random" not in row]
  final = [row for row in rows if "distance_random" in row]
  report.curves(f"{name}_steps.png", tuning, "step", "distance", "8 evaluations", log=False)
  report.sheet(f"{name}.png", *report.shown(OWN.home, report.of_seed(wanted, 0), plans[-2]))
  parts = [
    "Fréchet distance by steps of fine-tuning, and in that of `unaligned`:",
    report.table(tuning, "arm", "step", "distance", "unaligned"),
    "The step at which an arm is as good as `unaligned` at its end, seed by seed:",
    "\n".join(f"- `{arm}`: {steps}" for arm, steps in reached(tuning).items()),
    "At the end, by evaluations:",
    report.table(final, "arm", "steps", "distance", "unaligned"),
    "The same through a random I3D:",
    report.table(final, "arm", "steps", "distance_random", "unaligned"),
    "At 8 evaluations:",
    report.scores([row for row in final if row["steps"] == 8]),
    f"![Distance over fine-tuning](evidence/{name}_steps.png)",
    f"![Given frame, truth and arms](evidence/{name}.png)",
  ]
  report.put(name, "\n\n".join(parts))
  print("\n\n".join(parts))


def reached(rows: list[dict]) -> dict[str, str]:
  """The first step of each arm and seed with the distance that `unaligned` ends at; never is a dash."""
  last = max(row["step"] for row in rows)
  goal = {r["seed"]: r["distance"] for r in rows if (r["arm"], r["step"]) == ("unaligned", last)}
  rows = [row for row in rows if row["seed"] in goal]
  found = {}
  for arm in dict.fromkeys(row["arm"] for row in rows):
    own = [row for row in rows if row["arm"] == arm and row["distance"] <= goal[row["seed"]]]
    steps = [min((r["step"] for r in own if r["seed"] == seed), default=None) for seed in goal]
    found[arm] = ", ".join("-" if step is None else str(step) for step in steps)
  return found


if __name__ == "__main__":
  asked.start(main, OWN, __doc__)
