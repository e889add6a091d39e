"""One thing varied at a time: a bridge's noise, what the published training does otherwise, and the scenes.

  python -m studies.variations --group=noise --home=runs/study      # after studies.bridge, whose rates it takes

Each variation is trained as the arm of studies.bridge that it is of, at that arm's learning rate. Writes
docs/evidence/variations_<group>.json and its part of docs/evidence.md.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from studies import arms, asked, intervals, report


class Variation(NamedTuple):
  """What is said of it, the arm that it is of, and overrides of its config."""

  told: str
  arm: str
  overrides: dict[str, Any]


# Noise of the arms `narrow` and `bridge` of studies.bridge.
NARROW, WIDE = 0.02, 50.0


def narrow(variance: float) -> dict[str, Any]:
  """As `common.narrow_bridge`: the narrower, the nearer to the prior motion is decided."""
  if variance == NARROW:
    return {}  # which is trained already
  shift = 30.0 / variance
  return {
    "bridge.variance": variance,
    "objective.shift": shift,
    "sampling.grid.shift": shift,
  }


SCENES = {
  "one direction, plain": {"motions": ("right",), "backgrounds": ("plain",)},
  "one direction, all backgrounds": {"motions": ("right",), "backgrounds": ()},
  "all motions, plain": {"motions": (), "backgrounds": ("plain",)},
  "all motions, all backgrounds": {"motions": (), "backgrounds": ()},
}
GROUPS = {
  "noise": [
    *(
      Variation(f"gmax, beta_max {x:g}", "bridge", {"bridge.beta_max": x} if x != WIDE else {})
      for x in (1.0, 5.0, WIDE, 200.0)
    ),
    *(
      Variation(f"constant, variance {x:g}", "narrow", narrow(x))
      for x in (0.005, NARROW, 0.1, 0.5, 2.0)
    ),
  ],
  "published": [
    Variation("as here", "narrow", {}),
    Variation("decay of all weights, biases among them", "narrow", {"optim.decays": "all"}),
    Variation("no warm-up of the average", "narrow", {"train.ema_warmup": False}),
    Variation("without an average", "narrow", {"train.ema_decay": 0.0}),
  ],
  "scenes": [
    Variation(f"{told}: {arm}", arm, {f"data.{key}": x for key, x in scene.items()})
    for told, scene in SCENES.items()
    for arm in ("diffusion", "bridge", "narrow")
  ],
}

OWN = asked.common(("diffusion", "bridge", "narrow"), arms.RATES, 512, "Held-out clips")
flags.DEFINE_enum("group", "noise", list(GROUPS), "Which", flag_values=OWN)


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  study = asked.study(OWN, "study_bridge")
  group = [x for x in GROUPS[OWN.group] if x.arm in OWN.arms][: 2 if OWN.smoke else None]
  named = sorted({variation.arm for variation in group})
  last, clips = study.config(named[0]).train.steps, asked.clips(OWN)
  tried = {"step": last, "steps": 8, "clips": min(arms.CHOSEN_BY, clips)}
  rates = arms.tuned(study, named, OWN.rates, tried)
  plans = [{"step": last, "steps": nfe, "clips": clips} for nfe in (4, 8)]
  wanted = {}
  for seed in OWN.seeds:
    for told, arm, overrides in group:
      if arm in rates:
        job = study.job(arm, seed, {"optim.lr": rates[arm]} | overrides, plans)
        wanted[job.name] = told, job
  _, rows = arms.done(study, [job for _, job in wanted.values()])
  rows = [{"variation": wanted[row["job"]][0]} | row for row in rows]
  if not OWN.smoke:
    name = f"variations_{OWN.group}"
    report.keep(f"{name}.json", rows)
    report.put(name, table(rows))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
  """Markdown: distance and error of each variation."""
  lines = ["| | distance, 4 | distance, 8 | error, 8 | direction, 8 |", "|---|---|---|---|---|"]
  for told in dict.fromkeys(row["variation"] for row in rows):
    cells = [
      str(intervals.mean(report.values(rows, score, variation=told, steps=nfe)))
      for score, nfe in (("distance", 4), ("distance", 8), ("error", 8))
    ]
    agree = [
      r["agree"] for r in rows if r["variation"] == told and r["steps"] == 8 and "agree" in r
    ]
    cells.append(f"{sum(agree) / len(agree):.0%}" if agree else "")
    lines.append(f"| {told} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


if __name__ == "__main__":
  asked.start(main, OWN, __doc__)
