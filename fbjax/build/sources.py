"""The data sets that a config can name, and mixtures of them."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fbjax import checks, errors
from fbjax.build import calls
from fbjax.data import folder, mixture, sources, synthetic, table, tfds_clips, webdataset


def mix(
  parts: Mapping[str, Any],
  *,
  split: str = "train",
  frames: int = 16,
  size: int | Sequence[int] = 256,
  strides: int | Sequence[int] = (1, 6),
) -> mixture.Mixture:
  """A mixture of named sources in proportion to their `weight`, 1 by default.

  `frames`, `size` and `strides` are the defaults of all parts.
  """
  given = {"frames": frames, "size": size, "strides": strides}
  made, weights = {}, {}
  for name, part in parts.items():
    key = f"data.parts.{name}"
    if not isinstance(part, Mapping):
      raise errors.UserError(f"config.{key} is {part!r}; expected a group with a name")
    own = {k: v for k, v in part.items() if k != "weight"}
    weights[name] = part.get("weight", 1.0)
    source = calls.choose(SOURCES, own.get("name"), f"{key}.name")
    takes = inspect.signature(source).parameters
    sizes = [
      checks.pair(f"config.{name}.size", value, "height and width")
      for name, value in (("data", size), (key, own.get("size", size)))
    ]
    if own.get("frames", frames) != frames or sizes[0] != sizes[1]:
      raise errors.UserError(
        f"config.{key} has clips of another length or size than config.data.frames={frames!r} and .size={size!r}, "
        "and those of a batch are alike: leave frames and size out of it"
      )
    own = {k: v for k, v in given.items() if k in takes} | own
    try:
      made[name] = calls.make(SOURCES, own, key, split=split)
    except errors.UserError as error:  # sources know nothing of where they stand
      told = re.sub(r"config\.data\.(?!parts\.)", f"config.{key}.", str(error))
      raise type(error)(told) from error
  return mixture.Mixture(made, weights)


SOURCES = {
  "synthetic": synthetic.Shapes,
  "webvid": sources.WebVid,
  "folder": folder.Folder,
  "table": table.Table,
  "webdataset": webdataset.WebDataset,
  "ucf101": sources.UCF101,
  "msrvtt": sources.MSRVTT,
  "tfds": tfds_clips.TFDS,
  "mixture": mix,
}
