"""The line of progress."""

import math
from collections.abc import Mapping


def progress_line(step: int, steps: int, row: Mapping[str, float]) -> str:
  """One line on a step; what the row does not have is left out.

  `step 120/900  loss 0.0123  grad 0.52  lr 3.0e-04  9.1 steps/s  146 clips/s  data 2%  ETA 1m25s
  MFU 41%`
  """
  parts = [f"step {step}/{steps}", f"loss {number(row['loss'], 4)}"]
  if "grad_norm" in row:
    parts.append(f"grad {number(row['grad_norm'])}")
  if "lr" in row:
    parts.append(f"lr {row['lr']:.1e}")
  parts += [f"{number(row['steps_per_s'])} steps/s", f"{number(row['clips_per_s'])} clips/s"]
  parts += [f"data {row['data_wait']:.0%}", f"ETA {duration((steps - step) / row['steps_per_s'])}"]
  if "mfu" in row:
    parts.append(f"MFU {row['mfu']:.0%}")
  if row.get("replaced"):
    parts.append(f"{number(row['replaced'])} clips replaced")
  return "  ".join(parts)


def time_table(seconds: Mapping[str, float]) -> str:
  """One line for each phase of a run, with its share of their sum, which is the last line.

  `  data wait        0.1 s    0.1%`; that of the steps is the goodput.
  """
  whole = max(sum(seconds.values()), 1e-9)
  lines = []
  for name, spent in [*seconds.items(), ("together", whole)]:
    mark = "  (goodput)" if name == "steps" else ""
    lines.append(f"  {name.replace('_', ' '):<10}{spent:10.1f} s{spent / whole:8.1%}{mark}")
  return "\n".join(lines)


def number(x: float, digits: int = 3) -> str:
  """So many significant digits, and no less than the whole part: 0.0123, 9.1, 146, 20480."""
  return f"{x:.0f}" if 10 ** (digits - 1) <= abs(x) < math.inf else f"{x:.{digits}g}"


def duration(seconds: float) -> str:
  """`3h05m`, `4m20s` or `12s`."""
  if not math.isfinite(seconds):
    return "?"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h{minutes:02}m"
  return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
