"""Tables, figures and the pages that hold them."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from fbjax import build, tracker
from studies import intervals, jobs, scoring

PAGES = pathlib.Path(__file__).resolve().parent.parent / "docs" / "evidence"

Rows = Sequence[dict[str, Any]]


def values(rows: Rows, score: str, **chosen: Any) -> list[float]:
  """A score of the rows with these fields, in the order of their seeds."""
  some = [row for row in rows if all(row.get(key) == x for key, x in chosen.items())]
  return [row[score] for row in sorted(some, key=lambda row: int(row["seed"]))]


def ratio(
  rows: Rows, score: str, over: dict[str, Any], under: dict[str, Any]
) -> intervals.Interval | None:
  """Of a score of two kinds of rows, over the seeds that both have; None where there is none."""
  each = [
    {r["seed"]: r[score] for r in rows if all(r.get(key) == x for key, x in chosen.items())}
    for chosen in (over, under)
  ]
  seeds = sorted(each[0].keys() & each[1].keys())
  return intervals.ratio(*([one[seed] for seed in seeds] for one in each)) if seeds else None


def table(rows: Rows, down: str, across: str, score: str, against: str | None = None) -> str:
  """Markdown: means of a score over seeds with their intervals, and in brackets the ratio to one row's."""
  names = list(dict.fromkeys(row[down] for row in rows))
  columns = sorted({row[across] for row in rows})
  lines = [f"| {down} | " + " | ".join(map(str, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
  for name in names:
    cells = []
    for column in columns:
      own = values(rows, score, **{down: name, across: column})
      text = str(intervals.mean(own)) if own else ""
      if own and against and name != against:
        found = ratio(rows, score, *({down: x, across: column} for x in (name, against)))
        text += f", x{found}" if found else ""
      cells.append(text)
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def curves(file: str, rows: Rows, across: str, score: str, title: str, log: bool = True) -> None:
  """A figure of a score over training or evaluations: a line for each arm, its interval as a bar."""
  figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
  for i, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
    places = sorted({row[across] for row in rows if row["arm"] == arm})
    found = [intervals.mean(values(rows, score, arm=arm, **{across: x})) for x in places]
    middle = np.array([x.value for x in found])
    ends = np.array([[x.value - x.low, x.high - x.value] for x in found]).T
    ends = None if np.isnan(ends).any() else np.minimum(ends, 0.9 * middle)
    axes.errorbar(places, middle, ends, label=arm, marker="osv^DXp*"[i % 8], capsize=3)
  axes.set(xlabel=across, ylabel=score, title=title, yscale="log")
  if log:
    axes.set_xscale("log")
    axes.set_xticks(sorted({row[across] for row in rows}), minor=False)
    axes.get_xaxis().set_major_formatter(ticker.ScalarFormatter())
    axes.get_xaxis().set_minor_formatter(ticker.NullFormatter())
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, ncols=2)
  figure.savefig(PAGES / file, dpi=110)
  plt.close(figure)


def scores(rows: Rows) -> str:
  """Markdown: further scores of each arm, means over seeds."""
  names = [
    n for n in ("error", "agree", "left_behind", "motion_ratio", "first_frame_psnr") if n in rows[0]
  ]
  lines = ["| arm | lr | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
  for arm in dict.fromkeys(row["arm"] for row in rows):
    rate = next(row for row in rows if row["arm"] == arm)["optim.lr"]
    cells = [intervals.figure(intervals.mean(values(rows, name, arm=arm)).value) for name in names]
    lines.append(f"| {arm} | {rate} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def shown(
  home: str, chosen: Sequence[jobs.Job], plan: scoring.Plan
) -> tuple[list[dict[str, np.ndarray]], list[str]]:
  """Rows of a sheet and their captions: the first held-out clips, and what some jobs make of them."""
  path, _, changes = chosen[0].config.partition(":")
  source = build.make_source(jobs.config_of(path, changes).to_dict(), "val")
  truth = [source[i].video for i in range(scoring.SHOWN)]
  rows = [{"given": clip[:1], "truth": clip} for clip in truth]
  for job in chosen:
    made = np.load(scoring.shown(f"{home}/{job.name}", plan))
    for row, clip in zip(rows, made, strict=True):
      row[job.arm] = clip
  return rows, [source.caption(i) for i in range(scoring.SHOWN)]


def of_seed(chosen: Sequence[jobs.Job], seed: int) -> list[jobs.Job]:
  return [job for job in chosen if str(job.overrides["seed"]) == str(seed)]


def sheet(file: str, rows: Sequence[dict[str, np.ndarray]], captions: Sequence[str]) -> None:
  """A picture of clips: given frame, truth, and what each arm makes of it, every other frame."""
  some = [{name: x[::2] if len(x) > 1 else x for name, x in row.items()} for row in rows]
  tracker.write_png(PAGES / file, tracker.contact_sheet(some, captions, cell=32))


def keep(file: str, rows: Rows) -> None:
  """The scores behind a table, as JSON, a line each."""
  lines = [json.dumps({name: rounded(x) for name, x in row.items()}) for row in rows]
  (PAGES / file).write_text("[\n" + ",\n".join(lines) + "\n]\n")


def rounded(x: Any) -> Any:
  return float(f"{x:.5g}") if isinstance(x, float) else x


def put(name: str, text: str) -> None:
  """Puts text into docs/evidence.md between the two marks of this name."""
  page = PAGES.parent / "evidence.md"
  whole = page.read_text()
  begin, end = (f"<!-- {edge} {name} -->" for edge in ("begin", "end"))
  before, rest = whole.split(begin)
  _, after = rest.split(end)
  page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")
