"""Prepares a large source once: its healthy clips, small, in tars that the source `webdataset` reads.

python -m fbjax.prepare --config=configs/webvid_saf.py --config.data.path=webvid --out=prepared
python -m fbjax.prepare ... -- --runner=DataflowRunner --project=...   (any runner of Apache Beam)

  about.json                     what it is made of
  train/00003-of-00120.tar       clips and captions; also val/
  train/00003-of-00120.json      what was left out of it, and why; written last

A shard depends on the source and its number alone, appears under its name when it is complete, and
is made once: after a kill, the same command makes those that are missing. It needs CPUs alone;
--mode=cache is what runs the encoders.
"""

import concurrent.futures
import contextlib
import copy
import functools
import importlib
import io
import json
import logging
import multiprocessing
import os
import pathlib
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from fbjax import build, errors, main, options, places
from fbjax.data import objects, playback, sources, storage, text, tfds_clips
from fbjax.data import video as video_lib
from fbjax.modes import doctor

logger = logging.getLogger(__name__)

ABOUT = "about.json"
# Clips of a shard: few enough that a small set keeps a machine busy, and that a kill loses little.
LEAST, MOST, SHARES = 16, 512, 64
FPS = 25.0  # of a file that does not say
CRF = 16  # of the clips: hardly to be told from what they are made of
GOP = 24  # frames from one that can be begun at to the next
MOST_FRAMES = 20_000  # of a clip


class Shard(NamedTuple):
  """One of `count` contiguous parts of a split, whose files are written below `out`.

  data: `config.data` as JSON.
  """

  data: str
  out: str
  split: str
  number: int
  count: int

  @property
  def name(self) -> str:
    return f"{self.number:05}-of-{self.count:05}"

  @property
  def folder(self) -> objects.Place:
    return storage.place(self.out) / self.split


def prepare_shard(shard: Shard) -> dict[str, Any]:
  """Makes a shard unless it is there.

  Returns:
    Its report: `clips` that there were, `healthy` ones, and `faults` as the doctor's.

  Raises:
    UserError: when it cannot be written, or the source's lists cannot be read.
  """
  done = shard.folder / f"{shard.name}.json"
  if done.exists():
    return json.loads(done.read_bytes())
  source = copy.copy(_source(shard.data, shard.split))
  total, k, n = len(source), shard.number, shard.count
  source.entries = source.entries[k * total // n : (k + 1) * total // n]
  findings = doctor.look_at_all(source, source.frames, threads=1)
  faults = doctor.collect(findings)
  sick = {file for of in faults.values() for file in of}
  with errors.of_the_disk(f"cannot write {done}", lambda: "make room, or give another --out"):
    with (
      _written(shard.folder / f"{shard.name}.tar") as aside,
      tarfile.open(aside, "w") as tar,
    ):
      for index, entry in enumerate(source.entries):
        if entry.file in sick:
          continue
        try:
          clip = encoded(source, index)
        except video_lib.BrokenClip as error:
          faults.setdefault("undecodable", {})[entry.file] = str(error)
          continue
        about = {"caption": text.clean(entry.caption), "file": text.printable(entry.file)}
        key = f"{k * total // n + index:09}"
        _add(tar, f"{key}.json", json.dumps(about).encode())
        _add(tar, f"{key}.mp4", clip)
    clips = len(source.entries)
    left_out = {file for of in faults.values() for file in of}
    healthy = sum(entry.file not in left_out for entry in source.entries)
    report = {"clips": clips, "healthy": healthy, "faults": faults}
    _write_json(done, report)
  return report


def encoded(source: sources.Videos, index: int) -> bytes:
  """All frames of a clip, cropped as a training crops them, as an mp4; BrokenClip where there are none."""
  path, data = source.content(index)
  fps = video_lib.frame_rate(path, data) or FPS
  frames = (
    video_lib.resize_crop(picture.image, source.size, picture.aspect)
    for picture in playback.from_start(path, data, range(MOST_FRAMES))
  )
  with tempfile.TemporaryDirectory(prefix="fbjax-") as folder:
    file = pathlib.Path(folder) / "clip.mp4"
    try:
      video_lib.write_frames(file, frames, source.size, fps=fps, crf=CRF, gop=GOP)
    except playback.Unplayable as error:
      raise video_lib.BrokenClip(f"{path} {error}.") from None
    return file.read_bytes()


@functools.lru_cache(2)
def _source(data: str, split: str) -> sources.Videos:
  """The source of a split, listed once in a process."""
  source = build.make_source({"data": json.loads(data)}, split)
  if not isinstance(source, sources.Videos) or isinstance(source, tfds_clips.TFDS):
    raise errors.UserError(
      "only video files are prepared, in their folders or tars: point config.data at them"
    )
  return source


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


def _written(file: objects.Place) -> contextlib.AbstractContextManager[pathlib.Path]:
  """As `storage.written`, also where an engine has two workers make one shard."""
  if isinstance(file, objects.Address):
    return storage.written(file)
  return places.written(os.fspath(file))


def _write_json(file: objects.Place, value: Any) -> None:
  with _written(file) as aside:
    aside.write_text(json.dumps(value, indent=1) + "\n")


def plan(config: dict[str, Any], out: str, size: int | None = None) -> list[Shard]:
  """Lists the shards of a config's data, and writes the folder's about.json or checks it.

  `size` is how many clips a shard has at most; None derives it from the number of clips.

  Raises:
    UserError: when the folder was begun with other clips or sizes; names what differs.
  """
  data, made, digests, counts = json.dumps(config["data"], sort_keys=True), [], {}, {}
  for split in doctor.SPLITS:
    source = _source(data, split)
    digests[split] = source.digest()
    if split == "val" and digests["val"] == digests["train"]:
      logger.info("val holds the clips of train, and is left out.")
      continue
    clips = len(source)
    count = counts[split] = -(-clips // (size or min(max(-(-clips // SHARES), LEAST), MOST)))
    made += [Shard(data, out, split, k, count) for k in range(count)]
  wanted = {"digests": digests, "shards": counts}
  wanted |= {"frames": source.frames, "size": list(source.size)}
  file = storage.place(out) / ABOUT
  if ABOUT not in storage.listed(file.parent):
    with errors.of_the_disk(f"cannot write {file}", lambda: "give another --out"):
      _write_json(file, wanted)
    return made
  there = json.loads(file.read_bytes())
  for name, value in wanted.items():
    if there.get(name) != value:
      raise errors.UserError(
        f"{out} was begun with other {name}: {there.get(name)} there, {value} now; take another --out"
      )
  return made


def missing(shards: Sequence[Shard]) -> list[Shard]:
  there = {folder: storage.listed(folder) for folder in {shard.folder for shard in shards}}
  return [shard for shard in shards if f"{shard.name}.json" not in there[shard.folder]]


def here(shards: Sequence[Shard], workers: int | None = None) -> None:
  """Makes shards in `workers` processes on this machine; by default one per CPU."""
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), context) as pool:
    for done, report in enumerate(pool.map(prepare_shard, shards), 1):
      told = f"{report['healthy']} of {report['clips']} clips are healthy"
      logger.info("%d of %d shards; of the last, %s.", done, len(shards), told)


def on_beam(shards: Sequence[Shard], arguments: Sequence[str]) -> None:
  """Makes shards with Apache Beam, whose own arguments these are."""
  try:
    beam = importlib.import_module("apache_beam")
    pipeline_options = importlib.import_module("apache_beam.options.pipeline_options")
  except ImportError:
    raise errors.UserError(
      "what follows -- is for Apache Beam, which is not here: pip install -r requirements-prepare.txt in an "
      "environment of its own, or leave it out, to prepare on this machine alone"
    ) from None
  with beam.Pipeline(options=pipeline_options.PipelineOptions(list(arguments))) as pipeline:
    # Tuples are Beam's own; reshuffled, so that shards are not made one after the other.
    rows = pipeline | beam.Create([tuple(shard) for shard in shards])
    _ = rows | beam.Reshuffle() | "prepare_shard" >> beam.MapTuple(_prepare)


def _prepare(*shard: Any) -> None:
  prepare_shard(Shard(*shard))


def cli(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; what the user got wrong ends as one sentence and exit status 1."""
  logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
  logging.getLogger("fbjax").setLevel(logging.INFO)
  given = [*(sys.argv if argv is None else argv), "--"]
  own, beam = given[: given.index("--")], given[given.index("--") + 1 : -1]
  try:
    # The same flags: a config, whose data to go through, and --out.
    config, _ = main.parse_flags([*own, "--mode=doctor"])
    out = options.taken("doctor")["out"]
    if not out:
      raise errors.UserError("give --out=<folder for the clips>")
    shards = plan(config, out)
    if todo := missing(shards):
      logger.info("%d of %d shards are there.", len(shards) - len(todo), len(shards))
      on_beam(todo, beam) if beam else here(todo)
    val = f" --config.data.val={out}/val" if any(shard.split == "val" for shard in shards) else ""
    name = "--config.data.name=webdataset"
    logger.info("To train on it: %s --config.data.path=%s/train%s", name, out, val)
  except errors.UserError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  from fbjax import prepare  # by its own name, which other machines know it by

  prepare.cli()
