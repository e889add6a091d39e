"""Study 1: is a bridge better than a diffusion, and which of its parts makes it so?

  python -m studies.bridge --network=latte --home=runs/study       # then --network=unet
  python -m studies.bridge --smoke --home=/tmp/study                # two minutes

Every arm of configs/study_bridge.py is trained for a third of the steps at each of the same learning rates with seed 0;
the best by the distance at 8 evaluations is trained to the end with all seeds. What ended before is not done again. Writes
docs/evidence/bridge_<network>.json, figures beside it, and its part of docs/evidence.md.
"""

from collections.abc import Sequence

from absl import flags

from configs import study_bridge
from studies import arms, asked, jobs, report

OWN = asked.common(study_bridge.ARMS, arms.RATES, 1024, "Held-out clips")
flags.DEFINE_enum("network", "latte", ["latte", "unet"], "Of all arms", flag_values=OWN)


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  study = asked.study(OWN, "study_bridge", ["unet"] if OWN.network == "unet" else [])
  last = study.config(OWN.arms[0]).train.steps
  clips = asked.clips(OWN)
  tried = {"step": last, "steps": 8, "clips": min(arms.CHOSEN_BY, clips)}
  rates = arms.tuned(study, OWN.arms, OWN.rates, tried)
  plans = [tried, *curve(study, tried), *at_the_end(last, clips)]
  wanted, rows = arms.trained(study, OWN.arms, OWN.seeds, rates, plans)
  if not OWN.smoke:
    write(f"bridge_{'_'.join([OWN.network, *['large'] * OWN.large])}", rows, wanted, last)


def write(name: str, rows: list[dict], wanted: list[jobs.Job], last: int) -> None:
  """Figures, scores and tables of the study."""
  report.keep(f"{name}.json", rows)
  flow = [row for row in rows if row["step"] == last and eta(row) == 0]
  training = [row for row in rows if "sampler" not in row]
  report.curves(f"{name}_steps.png", training, "step", "distance", "8 evaluations", log=False)
  report.curves(f"{name}_evaluations.png", flow, "steps", "distance", f"step {last}")
  report.sheet(f"{name}.png", *shown(wanted, last))
  parts = ["Fréchet distance by evaluations, and in that of `diffusion`:"]
  parts.append(report.table(flow, "arm", "steps", "distance", "diffusion"))
  parts.append("What each change does to that distance, as a ratio of the second to the first:")
  parts.append(changes(flow))
  seen = [row for row in flow if "distance_random" in row]
  if {row["arm"] for row in seen} == {row["arm"] for row in flow}:
    parts.append("The same through a random I3D:")
    parts.append(report.table(seen, "arm", "steps", "distance_random", "diffusion"))
  parts.append("50 evaluations of the reverse SDE (eta 1) in place of the flow:")
  sde = [row for row in rows if row["step"] == last and eta(row) == 1]
  parts.append(report.table(sde, "arm", "steps", "distance", "diffusion"))
  parts.append("At 8 evaluations:")
  parts.append(report.scores([row for row in flow if row["steps"] == 8]))
  parts.append(f"![Distance over training](evidence/{name}_steps.png)")
  parts.append(f"![Distance over evaluations](evidence/{name}_evaluations.png)")
  parts.append(f"![Given frame, truth and arms](evidence/{name}.png)")
  report.put(name, "\n\n".join(parts))
  print("\n\n".join(parts))


# Pairs of arms that differ in one thing.
CHANGES = (
  ("diffusion", "times", "times of the published bridge, and v for noise"),
  ("times", "aligned", "target: psi, which names the prior"),
  ("aligned", "bridge", "state: it holds the prior"),
  ("diffusion", "narrow_times", "times next to the prior, v for noise, weighted as z0"),
  ("narrow_times", "narrow_residual", "target: z0 - z1 in place of v"),
  ("narrow_residual", "narrow", "state: it holds the prior, and velocity for z0 - z1"),
)


def changes(rows: list[dict]) -> str:
  """Markdown: for each of `CHANGES` the ratio of distances, by evaluations."""
  columns = sorted({row["steps"] for row in rows})
  lines = ["| from | to | what changes | " + " | ".join(map(str, columns)) + " |"]
  lines.append("|---" * (len(columns) + 3) + "|")
  for one, other, told in CHANGES:
    found = [
      report.ratio(rows, "distance", *({"arm": arm, "steps": nfe} for arm in (other, one)))
      for nfe in columns
    ]
    if all(found):
      lines.append(f"| {one} | {other} | {told} | " + " | ".join(f"x{x}" for x in found) + " |")
  return "\n".join(lines)


def eta(row: dict) -> float | None:
  return row["sampler"]["eta"] if "sampler" in row else None


def shown(wanted: list[jobs.Job], last: int) -> tuple[list[dict], list[str]]:
  """Rows of a sheet: the first held-out clips, their truth, and what each arm of seed 0 makes of them."""
  first = report.of_seed(wanted, 0)
  plan = next(p for p in first[0].plans if p.get("sampler", {}).get("eta") == 0 and p["steps"] == 8)
  return report.shown(OWN.home, first, plan)


def curve(study: arms.Study, tried: dict) -> list[dict]:
  """The same as what learning rates are chosen by, at the checkpoints before the last."""
  every = study.config(OWN.arms[0]).train.save_every
  return [tried | {"step": step} for step in range(every, tried["step"], every)]


# Evaluations, and eta: probability flow or reverse SDE.
FINAL = ((4, 0.0), (8, 0.0), (16, 0.0), (50, 0.0), (50, 1.0))


def at_the_end(last: int, clips: int) -> list[dict]:
  """Of as many clips each, for a Fréchet distance is the larger the fewer they are."""
  return [
    {"step": last, "steps": nfe, "clips": clips, "random": nfe in (8, 50)}
    | {"sampler": {"name": "first_order", "eta": eta}}
    for nfe, eta in FINAL[: 1 if OWN.smoke else None]
  ]


if __name__ == "__main__":
  asked.start(main, OWN, __doc__)
