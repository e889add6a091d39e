"""The page of one run, or of several side by side."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fbjax import markup, tracker
from fbjax import workdir as workdir_lib
from fbjax.evaluation import card as cards
from fbjax.evaluation import motion
from fbjax.markup import Html, tag
from fbjax.reports import curves
from fbjax.reports.curves import Curve
from fbjax.reports.run import Run

ABSENT = "–"
WATCHED = {
  "loss": "Mean loss of clips that are held out, always at the same times with the same noise.",
  "motion_ratio": "How much the samples move, in how much the true clips do: 1 is as much, 0 is a still image.",
  "static_share": "Samples in which nothing moves, among those whose truth does.",
  "first_frame_psnr": "dB, of the first frame against the given image: 30 and more look alike.",
  "colour_drift": "Grey levels of 255 by which the mean colour of a sample wanders, beyond the truth's.",
  "flicker": "Grey levels of brightness that one frame gains and the next takes back, beyond the truth's.",
}
PHASES = {
  "starting": "imports, networks, weights that are started from",
  "restoring": "reading the checkpoint that it went on from",
  "compiling": "the step, once for each shape of batches",
  "data_wait": "for a batch, while the devices had nothing to do",
  "saving": "what checkpoints kept the steps from",
  "reporting": "metrics, and previews with what they compile",
  "steps": "what is left: its share is the goodput",
}
STYLE = """
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.share { display: inline-block; height: .6rem; border-radius: .2rem; background: var(--c0); margin-left: .5rem; }
.ended { border-left: 4px solid var(--c1); padding: .4rem .8rem; background: var(--card); }
.meaning { display: block; min-width: 11rem; max-width: 34rem; font-size: 13px; color: var(--faint); }
"""


def page(runs: Sequence[Run]) -> str:
  """One HTML file that needs no other."""
  title = " beside ".join(run.name for run in runs)
  sections = {
    "": (summary,),
    "What differs": (differences,),
    "Samples": (samples,),
    "Curves": (plots,),
    "Do the samples move?": (watchdog,),
    "Measured on held-out clips": (measured,),
    "Where the time went": (times,),
    "Made by": (made_by,),
    "Config": (configs,),
  }
  body = [tag("h1", title)]
  for heading, parts in sections.items():
    content = markup.join(part(runs) for part in parts)
    if content:
      body += [tag("h2", heading)] if heading else []
      body.append(content)
  return markup.page(title, *body, style=curves.STYLE + STYLE)


def named(runs: Sequence[Run]) -> list[Html]:
  """The names of runs in their colours, as the heads of columns; nothing of one alone."""
  if len(runs) == 1:
    return [Html()]
  return [tag("b", run.name, style=f"color: {curves.colour(i)}") for i, run in enumerate(runs)]


def heads(runs: Sequence[Run]) -> list[object]:
  """The head of a table with a column for each run; empty for a single run."""
  return [] if len(runs) == 1 else ["", *named(runs)]


def explained(name: object, meaning: str) -> Html:
  """A name with what it means below."""
  return markup.join([name, tag("span", meaning, class_="meaning")])


def summary(runs: Sequence[Run]) -> Html:
  """For each run its step, loss, system and device, the error that ended it, and notes."""
  parts = []
  for run, name in zip(runs, named(runs), strict=True):
    step = max((row["step"] for row in run.rows), default=0)
    steps = run.config.get("train", {}).get("steps")
    told = [f"Step {step:,} of {steps:,}" if isinstance(steps, int) else f"Step {step:,}"]
    if len(losses := tracker.curve(run.rows, "loss")[1]):
      told.append(f"loss {tracker.number(losses[-1])}")
    told.append(run.config["system"].get("name", ""))
    told += [run.start[key] for key in ("config", "device") if run.start.get(key)]
    line = " · ".join(str(x) for x in told if x)
    parts.append(tag("p", name, " " if name else "", run.folder, tag("br"), line))
    if run.ended:
      parts.append(tag("p", f"It ended: {run.ended}", class_="ended"))
    parts += [tag("p", note, class_="faint") for note in run.notes]
  return markup.join(parts)


def differences(runs: Sequence[Run]) -> Html:
  """Of one run, what differs from what its config's file says; of several, from each other."""
  if len(runs) > 1:
    flat = [workdir_lib.flatten(run.config) for run in runs]
    keys = sorted(set().union(*flat))
    rows = [
      (tag("code", key), *(value(of.get(key, ABSENT)) for of in flat))
      for key in keys
      if any(of.get(key, ABSENT) != flat[0].get(key, ABSENT) for of in flat)
    ]
    if not rows:
      return tag("p", "Their configs are the same.")
    return markup.table(["", *named(runs)], rows)
  (run,) = runs
  parts, changed = [], run.start.get("changed")
  if isinstance(changed, list):
    file = run.start.get("config") or "the config"
    if changed:
      rows = [(tag("code", key), value(was), value(now)) for key, was, now in changed]
      parts.append(markup.table(["", file, "this run"], rows))
    else:
      parts.append(tag("p", f"Nothing: it runs as {file} says."))
  if run.changes:
    rows = [
      (
        row.get("step", ""),
        tag("code", row.get("key", "")),
        value(row.get("was")),
        value(row.get("now")),
      )
      for row in run.changes
    ]
    parts.append(tag("h3", "Changed by a later start"))
    parts.append(markup.table(["from step", "", "was", "is"], rows))
  return markup.join(parts)


def value(x: Any) -> str:
  return x if x in (ABSENT, "(absent)") else json.dumps(x, ensure_ascii=False)


def samples(runs: Sequence[Run]) -> Html:
  """The newest previews, moving."""
  figures = [
    tag(
      "figure",
      markup.picture(data, "gif", alt=f"moving samples {stem}"),
      tag("figcaption", name, " " if name else "", caption(stem)),
    )
    for run, name in zip(runs, named(runs), strict=True)
    for stem, data in run.sheets.items()
  ]
  return tag("div", *figures, class_="beside") if figures else Html()


def caption(stem: str) -> str:
  """The caption of a preview by its file's stem, such as `0000250` or `0000250-images`."""
  kind = "images of config.sampling.images" if stem[7:] else "clips that are held out"
  return f"step {int(stem[:7]):,}: {kind}"


def plots(runs: Sequence[Run]) -> Html:
  """Curves of the metrics: loss, motion, gradient norm, learning rate, speed."""
  alone = len(runs) == 1

  def of(name: str, marked: bool = False) -> list[Curve]:
    return [
      Curve("" if alone else run.name, *tracker.curve(run.rows, name), colour=i, marked=marked)
      for i, run in enumerate(runs)
    ]

  raw, held_out = of("loss"), of("preview/loss", marked=True)
  windows = [max(1, len(curve.steps) // 20) for curve in raw]
  loss = [
    curve._replace(values=curves.mean_of_last(curve.values, window))
    for curve, window in zip(raw, windows, strict=True)
    if len(curve.steps)
  ]
  if alone and loss:
    mean = [loss[0]._replace(name=f"mean of {windows[0]}")] if windows[0] > 1 else []
    loss = [raw[0]._replace(name="logged", faint=bool(mean)), *mean]
    loss.append(held_out[0]._replace(name="held-out clips", colour=1))
  panels = [curves.plot("Loss", loss, log=True)]
  if not alone:
    panels.append(curves.plot("Loss on held-out clips", held_out, log=True))
  panels += [
    curves.plot("Motion of samples / of truth", of("preview/motion_ratio", True), level=1.0),
    curves.plot("Norm of the gradient", of("grad_norm"), log=True),
    curves.plot("Learning rate", of("lr")),
    curves.plot("Steps a second", of("steps_per_s")),
  ]
  shown = [panel for panel in panels if panel]
  return tag("div", *shown, class_="curves") if shown else Html()


def watchdog(runs: Sequence[Run]) -> Html:
  """The measures of the newest preview with their meaning, and a warning of a run going static."""
  rows = []
  for name, meaning in WATCHED.items():
    found = [tracker.curve(run.rows, f"preview/{name}")[1] for run in runs]
    if any(len(values) for values in found):
      cells = [tracker.number(values[-1]) if len(values) else ABSENT for values in found]
      rows.append((explained(tag("code", name), meaning), *cells))
  if not rows:
    return Html()
  parts = [markup.table(heads(runs), rows)]
  for run in runs:
    ratios = tracker.curve(run.rows, "preview/motion_ratio")[1]
    if not len(ratios):
      continue
    told = f"{run.name}: samples move {ratios[-1]:.2g} times as much as the truth"
    if len(ratios) > 1 and motion.goes_static(ratios[-1], max(ratios[:-1])):
      told += f", and moved {max(ratios[:-1]):.2g} times before: it is going static."
    elif motion.goes_static(ratios[-1], 1.0):
      told += ": hardly, so far. A young run copies its image before it learns to move it."
    else:
      continue
    parts.insert(0, tag("p", told, class_="ended"))
  return markup.join(parts)


def times(runs: Sequence[Run]) -> Html:
  """Seconds of each phase, summed over all starts that were not killed."""
  spent = [phases(run.rows) for run in runs]
  if not any(spent):
    return Html()
  rows = []
  for phase, meaning in PHASES.items():
    cells = [share(of.get(phase, 0.0), sum(of.values())) if of else ABSENT for of in spent]
    rows.append((explained(phase.replace("_", " "), meaning), *cells))
  whole = [tracker.duration(sum(of.values())) if of else ABSENT for of in spent]
  rows.append((tag("b", "together"), *whole))
  return markup.table(heads(runs), rows)


def phases(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Seconds by phase, summed over the starts of a run; empty where none has told."""
  spent = {phase: tracker.curve(rows, f"seconds/{phase}")[1] for phase in PHASES}
  return {p: float(np.sum(x)) for p, x in spent.items()} if any(map(len, spent.values())) else {}


def share(seconds: float, whole: float) -> Html:
  part = seconds / max(whole, 1e-9)
  bar = tag("span", class_="share", style=f"width: {5 * part:.2f}rem") if part > 0.005 else ""
  return markup.join([f"{seconds:,.1f} s, {part:.1%}", bar])


def made_by(runs: Sequence[Run]) -> Html:
  """Versions and devices of the newest start."""
  starts = [run.start for run in runs]
  if not any(starts):
    return Html()
  facts: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "device": lambda start: start.get("device"),
    "processes": lambda start: start.get("processes"),
    "started": lambda start: start.get("time"),
    "fbjax, digest of its code": lambda start: start.get("code"),
  }
  for name in dict.fromkeys(name for start in starts for name in start.get("versions", {})):
    facts[name] = lambda start, name=name: start.get("versions", {}).get(name)
  rows = [(name, *(fact(start) or ABSENT for start in starts)) for name, fact in facts.items()]
  return markup.table(heads(runs), rows)


def configs(runs: Sequence[Run]) -> Html:
  """Each whole config, folded away."""
  return markup.join(
    markup.folded(
      f"The whole config of {run.name}, resolved",
      markup.preformatted(
        "\n".join(f"{k} = {value(v)}" for k, v in workdir_lib.flatten(run.config).items())
      ),
    )
    for run in runs
  )


# --- cards


class Column(NamedTuple):
  """A card under its label, in the colour of its run."""

  label: str
  colour: int
  card: Mapping[str, Any]


def measured(runs: Sequence[Run]) -> Html:
  """The cards of all runs: those of one protocol in one table."""
  alone = len(runs) == 1
  columns = [
    Column(stem if alone else f"{run.name}: {stem}", j if alone else i, card)
    for i, run in enumerate(runs)
    for j, (stem, card) in enumerate(run.cards.items())
  ]
  groups: list[list[Column]] = []
  for column in columns:
    for group in groups:
      one, two = cards.comparable(group[0].card["protocol"], column.card["protocol"])
      if one == two:
        group.append(column)
        break
    else:
      groups.append([column])
  parts = []
  if len(groups) > 1:
    parts.append(tag("p", "Numbers of different protocols are not compared: each has a table."))
  parts += [of_protocol(group) for group in groups]
  if groups:
    told = (
      "± is one standard error, and * more than two of them from the first column. docs/metrics.md says what "
      "each number is."
    )
    parts.append(tag("p", told, class_="faint"))
  return markup.join(parts)


def of_protocol(group: Sequence[Column]) -> Html:
  """Cards that can be compared, with the still image and the truth of the first beside them."""
  first = group[0].card
  whose = [w for w in ("still", "truth") if w in first["numbers"]]
  labels = [column.label for column in group] + [cards.LABELS[w] for w in whose]
  numbers = [column.card["numbers"]["made"] for column in group]
  numbers += [first["numbers"][w] for w in whose]
  last = max(column.colour for column in group)
  colours = [column.colour for column in group] + [last + 1 + i for i in range(len(whose))]
  rows = []
  for name in dict.fromkeys(name for of in numbers for name in of):
    there = [(*of[name], colour) for of, colour in zip(numbers, colours, strict=True) if name in of]
    drawn = tag("span", curves.bars(there), class_="bars")
    cells = []
    for i, of in enumerate(numbers):
      sure = 0 < i < len(group) and cards.differ(numbers[0].get(name), of.get(name))
      # Of hard spaces: a number and its error stay on one line.
      cells.append(cards.told(of.get(name)).replace(" +- ", "\N{NBSP}±\N{NBSP}") + " *" * sure)
    rows.append((name, drawn, *cells))
  top = [
    tag("span", Html("&#9679;&nbsp;"), label, style=f"color: {curves.colour(colour)}")
    for label, colour in zip(labels, colours, strict=True)
  ]
  details = {
    column.label: {
      k: column.card[k] for k in ("subject", "protocol", "made_by") if k in column.card
    }
    for column in group
  }
  settings = markup.preformatted(json.dumps(details, indent=2, ensure_ascii=False))
  return markup.join(
    [
      tag("p", shape(first["protocol"])),
      markup.table(["", "", *top], rows),
      markup.folded("Protocol and settings", settings),
    ]
  )


def shape(protocol: Mapping[str, Any]) -> str:
  """`32 clips of synthetic, 8 frames of 32x32`."""
  told = f"{protocol.get('clips', '?')} clips of {protocol.get('source', 'a folder')}"
  size = protocol.get("size", [])
  sides = size if isinstance(size, list) else [size, size]
  return told + (
    f", {protocol['frames']} frames of {'x'.join(map(str, sides))}"
    if protocol.get("frames")
    else ""
  )
