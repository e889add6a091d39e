"""Tables, figures and the pages that hold them."""

from collections.abc import Sequence
from typing import Any

from studies import intervals

Rows = Sequence[dict[str, Any]]


def values(rows: Rows, score: str, **chosen: Any) -> list[float]:
  """A score of the rows with these fields, in the order of their seeds."""
  some = [row for row in rows if all(row.get(key) == x for key, x in chosen.items())]
  return [row[score] for row in sorted(some, key=lambda row: int(row["seed"]))]


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
        other = values(rows, score, **{down: against, across: column})
        if len(own) == len(other):
          text += f", x{intervals.ratio(own, other)}"
      cells.append(text)
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines)
