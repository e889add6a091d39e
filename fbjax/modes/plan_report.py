"""What --mode=plan prints of a program: a row of `plan.measure` as text."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]
Line = tuple[str, str]


def report(row: Row, config: Mapping[str, Any], price: float | None = None) -> str:
  """Parameters, FLOPs, memory, collectives and times of a program, each on a line.

  Args:
    row: of `plan.measure`.
    config: that it is of.
    price: of one chip for an hour, to add what the whole training costs.
  """
  mesh = " x ".join(f"{name} {n}" for name, n in row["mesh"].items())
  where = f"{row['topology']}, " if row["topology"] else ""
  on = f"{where}{row['devices']} x {row['kind']}, mesh {mesh}, {row['clips']} clips"
  lines = [*work(row), memory(row)]
  if "refused" not in row:
    lines += [*collectives(row), *times(row)]
    if price is not None and row["program"] == "train step":
      lines.append(cost(row, config["train"]["steps"], price))
  if "compile_seconds" in row:
    lines.append(("compiled", f"in {row['compile_seconds']:.0f} s"))
  return "\n".join([f"{row['program']} on {on}", *(f"  {name:11} {text}" for name, text in lines)])


def work(row: Row) -> Iterator[Line]:
  trained, frozen = row["parameters"]["trained"], row["parameters"]["frozen"]
  yield "parameters", f"{trained:,} trained, {frozen:,} frozen"
  again = row["recomputed_flops"] / max(row["model_flops"], 1)
  flop = scaled(row["model_flops"], 1000)
  yield "work", f"{flop}FLOP, and {again:.0%} of it once more to save memory"


def memory(row: Row) -> Line:
  if "refused" in row:
    return "memory", f"does not fit: {row['refused']}"
  limit = row["limit_bytes"]
  of = f" of {scaled(limit)}B" if limit else ""
  if "bytes" not in row:
    return "memory", (
      f"{scaled(row['held_bytes'])}B a device{of} for weights and state alone; what a run needs on top, "
      "only compiling tells"
    )
  held = row["bytes"]
  parts = ", ".join(f"{name} {scaled(n)}B" for name, n in held.items() if name != "total")
  if limit:
    left = limit - held["total"]
    of += f": fits, {scaled(left)}B left" if left >= 0 else f": does not fit by {scaled(-left)}B"
  return "memory", f"{scaled(held['total'])}B a device{of} ({parts})"


def collectives(row: Row) -> Iterator[Line]:
  if "sent" in row:
    sent = [f"{kind} {x['count']} x, {scaled(x['bytes'])}B" for kind, x in row["sent"].items()]
    yield "sent", f"{'; '.join(sent) or 'nothing'} (what arrives at a device)"


def times(row: Row) -> Iterator[Line]:
  """Lines of estimated times; none if the chip's speed is not known, one for a quick plan."""
  if row["least_seconds"]:
    yield "at best", f"{timed(row, row['least_seconds'])}: products alone, at the peak of the chip"
  if "seconds" not in row:
    return
  took = row["seconds"]
  yield (
    "roofline",
    (
      f"{timed(row, took['roofline'])}: products or memory traffic, whichever is longer, of one instruction "
      "after the other"
    ),
  )
  if "cycles" in took:
    yield (
      "cycles",
      (f"{timed(row, took['cycles'])}: by the compiler's own estimates, which are pessimistic"),
    )
  yield "messages", f"{took['messages']:.3g} s at the speed of the links, where no work hides them"


def cost(row: Row, steps: int, price: float) -> Line:
  """The price of all steps at the roofline estimate; of a quick plan, at the chip's peak."""
  if "seconds" in row:
    took, how = row["seconds"]["roofline"], "at the roofline"
  else:
    took, how = row["least_seconds"], "at best"
  return "price", f"{steps * took / 3600 * row['devices'] * price:,.0f} for {steps:,} steps {how}"


def timed(row: Row, took: float) -> str:
  """A time, the clips/s and the MFU that follow: model FLOPs, none recomputed, of the bf16 peak."""
  mfu = row["model_flops"] / row["peak_flops"] / took
  return f"{took:.3g} s, {row['clips'] / took:.3g} clips/s, MFU {mfu:.0%}"


def scaled(x: float, step: int = 1024) -> str:
  """Three digits and a unit's prefix: `1.38 Gi`, or in steps of 1000 `1.38 T`."""
  prefixes = ("", "K", "M", "G", "T", "P")
  power = min(int(math.log(max(x, 1) * step / 999.5, step)), len(prefixes) - 1)
  return f"{x / step**power:.3g} {prefixes[power]}{'i' if step == 1024 and power else ''}"
