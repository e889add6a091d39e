"""Curves and error bars as inline SVG: a few kB, in the colours of the page."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fbjax import markup
from fbjax.markup import Html, tag
from fbjax.tracker import progress

POINTS = 240  # of a curve: what the eye tells apart at this width
MARKED = 40  # points up to which each is a dot that says its value
WIDTH, HEIGHT = 360, 210  # as wide as a phone, so that letters keep their size there
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 24
COLOURS = 6
Real = float | int
STYLE = """
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
.curves figure { margin: 0; background: var(--card); border-radius: .4rem; padding: .6rem; }
.curves figcaption { color: var(--ink); }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint); }
.bars svg { width: 10rem; min-width: 10rem; }
"""


class Curve(NamedTuple):
  """Values over steps. Marked ones are drawn as dots and a line, others as a line alone.

  colour: number of one of the page's colours. faint: drawn thin, behind the others.
  """

  name: str
  steps: np.ndarray
  values: np.ndarray
  colour: int = 0
  faint: bool = False
  marked: bool = False


def plot(
  title: str, curves: Sequence[Curve], log: bool = False, level: float | None = None
) -> Html:
  """A figure of curves over steps; empty where none has a value.

  Args:
    title: above it.
    curves: all values are finite.
    log: whether the values have a logarithmic axis, where all are above 0.
    level: a value to draw a line at, which the axis then reaches, as it does 0.
  """
  curves = [thinned(curve) for curve in curves if len(curve.steps)]
  if not curves:
    return Html()
  steps = np.concatenate([curve.steps for curve in curves]).astype(float)
  values = np.concatenate([curve.values for curve in curves]).astype(float)
  log = bool(log and values.min() > 0)
  low, high = values.min(), values.max()
  if level is not None:
    low, high = min(low, 0.0), max(high, level)
  ticks, low, high = axis(low, high, log)
  across, first, last = axis(0.0, steps.max(), False, count=4, tight=True)
  scale = np.log if log else np.asarray

  def x(step: Any) -> Any:
    return LEFT + (np.asarray(step) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

  def y(value: Any) -> Any:
    share = (scale(value) - scale(low)) / (scale(high) - scale(low))
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

  drawn = []
  for value in ticks:
    drawn.append(line(LEFT, y(value), WIDTH - RIGHT, y(value), "var(--line)"))
    drawn.append(label(LEFT - 6, float(y(value)) + 4, short(value), "end"))
  for step in across:
    anchor = "end" if x(step) > WIDTH - 30 else "middle"
    drawn.append(label(float(x(step)), HEIGHT - 7, short(step), anchor))
  if level is not None:
    drawn.append(line(LEFT, y(level), WIDTH - RIGHT, y(level), "var(--faint)", dashed=True))
  for curve in sorted(curves, key=lambda curve: not curve.faint):
    drawn.append(path(curve, x(curve.steps), y(curve.values)))
  shown = tag(
    "svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title} over steps"
  )
  names = [(curve.name, curve.colour, curve.faint) for curve in curves if curve.name]
  return tag("figure", tag("figcaption", title, *legend(names)), shown)


def legend(names: Sequence[tuple[str, int, bool]]) -> list[Html]:
  """Names in the colours of their curves."""
  return [
    tag(
      "span",
      Html("&ensp;&#9679;&nbsp;"),
      name,
      style=f"color: {colour(number)}" + ("; opacity: .55" if faint else ""),
    )
    for name, number, faint in names
  ]


def thinned(curve: Curve) -> Curve:
  """At most `POINTS` points; of the rest, the means of as many neighbours each.

  Means, since what a spike hides among thousands of values is in the log, and a curve of extremes is a band.
  """
  size = -(-len(curve.steps) // POINTS)
  if size == 1:
    return curve
  edges = range(0, len(curve.steps), size)
  steps, values = (
    np.array([np.mean(x[i : i + size]) for i in edges]) for x in (curve.steps, curve.values)
  )
  return curve._replace(steps=steps, values=values)


def mean_of_last(values: np.ndarray, window: int) -> np.ndarray:
  """The trailing mean over `window` values, fewer at the beginning."""
  weight = np.convolve(np.ones(len(values)), np.ones(window))[: len(values)]
  return np.convolve(values, np.ones(window))[: len(values)] / weight


def path(curve: Curve, x: np.ndarray, y: np.ndarray) -> Html:
  """The line of a curve, and its dots."""
  stroke = colour(curve.colour)
  points = " ".join(f"{a:.4g},{b:.4g}" for a, b in zip(x, y, strict=True))
  parts = [
    tag(
      "polyline",
      points=points,
      fill="none",
      stroke=stroke,
      stroke_width=1 if curve.faint else 1.8,
      stroke_linejoin="round",
      opacity=0.35 if curve.faint else None,
    )
  ]
  if len(x) == 1 or (curve.marked and len(x) <= MARKED):
    for a, b, step, value in zip(x, y, curve.steps, curve.values, strict=True):
      told = tag("title", f"step {step:.0f}: {progress.number(value)}")
      parts.append(tag("circle", told, cx=f"{a:.4g}", cy=f"{b:.4g}", r=2.6, fill=stroke))
  return markup.join(parts)


def bars(numbers: Sequence[tuple[Real, Real, int]]) -> Html:
  """(value, error, colour) each as a dot with its error to both sides, one below the other on one axis."""
  width, row = 160, 13
  low = min(value - error for value, error, _ in numbers)
  span = max(value + error for value, error, _ in numbers) - low or 1.0

  def x(value: Real) -> Real:
    return 6 + (value - low) / span * (width - 12)

  drawn = []
  for i, (value, error, number) in enumerate(numbers):
    middle = row * (i + 0.5)
    drawn.append(line(x(value - error), middle, x(value + error), middle, colour(number), 2))
    drawn.append(tag("circle", cx=f"{x(value):.4g}", cy=middle, r=3.5, fill=colour(number)))
  return tag("svg", *drawn, viewBox=f"0 0 {width} {row * len(numbers)}", aria_hidden="true")


def axis(
  low: Real, high: Real, log: bool, count: int = 5, tight: bool = False
) -> tuple[list[Real], Real, Real]:
  """Ticks and limits of an axis: (ticks, low, high); limits have a margin unless `tight`."""
  if log:
    low, high = (low / 1.3, high * 1.3) if high < 1.5 * low else (low / 1.1, high * 1.1)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
      ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
      if len(ticks) >= 3:
        break
    if len(ticks) < 3:  # within less than a decade values are as good as linear
      ticks = axis(low, high, False, tight=True)[0]
    return ticks[:: -(-len(ticks) // 6)], low, high
  if high == low:
    low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if low else (-1.0, 1.0)
  span = high - low
  if not tight:
    low, high = low - (0.05 * span if low else 0), high + 0.05 * span
  rough = 10.0 ** math.floor(math.log10(span / count))
  step = rough * next(m for m in (1, 2, 5, 10, 20) if span / (m * rough) <= count)
  first = math.ceil(low / step - 1e-9)
  ticks = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
  return ticks, low, high


def short(x: Real) -> str:
  """A tick's number: 0.02, 500, 20k, 1.5M."""
  for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
    if abs(x) >= size:
      return f"{x / (1e3 if unit == 'k' else size):.4g}{unit}"
  return f"{x:.4g}"


def colour(number: int) -> str:
  return f"var(--c{number % COLOURS})"


def line(
  x1: Real, y1: Real, x2: Real, y2: Real, stroke: str, width: Real = 1, dashed: bool = False
) -> Html:
  ends = {name: f"{float(x):.4g}" for name, x in dict(x1=x1, y1=y1, x2=x2, y2=y2).items()}
  dashes = "4 3" if dashed else None
  return tag("line", **ends, stroke=stroke, stroke_width=width, stroke_dasharray=dashes)


def label(x: Real, y: Real, told: str, anchor: str) -> Html:
  return tag("text", told, x=f"{x:.4g}", y=f"{y:.4g}", text_anchor=anchor)
