"""What a run tells of itself: one line of progress, metrics.jsonl, TensorBoard, plots and sheets."""

import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import matplotlib
import numpy as np
import tensorboardX
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from fbjax import places

matplotlib.use("Agg")
import matplotlib.pyplot as plt

logger = logging.getLogger(__name__)

# Dense bf16 FLOP/s of one device, from the vendors' data sheets.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
  """Dense bf16 FLOP/s of a device, or None where it is not known."""
  for kind, flops in PEAK_FLOPS.items():
    if device.device_kind.startswith(kind):
      return flops
  return None


class Tracker:
  """Writes a run's metrics into its workdir; only the first process writes.

  metrics.jsonl keeps one line a logged step. Lines behind `start` are dropped, since a resumed run
  writes those steps again.
  """

  def __init__(
    self,
    workdir: str,
    *,
    steps: int,
    batch_size: int,
    start: int = 0,
    flops: float | None = None,
  ):
    self._home = workdir
    self.workdir = places.local(workdir)
    self.steps, self.batch_size, self.flops = steps, batch_size, flops
    self._active = jax.process_index() == 0
    self._peak = peak_flops(jax.devices()[0])
    self._last_step, self._last_time, self._waited = start, time.perf_counter(), 0.0
    if self._active:
      self._file = self.workdir / "metrics.jsonl"
      places.pull(workdir, self._file.name)
      kept = [row for row in read_metrics(self._file) if row["step"] <= start]
      _replace(self._file, "".join(json.dumps(row) + "\n" for row in kept))
      self._events = tensorboardX.SummaryWriter(
        str(self.workdir / "tensorboard"), purge_step=start + 1, flush_secs=30
      )

  def waited(self, seconds: float) -> None:
    """Adds time during which the step waited for data."""
    self._waited += seconds

  def restart_clock(self, step: int) -> None:
    """Starts the next line's rates here, to leave out what is not training."""
    self._last_step, self._last_time, self._waited = step, time.perf_counter(), 0.0

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs one line and appends the metrics of `step`, with rates since the last call."""
    now = time.perf_counter()
    seconds = max(now - self._last_time, 1e-9)
    rate = (step - self._last_step) / seconds
    waiting = self._waited / seconds
    self._last_step, self._last_time, self._waited = step, now, 0.0
    row = dict(metrics)
    row |= {"steps_per_s": rate, "clips_per_s": rate * self.batch_size, "data_wait": waiting}
    if self.flops and self._peak:
      row["mfu"] = self.flops * rate / (self._peak * jax.device_count())
    if not self._active:
      return
    logger.info(progress_line(step, self.steps, row))
    with self._file.open("a") as file:
      file.write(json.dumps({"step": step} | row) + "\n")
    for name, value in row.items():
      self._events.add_scalar(name, value, step)
    places.push(self._home)

  def picture(self, name: str, step: int, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
    """Shows a picture in TensorBoard."""
    if self._active:
      self._events.add_image(name, image, step, dataformats="HWC")

  def close(self) -> None:
    """Draws loss.png and flushes TensorBoard."""
    if self._active:
      plot_loss(self._file, self.workdir / "loss.png")
      self._events.close()
      places.push(self._home)


def progress_line(step: int, steps: int, row: Mapping[str, float]) -> str:
  """`step 120/900  loss 0.0123  9.1 steps/s  146 clips/s  data 2%  ETA 1m25s  MFU 41%`."""
  parts = [f"step {step}/{steps}", f"loss {row['loss']:.5f}"]
  parts += [f"{row['steps_per_s']:.2f} steps/s", f"{row['clips_per_s']:.1f} clips/s"]
  parts += [f"data {row['data_wait']:.0%}", f"ETA {duration((steps - step) / row['steps_per_s'])}"]
  if "mfu" in row:
    parts.append(f"MFU {row['mfu']:.0%}")
  if row.get("replaced"):
    parts.append(f"{row['replaced']:.0f} clips replaced")
  return "  ".join(parts)


def duration(seconds: float) -> str:
  """`3h05m`, `4m20s` or `12s`."""
  if not np.isfinite(seconds):
    return "?"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h{minutes:02}m"
  return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def read_metrics(file: str | os.PathLike) -> list[dict[str, float]]:
  """The rows of a metrics.jsonl; none when it is missing. A line cut off by a kill is left out."""
  if not os.path.exists(file):
    return []
  rows = []
  for line in pathlib.Path(file).read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return rows


def plot_loss(metrics: str | os.PathLike, out: str | os.PathLike) -> None:
  """Draws the loss over steps, raw and averaged, on logarithmic axes."""
  rows = read_metrics(metrics)
  if not rows:
    return
  step = np.array([row["step"] for row in rows])
  loss = np.array([row["loss"] for row in rows])
  window = max(1, len(loss) // 20)
  weight = np.convolve(np.ones_like(loss), np.ones(window))[: len(loss)]
  mean = np.convolve(loss, np.ones(window))[: len(loss)] / weight
  figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
  axes.plot(step, loss, color="0.75", linewidth=1, label="logged")
  axes.plot(step, mean, color="tab:blue", linewidth=1.8, label=f"mean of the last {window}")
  axes.set(xlabel="step", ylabel="loss", yscale="log")
  axes.grid(alpha=0.3, which="both")
  axes.legend(frameon=False)
  figure.savefig(out, dpi=120)
  plt.close(figure)


def contact_sheet(
  rows: Sequence[Mapping[str, UInt8[np.ndarray, "_ h w 3"]]],
  captions: Sequence[str],
  cell: int = 64,
) -> UInt8[np.ndarray, "height width 3"]:
  """Clips as a picture: one row a clip, its frames left to right, named blocks side by side.

  Args:
    rows: for each clip, its blocks in order, such as given image, truth and sample. All rows have
      the same blocks, and a block has the same frames in all rows.
    captions: one line above each row.
    cell: width in pixels that a frame is enlarged or reduced to.
  """
  _, h, w, _ = next(iter(rows[0].values())).shape
  height = max(1, round(cell * h / w))
  gap, line = 6, 14
  names = list(rows[0])
  widths = [cell * len(rows[0][name]) for name in names]
  sheet = Image.new(
    "RGB", (sum(widths) + gap * (len(names) + 1), line + len(rows) * (height + line + gap)), "white"
  )
  draw = ImageDraw.Draw(sheet)
  for r, (row, caption) in enumerate(zip(rows, captions, strict=True)):
    top = line + r * (height + line + gap)
    draw.text((gap, top), caption, fill="black")
    left = gap
    for name, width in zip(names, widths, strict=True):
      if r == 0:
        draw.text((left, 1), name, fill=(31, 119, 180))
      for f, frame in enumerate(row[name]):
        tile = Image.fromarray(frame).resize((cell, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (left + f * cell, top + line))
      left += width + gap
  return np.asarray(sheet)


def write_png(file: str | os.PathLike, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
  """Writes a picture."""
  Image.fromarray(image).save(file)


def _replace(file: pathlib.Path, text: str) -> None:
  partial = file.with_suffix(".partial")
  partial.write_text(text)
  os.replace(partial, file)
