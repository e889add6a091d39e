"""Pictures of a run: its loss over the steps, and clips as sheets."""

import contextlib
import functools
import os
import string
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from fbjax.tracker import writers

LINES = 3  # of a caption


def plot_loss(metrics: str | os.PathLike, out: str | os.PathLike) -> None:
  """Draws the loss over steps, raw and averaged, on logarithmic axes; nothing without rows.

  With it the loss on held-out clips, and below how much samples move against the truth, where previews
  have measured these.
  """
  from matplotlib import figure  # half a second, which --help need not wait for

  rows = writers.read_metrics(metrics)
  step, loss = curve(rows, "loss")
  if not len(step):
    return
  window = max(1, len(loss) // 20)
  weight = np.convolve(np.ones_like(loss), np.ones(window))[: len(loss)]
  mean = np.convolve(loss, np.ones(window))[: len(loss)] / weight
  moves = curve(rows, "preview/motion_ratio")
  panels = 2 if len(moves[0]) else 1
  made = figure.Figure(figsize=(6.4, 2.4 + 1.2 * panels), layout="constrained")
  heights = [3, 1][:panels]
  axes, *below = made.subplots(panels, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
  axes.plot(step, loss, color="0.75", linewidth=1, label="logged")
  axes.plot(step, mean, color="tab:blue", linewidth=1.8, label=f"mean of the last {window}")
  axes.plot(*curve(rows, "preview/loss"), "o-", color="tab:red", ms=3, label="held-out clips")
  axes.set(ylabel="loss", yscale="log")
  axes.grid(alpha=0.3, which="both")
  axes.legend(frameon=False)
  for panel in below:
    panel.plot(*moves, "o-", color="tab:green", ms=3)
    panel.axhline(1, color="0.75", linewidth=1)
    panel.set(ylabel="motion / truth", ylim=(0, None))
    panel.grid(alpha=0.3)
  (below or [axes])[-1].set(xlabel="step")
  made.savefig(out, dpi=120)


def curve(rows: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of a metric, at the steps that have one."""
  found = [(row["step"], row[name]) for row in rows if writers.is_number(row.get(name))]
  return np.array([x for x, _ in found]), np.array([y for _, y in found])


def contact_sheet(
  rows: Sequence[Mapping[str, UInt8[np.ndarray, "_ h w 3"]]],
  captions: Sequence[str],
  cell: int = 64,
) -> UInt8[np.ndarray, "height width 3"]:
  """Clips as a picture: one row a clip, its frames left to right, named blocks side by side.

  Args:
    rows: for each clip, its blocks in order, such as given image, truth and sample. All rows have
      the same blocks, and a block has the same frames in all rows.
    captions: above each row, in at most `LINES` lines.
    cell: width in pixels that a frame is enlarged or reduced to.
  """
  _, h, w, _ = next(iter(rows[0].values())).shape
  height = max(1, round(cell * h / w))
  names, gap = list(rows[0]), 6
  widths = [cell * len(rows[0][name]) for name in names]
  wide = sum(widths) + gap * (len(names) + 1)
  # Of a long row, which is seen reduced, larger letters; a block's name stays within its first frame.
  size = max(12, min(wide // 50, cell // 4))
  line = round(1.3 * size)
  fonts = [letters(size, caption) for caption in captions]
  told = [wrapped(*of, wide - 2 * gap) for of in zip(captions, fonts, strict=True)]
  top = line if any(names) else 0
  high = top + line * sum(map(len, told)) + len(rows) * (height + gap)
  sheet = Image.new("RGB", (wide, high), "white")
  draw = ImageDraw.Draw(sheet)
  for r, (row, lines, font) in enumerate(zip(rows, told, fonts, strict=True)):
    for text in lines:
      draw.text((gap, top), text, font=font, fill="black")
      top += line
    left = gap
    for name, width in zip(names, widths, strict=True):
      if r == 0:
        draw.text((left, 1), name, font=letters(size, name), fill=(31, 119, 180))
      for f, frame in enumerate(row[name]):
        tile = Image.fromarray(frame).resize((cell, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (left + f * cell, top))
      left += width + gap
    top += height + gap
  return np.asarray(sheet)


def letters(size: int, text: str) -> ImageFont.FreeTypeFont:
  """A font for a text: Matplotlib's, which has Latin, Greek, Cyrillic and more, or one of this machine's.

  Where no font has all of the text, the one with most of it; other letters are boxes.
  """
  return ImageFont.truetype(font_of("".join(sorted({*text} - {*string.whitespace}))), size)


@functools.lru_cache(1024)
def font_of(wanted: str) -> str:
  """The file of the first font that has most of these letters."""
  import matplotlib
  from matplotlib import font_manager

  def lacks(file: str) -> int:
    with contextlib.suppress(RuntimeError, OSError):  # no font, whatever its name says
      font = font_manager.get_font(file)
      return sum(not font.get_char_index(ord(letter)) for letter in wanted)
    return len(wanted)

  own = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
  if not lacks(own):
    return own
  return min([own, *sorted(font_manager.findSystemFonts())], key=lacks)


def wrapped(caption: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
  """A caption in lines of at most so many pixels; what `LINES` lines do not hold is left out."""
  columns = max(1, int(width / font.getlength("r")))  # a narrow one: more than fit
  while True:
    lines = textwrap.wrap(caption, columns, max_lines=LINES, placeholder=" …")
    if columns == 1 or all(font.getlength(line) <= width for line in lines):
      return lines
    columns -= 1


def moving_sheet(
  rows: Sequence[Mapping[str, UInt8[np.ndarray, "_ h w 3"]]],
  captions: Sequence[str],
  cell: int = 104,
) -> UInt8[np.ndarray, "t height width 3"]:
  """Clips as a video: what `contact_sheet` shows, one frame of each block at a time.

  Blocks with fewer frames than others, such as a given image, stay at their last. More than four
  clips stand in two columns.
  """
  frames = max(len(block) for row in rows for block in row.values())
  half = len(rows) if len(rows) <= 4 else -(-len(rows) // 2)

  def at(t: int) -> list[dict[str, UInt8[np.ndarray, "1 h w 3"]]]:
    return [{name: x[min(t, len(x) - 1)][None] for name, x in row.items()} for row in rows]

  def sheet(t: int) -> UInt8[np.ndarray, "height width 3"]:
    columns = [
      contact_sheet(at(t)[i : i + half], captions[i : i + half], cell)
      for i in range(0, len(rows), half)
    ]
    tallest = max(len(x) for x in columns)
    white = [np.full((tallest - len(x), *x.shape[1:]), 255, np.uint8) for x in columns]
    return np.concatenate([np.concatenate(x) for x in zip(columns, white, strict=True)], axis=1)

  return np.stack([sheet(t) for t in range(frames)])


def write_png(file: str | os.PathLike, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
  """Writes a picture."""
  Image.fromarray(image).save(file)
