"""--mode=doctor: looks at every clip of the data, and says which are broken, useless or twice there.

  report.html, report.json   what was found, with pictures
  clean/<split>.csv          file and caption of every clip that is healthy, for config.data.name=table

Each clip is decoded from its first frame to its last, so that this takes as long as playing the whole
set as fast as the machine can.
"""

import collections
import concurrent.futures
import contextlib
import csv
import io
import json
import logging
import pathlib
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fbjax import build, errors, markup, places, tracker
from fbjax.data import health, sources, storage, text, tfds_clips
from fbjax.data import video as video_lib
from fbjax.markup import tag

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
TIMED = 16  # clips that are read as a training reads them, to say how fast
SHOWN = 200  # pictures in the report
SHAPE = ("frames", "size", "strides")  # of a clip, the same for all sources
TOLD = 10.0  # seconds between two lines of progress


class Finding(NamedTuple):
  """A clip, by its place in the source, and what was found of it."""

  file: str
  caption: str
  label: int
  look: health.Look


def doctor(config: dict[str, Any], out: str | None, workdir: str | None = None) -> dict[str, Any]:
  """Looks at the clips of `config.data`, both splits, and writes a report.

  Args:
    config: of the data.
    out: a folder for the report.
    workdir: of a run on this data, whose speed says how many readers it needs.

  Returns:
    The report.

  Raises:
    UserError: for data whose lists cannot be read, and data that is not in files of its own.
  """
  if not out:
    raise errors.UserError("--mode=doctor needs --out=<folder for the report>")
  rates = rates_of(workdir) if workdir else []
  places.check_writable(out)
  least = config["data"].get("frames", 16)
  report: dict[str, Any] = {"data": dict(config["data"]), "splits": {}}
  pictures: list[tuple[str, str, bytes | None]] = []
  with noting() as listed:
    made = {split: build.make_source(config, split) for split in SPLITS}
  # A source that holds nothing out is made twice.
  report["listing"] = list(dict.fromkeys(listed))
  home = storage.common([getattr(source, "root", pathlib.Path("/")) for source in made.values()])
  for split, source in made.items():
    if not isinstance(source, sources.Videos) or isinstance(source, tfds_clips.TFDS):
      raise errors.UserError(
        f"config.data.name is {config['data']['name']!r}: the doctor looks at video files, in their "
        "folders; point it at those that the data set was made of"
      )
    if split == "val" and source.entries == made["train"].entries:
      logger.info("val holds the clips of train.")
      continue
    findings = look_at_all(source, least, config["loader"].get("threads", 4))
    faults = collect(findings)
    # They may be read from a folder, and not from the table that is written here.
    if unnamed := [x.file for x in findings if text.clean(x.file) != x.file]:
      faults["name"] = dict.fromkeys(unnamed, "has a name that is not UTF-8, as a table needs it")
    sick = {file for of in faults.values() for file in of}
    healthy = [finding for finding in findings if finding.file not in sick]
    rows: dict[str, tuple[str, int]] = {}
    for x in healthy:
      file = storage.relative(source.root / x.file, home)
      rows.setdefault(file, (text.clean(x.caption), x.label))
    if more := len(healthy) - len(rows):
      logger.warning(
        "%s: a table names a file once: %d more captions of files are left out.", split, more
      )
    write_manifest(f"{out}/clean/{split}.csv", [(file, *told) for file, told in rows.items()])
    report["splits"][split] = {
      "clips": len(findings),
      "healthy": len(healthy),
      "faults": faults,
      "reading": speed(source, [finding.file for finding in healthy]),
    }
    named = {finding.file: finding for finding in findings}
    for fault, of in faults.items():
      pictures += [(f"{split}: {fault}", f"{f} {s}", named[f].look.picture) for f, s in of.items()]
    log(split, report["splits"][split])
  reading = report["splits"]["train"]["reading"]
  if workdir and reading:
    wanted, one = float(np.median(rates)), reading["clips_per_s_per_reader"]
    report["needed"] = {"clips_per_s": wanted, "readers": wanted / one}
    logger.info("%s takes %.3g clips/s: %.2g readers keep it fed.", workdir, wanted, wanted / one)
  places.write_json(f"{out}/report.json", report)
  places.write_text(f"{out}/report.html", page(report, pictures))
  logger.info("Wrote %s/report.html and %s/report.json.", out, out)
  kept = {
    split: f"{out}/clean/{split}.csv" for split, of in report["splits"].items() if of["healthy"]
  }
  if "train" in kept:
    clean = {"name": "table", "path": kept["train"], "root": str(home)}
    clean |= {"val": kept["val"]} if "val" in kept else {}
    clean |= {key: config["data"][key] for key in SHAPE if key in config["data"]}
    value = repr(clean)
    # Readable, where nothing in it means something to a shell.
    quoted = shlex.quote(value) if set(value) & set('"$`\\!') else f'"{value}"'
    logger.info("To train on the healthy clips: --config.data=%s", quoted)
  else:
    logger.warning("No clip of train is healthy: there is nothing to train on.")
  return report


@contextlib.contextmanager
def noting() -> Iterator[list[str]]:
  """Context that collects warnings of the data sources, such as of clips that are left out."""
  notes: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: notes.append(record.getMessage())
  listener = logging.getLogger(sources.__package__)
  listener.addHandler(handler)
  try:
    yield notes
  finally:
    listener.removeHandler(handler)


def look_at_all(source: sources.Videos, least: int, threads: int) -> list[Finding]:
  """Decodes each clip, in several threads; a healthy one has `least` frames at least."""

  def one(index: int) -> Finding:
    entry = source.entries[index]
    try:
      path, data = source.content(index)
      found = health.look(path, least, data)
    except video_lib.BrokenClip as error:  # a name that leads out of the data set, or to nothing
      found = health.Look({"missing": str(error)}, 0, None, None, 0.0)
    return Finding(entry.file, entry.caption, entry.label, found)

  findings, told = [], time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for finding in pool.map(one, range(len(source))):
      findings.append(finding)
      if time.monotonic() - told > TOLD:
        told = time.monotonic()
        logger.info("%d of %d clips.", len(findings), len(source))
  return findings


def collect(findings: Sequence[Finding]) -> dict[str, dict[str, str]]:
  """What is wrong: {fault: {file: explanation}}.

  A duplicate is of a file that is healthy itself, so that one of them stays.
  """
  faults: dict[str, dict[str, str]] = collections.defaultdict(dict)
  for finding in findings:
    for fault, told in finding.look.faults.items():
      faults[fault][finding.file] = told
    if told := health.of_caption(finding.caption):
      faults["caption"][finding.file] = f"the caption {told}"
  sick = {file for of in faults.values() for file in of}
  # A file may be listed several times, with other captions.
  named = {finding.file: finding.look for finding in findings if finding.file not in sick}
  files = list(named)
  for second, first in health.duplicates(list(named.values())).items():
    faults["duplicate"][files[second]] = f"shows what {files[first]} shows"
  return {fault: dict(sorted(faults[fault].items())) for fault in sorted(faults)}


def speed(source: sources.Videos, healthy: Sequence[str]) -> dict[str, float]:
  """Clips/s that one reader decodes and crops as a training does; empty without healthy clips."""
  known = set(healthy)
  rows = [i for i, entry in enumerate(source.entries) if entry.file in known][:TIMED]
  if not rows:
    return {}
  began = time.perf_counter()
  for i in rows:
    source.read(i, np.random.default_rng(i))
  return {"clips_per_s_per_reader": len(rows) / (time.perf_counter() - began)}


def rates_of(workdir: str) -> list[float]:
  """Clips a second of a run, step by step.

  Raises:
    UserError: when the workdir has none.
  """
  places.pull(workdir, "metrics.jsonl")
  rows = tracker.read_metrics(places.local(workdir) / "metrics.jsonl")
  if rates := [row["clips_per_s"] for row in rows if row.get("clips_per_s")]:
    return rates
  raise errors.UserError(f"{workdir} has no metrics of a training: leave --workdir out")


def log(split: str, found: Mapping[str, Any]) -> None:
  counts = ", ".join(f"{len(of)} {fault}" for fault, of in found["faults"].items())
  logger.info("%s: %d of %d clips are healthy.", split, found["healthy"], found["clips"])
  if counts:
    logger.info("%s: %s.", split, counts)
  if found["reading"]:
    rate = found["reading"]["clips_per_s_per_reader"]
    logger.info("%s: one reader decodes and crops %.3g clips/s.", split, rate)


def write_manifest(file: str, healthy: Sequence[tuple[str, str, int]]) -> None:
  """A csv of files, captions and the numbers of classes, where there are any, that the source `table` reads."""
  columns = 3 if any(label >= 0 for *_, label in healthy) else 2
  rows = io.StringIO()
  lines = [("file", "caption", "label")]
  lines += [(file, caption, label if label >= 0 else "") for file, caption, label in healthy]
  csv.writer(rows, lineterminator="\n").writerows(line[:columns] for line in lines)
  places.write_text(file, rows.getvalue())


STYLE = """
figure { display: inline-block; width: 12rem; margin: .5rem; vertical-align: top; }
figure img { width: 100%; }
figcaption { color: var(--ink); }
"""


def page(report: Mapping[str, Any], pictures: Sequence[tuple[str, str, bytes | None]]) -> str:
  """The report as one HTML file that needs no other."""
  title = "The health of the data"
  rows = []
  for split, found in report["splits"].items():
    rows.append((f"{split}: clips", found["clips"]))
    rows.append((f"{split}: healthy", found["healthy"]))
    rows += [(f"{split}: {fault}", len(of)) for fault, of in found["faults"].items()]
  body = [tag("h1", title), tag("p", json.dumps(report["data"])), markup.table([], rows)]
  if report["listing"]:
    notes = tag("ul", *(tag("li", note) for note in report["listing"]))
    body += [tag("p", "Told while the clips were listed:"), notes]
  body += [figure(*picture) for picture in pictures[:SHOWN]]
  if len(pictures) > SHOWN:
    body.append(tag("p", f"{len(pictures) - SHOWN} more are in report.json."))
  return markup.page(title, *body, style=STYLE)


def figure(fault: str, told: str, picture: bytes | None) -> markup.Html:
  """A clip with what is wrong of it."""
  inside = [tag("figcaption", tag("b", fault), tag("br"), told)]
  if picture is not None:
    inside.insert(0, markup.picture(picture, "jpeg"))
  return tag("figure", *inside)
