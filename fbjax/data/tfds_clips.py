"""Clips as a tensorflow-datasets data set of ArrayRecord files: `prepare` writes, `TFDS` reads.

Some big files instead of many small ones, and metadata that tfds reads without this package. Videos
stay encoded as they lie on disk, so nothing here needs TensorFlow; tfds' own `ucf101` builder and
its `Video` feature do, so data sets made with those are not read here.

  python -m fbjax.data.tfds_clips ucf101 --path=ucf101 --out=tfds/ucf101
  python -m fbjax.main --config=configs/ucf101_bridge.py --workdir=runs/ucf101 \\
    --config.data.name=tfds --config.data.path=tfds/ucf101
"""

import argparse
import contextlib
import functools
import inspect
import io
import json
import logging
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fbjax import errors
from fbjax.data import folder as folders
from fbjax.data import probe, sources, text, transforms, webdataset
from fbjax.data import table as tables
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)

LAYOUTS = {
  "webvid": sources.WebVid,
  "folder": folders.Folder,
  "table": tables.Table,
  "webdataset": webdataset.WebDataset,
  "ucf101": sources.UCF101,
  "msrvtt": sources.MSRVTT,
}
NAME, VERSION = "fbjax_clips", "1.0.0"  # The name is tfds' own for the class below.
FEATURES = ("id", "caption", "label", "video", "fps")
SHARD_BYTES = 1 << 30
# A reader keeps every shard open, and 1024 files is what a process may often have.
MOST_SHARDS = 512
RECORD_BYTES = (1 << 31) - (1 << 20)  # Protocol buffers end at 2 GiB.
REPORT_SECONDS = 10


class TFDS(sources.Videos):
  """A data set that `prepare` wrote: `path` is what it was given as `out`, or a folder below.

  Clips have the order, captions and labels of the source they were made of. `protocol` "official"
  keeps the splits apart; with "all", training and validation both see the clips of all splits.
  Without a split "val", validation sees the training clips.
  """

  def __init__(
    self,
    path: video_lib.Path,
    split: str = "train",
    *,
    protocol: str = "official",
    frames: int = 16,
    size: int | Sequence[int] = 256,
    strides: int | Sequence[int] = (1, 6),
  ):
    sources.check_protocol(protocol)
    root = _find(sources.folder(path))
    entries = _Entries(root, split, protocol)
    super().__init__(root, entries, frames=frames, size=size, strides=strides)

  def digest(self) -> str:
    """That of the source it was made of, unless clips were left out or several splits are read."""
    return self.entries.digest

  def shape(self, index: int) -> probe.Shape:
    entry, data = self.entries.read(index)
    return probe.shape(f"{entry.file} of {self.root}", io.BytesIO(data))

  def read(self, index: int, rng: np.random.Generator) -> video_lib.Clip:
    entry, data = self.entries.read(index)
    name = f"{entry.file} of {self.root}"
    video, stride = video_lib.read_clip(name, self.frames, self.size, self.strides, rng, data)
    return video_lib.Clip(video, entry.caption, stride, entry.label)


class _Entries(Sequence):
  """What the records of some splits say of their clips, read when asked."""

  def __init__(self, root: pathlib.Path, split: str, protocol: str):
    kept = _splits(root)
    if split == "val" and "val" not in kept and protocol == "official":
      logger.warning("%s has no split val: nothing is held out.", root)
      split = "train"
    wanted = kept if protocol == "all" else [split]
    if missing := [name for name in wanted if name not in kept]:
      raise video_lib.BrokenData(f"{root} has no split {missing[0]}; it has {', '.join(kept)}.")
    builder = _load(root)
    for name in wanted:
      for file in builder.info.splits[name].filepaths:
        if not file.exists():
          raise video_lib.BrokenData(f"no file {file}; copy it there or prepare the data anew.")
    made_of = _made_of(root)
    parts = [made_of[name] for name in wanted]
    self.digest = parts[0][0] if len(parts) == len(parts[0]) == 1 else transforms.digest(parts)
    self._root, self._records = root, builder.as_data_source("+".join(wanted))

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> sources.Entry:
    if index >= len(self):
      raise IndexError(index)
    return self.read(index)[0]

  def read(self, index: int) -> tuple[sources.Entry, bytes]:
    """The entry and the encoded video; BrokenClip where the record is damaged."""
    try:
      record = self._records[index]
    except RuntimeError as e:
      raise video_lib.BrokenClip(f"record {index} of {self._root} cannot be read: {e}.") from None
    if record["video"] is None:  # What tfds makes of a file that is cut off.
      raise video_lib.BrokenClip(f"record {index} of {self._root} is empty.")
    file, caption = os.fsdecode(record["id"]), record["caption"].decode(errors="replace")
    return sources.Entry(file, caption, int(record["label"])), record["video"]


def _find(root: pathlib.Path) -> pathlib.Path:
  """The one data set at or below a folder."""
  if (root / "dataset_info.json").is_file():
    return root
  found = [file.parent for file in sorted(root.glob("*/*/dataset_info.json"))]
  found = [folder for folder in found if not folder.name.startswith("incomplete.")]
  if not found:
    raise video_lib.BrokenData(
      f"{root} holds no tfds data set; write one with python -m fbjax.data.tfds_clips."
    )
  if len(found) > 1:
    raise video_lib.BrokenData(
      f"{root} holds {len(found)} tfds data sets; set config.data.path to one, such as {found[0]}."
    )
  return found[0]


def _splits(root: pathlib.Path) -> list[str]:
  """The splits of a data set, which must be of our kind.

  Looks by itself: tfds cannot load the features of many others without TensorFlow.
  """
  try:
    info = json.loads(text.read(root / "dataset_info.json"))
    features = json.loads(text.read(root / "features.json"))
    features = features["featuresDict"]["features"]
    splits, kind = [split["name"] for split in info["splits"]], info["fileFormat"]
  except (ValueError, KeyError, TypeError) as e:
    raise video_lib.BrokenData(f"the tfds data set {root} cannot be read: {e!r}.") from None
  if set(features) != set(FEATURES) or kind != "array_record":
    raise video_lib.BrokenData(
      f"{root} holds {', '.join(sorted(features))} as {kind}, not clips as array_record; "
      "write it with python -m fbjax.data.tfds_clips."
    )
  return splits


def _made_of(root: pathlib.Path) -> dict[str, list[str]]:
  """For each split the digest of the source that it was made of and the files that were left out."""
  splits = _splits(root)
  try:
    metadata = json.loads(text.read(root / "metadata.json"))
    return {name: [metadata["digests"][name], *metadata["left_out"][name]] for name in splits}
  except (ValueError, KeyError, TypeError) as e:
    raise video_lib.BrokenData(
      f"{root} does not say what it was made of ({e!r}); delete it and prepare the data anew."
    ) from None


def _load(root: pathlib.Path) -> Any:
  """tfds' builder of a data set; it fails in many ways where files are damaged."""
  try:
    return _tfds().builder_from_directory(root)
  except Exception as e:
    raise video_lib.BrokenData(f"the tfds data set {root} cannot be read: {e!r}.") from None


def prepare(splits: Mapping[str, sources.Videos], out: video_lib.Path) -> pathlib.Path:
  """Writes the clips of some sources below `out`; returns the folder of the tfds data set.

  A split "val" with the clips of "train" is not written again. Files that are missing or broken are
  left out, named in the log and, as "left_out", in the metadata of tfds. A data set that is there
  already is only reported on; after an interruption, writing starts from the beginning.

  Raises:
    BrokenData: when `out` holds other clips, or no file of a split can be read.
  """
  if not str(out):
    raise video_lib.BrokenData("no --out is given; name a folder to write to.")
  out = pathlib.Path(out)
  for place in (out, *out.parents):
    if place.exists() and not place.is_dir():
      raise video_lib.BrokenData(f"{place} is no folder; choose another --out.")
  splits = dict(splits)
  if splits.keys() == {"train", "val"} and splits["train"].entries == splits["val"].entries:
    logger.info("val has the clips of train; they are written once.")
    del splits["val"]
  digests = {name: source.digest() for name, source in splits.items()}
  folder = out / NAME / VERSION
  if folder.exists():
    if {name: digest for name, (digest, *_) in _made_of(folder).items()} != digests:
      raise video_lib.BrokenData(
        f"{folder} was made of other clips or captions; choose another --out or delete it."
      )
    logger.info("%s is there already; delete it to write it anew.", folder)
  else:
    for leftover in folder.parent.glob("incomplete.*"):
      logger.warning("%s is left of a run that was cut off; delete it.", leftover)
    builder = _builder(splits, digests, out)
    # tfds prints, and makes a folder for downloads.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
      builder.download_and_prepare(download_dir=downloads)
  _report(folder, out)
  return folder


def _report(folder: pathlib.Path, out: pathlib.Path) -> None:
  info = _load(folder).info
  for name, split in info.splits.items():
    logger.info(
      "%s: %d clips in %d files, %.1f MB; %d left out.",
      name,
      split.num_examples,
      split.num_shards,
      sum(file.stat().length for file in split.filepaths) / 1e6,
      len(info.metadata["left_out"][name]),
    )
  logger.info("read it with --config.data.name=tfds --config.data.path=%s", out)


def _builder(
  splits: Mapping[str, sources.Videos], digests: Mapping[str, str], out: pathlib.Path
) -> Any:
  """The tfds builder of these sources.

  Shard by shard, since tfds' other builder sorts what is larger than 1 GB with TensorFlow's files.
  Its ArrayRecord files have group_size 1.
  """
  # Filled while the shards are written, before tfds writes it down.
  left_out: dict[str, list[str]] = {name: [] for name in splits}
  tfds = _tfds()
  classes = next(iter(splits.values())).__dict__.get("classes")
  label = (
    tfds.features.ClassLabel(names=classes) if classes else tfds.features.Scalar(dtype=np.int64)
  )

  class FbjaxClips(tfds.core.ShardBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(VERSION)
    # tfds would look there for checksums of downloads, with a package that it does not require.
    code_path = None

    def _info(self):
      features = tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(doc="The file, relative to the source's folder."),
          "caption": tfds.features.Text(),
          "label": label,
          "video": tfds.features.Tensor(
            shape=(), dtype=np.object_, doc="The content of the video file."
          ),
          "fps": tfds.features.Scalar(dtype=np.float32, doc="0 where the file does not say."),
        }
      )
      return tfds.core.DatasetInfo(
        builder=self,
        description="Encoded video clips with captions, written by fbjax.",
        features=features,
        metadata=tfds.core.MetadataDict(digests=dict(digests), left_out=left_out),
      )

    def _shard_iterators_per_split(self, dl_manager):
      return {
        name: _Split(name, source, left_out[name]).shards() for name, source in splits.items()
      }

  return FbjaxClips(data_dir=os.fspath(out), file_format="array_record")


class _Split:
  """The examples of one source, shard by shard; names what it leaves out in `left_out`."""

  def __init__(self, name: str, source: sources.Videos, left_out: list[str]):
    self._name, self._source, self._left_out = name, source, left_out
    self._done, self._told = 0, time.monotonic()

  def shards(self) -> list[Callable[[], Iterator]]:
    clips = range(len(self._source))
    count = min(1 + sum(map(self._size, clips)) // SHARD_BYTES, MOST_SHARDS, len(clips))
    return [
      lambda indices=indices: self._examples(indices) for indices in np.array_split(clips, count)
    ]

  def _size(self, index: int) -> int:
    try:
      return self._source.file_size(index)
    except (OSError, video_lib.BrokenClip):
      return 0  # It is named when its turn comes.

  def _examples(self, indices: np.ndarray) -> Iterator[tuple[int, "_Example"]]:
    clips = len(self._source)
    for index in map(int, indices):
      entry = self._source.entries[index]
      try:
        path, data = self._source.content(index)
        fps = video_lib.frame_rate(path, data)
        if self._source.file_size(index) > RECORD_BYTES:
          raise video_lib.BrokenClip(f"{path} is larger than the 2 GB of a record.")
        del data
      except video_lib.BrokenClip as e:
        self._left_out.append(entry.file)
        if len(self._left_out) == clips:
          raise video_lib.BrokenData(
            f"none of the {clips} clips of {self._name} can be read; the last: {e}"
          ) from None
        logger.warning("%s Left out.", e)
      else:
        yield (
          index,
          _Example(
            id=os.fsencode(entry.file),
            caption=text.clean(entry.caption),
            label=entry.label,
            video=functools.partial(self._source.content, index),
            fps=fps,
          ),
        )
      self._done += 1
      if time.monotonic() - self._told > REPORT_SECONDS:
        self._told = time.monotonic()
        logger.info("%s: %d of %d clips", self._name, self._done, clips)


class _Example(dict):
  """Features of a clip; its video is read when tfds asks for it.

  tfds keeps the examples of a shard until it has counted them: so they are small.
  """

  def __getitem__(self, key: str) -> Any:
    value = super().__getitem__(key)
    if key != "video":
      return value
    path, data = value()
    return pathlib.Path(path).read_bytes() if data is None else data


def _tfds() -> Any:
  """tensorflow_datasets, which takes a second to import that other sources need not pay."""
  import tensorflow_datasets

  return tensorflow_datasets


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one sentence, where argparse prints the usage as well."""

  def error(self, message: str) -> None:
    sys.exit(f"error: {message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog="python -m fbjax.data.tfds_clips",
    description="Writes video files as a tensorflow-datasets data set, without TensorFlow.",
  )
  layouts = parser.add_subparsers(dest="layout", required=True, metavar="|".join(LAYOUTS))
  for name, layout in LAYOUTS.items():
    flags = layouts.add_parser(name, help=layout.__doc__.splitlines()[0])
    flags.add_argument("--path", required=True, help="where the data is, as config.data.path")
    flags.add_argument("--out", required=True, help="a folder to write to")
    flags.add_argument(
      "--splits",
      default="train,val",
      choices=("train,val", "train", "val"),
      metavar="SPLITS",
      help="train, val, or by default both: train,val",
    )
    for option in ("fold", "seed", "root", "val"):
      if argument := inspect.signature(layout).parameters.get(option):
        flags.add_argument(
          f"--{option}",
          type=type(argument.default),
          default=argument.default,
          help=f"as config.data.{option}",
        )
  return parser


def main(argv: list[str] | None = None) -> None:
  """Runs the command line; what the user got wrong ends as one sentence and exit status 1."""
  options = vars(_parser().parse_args(argv))
  layout, path, out = (options.pop(name) for name in ("layout", "path", "out"))
  names = options.pop("splits").split(",")
  try:
    prepare({name: LAYOUTS[layout](path, name, **options) for name in names}, out)
  except errors.UserError as e:
    sys.exit(f"error: {e}")
  except OSError as e:
    sys.exit(f"error: {out} cannot be written: {e}.")


if __name__ == "__main__":
  logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
  for package in ("fbjax", __name__):
    logging.getLogger(package).setLevel(logging.INFO)
  main()
