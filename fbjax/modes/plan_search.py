"""--mode=plan --search: the fastest way to train a config on some devices that fits into their memory.

What is tried changes how a step is computed, never what it computes: rematerialization
(`system.remat`), gradient accumulation, and over how many devices weights are split (`mesh.fsdp`).
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fbjax import sharding

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
KEPT = ("none", "products", "full")  # the less is kept, the more is done again
DEEPEST = 8  # parts of a batch


def search(
  config: dict[str, Any], devices: int, measure: Callable[[dict[str, Any]], Row]
) -> tuple[dict[str, Any], list[Row]]:
  """Searches for the changes to a config that make its step the fastest of those that fit.

  How many devices share a clip (`context`, `tensor`) stays as the config has it. Weights are first
  split over all other devices; for each `system.remat` of `KEPT`, the batch is accumulated over as
  few parts as fit. Of these the fastest is then tried with weights split over half as many devices,
  and so on, as long as that gets faster.

  Args:
    config: with the batch and the sizes that are to be trained.
    devices: how many there are, all together.
    measure: compiles a config's step; its row says whether it `fits`, its `total_flops`, and
      `seconds` where the speed of a chip is known.

  Returns:
    The best changes, by dotted keys of a config, empty when nothing fits; and the rows of all that
    was tried, each with its `changes`.
  """
  rows: list[Row] = []
  within = [config["mesh"].get(axis, 1) for axis in sharding.AXES if axis not in sharding.CLIPS]
  shares = devices // math.prod(within)

  def tried(changes: dict[str, Any]) -> Row:
    row = dict(measure(changed(config, changes))) | {"changes": changes}
    rows.append(row)
    logger.info("%s", told(row))
    return row

  best: Row | None = None
  for keep in KEPT if "remat" in config["system"] else (None,):
    for parts in _parts(config["train"]["batch_size"], shares):
      changes = {"mesh.data": -1, "mesh.fsdp": shares, "train.accumulate": parts}
      row = tried(changes if keep is None else changes | {"system.remat": keep})
      if row["fits"]:
        if best is None or time_of(row) < time_of(best):
          best = row
        break
  while best is not None and best["changes"]["mesh.fsdp"] % 2 == 0:
    row = tried(best["changes"] | {"mesh.fsdp": best["changes"]["mesh.fsdp"] // 2})
    if not row["fits"] or time_of(row) >= time_of(best):
      break
    best = row
  return ({} if best is None else best["changes"]), rows


def changed(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """The config with other values at dotted keys."""
  config = copy.deepcopy(config)
  for path, value in changes.items():
    *groups, key = path.split(".")
    group = config
    for name in groups:
      group = group[name]
    group[key] = value
  return config


def time_of(row: Row) -> float:
  """Seconds of a step whose collectives overlap with nothing; its FLOPs without a known chip."""
  if "seconds" not in row:
    return row["total_flops"]
  return row["seconds"]["roofline"] + row["seconds"]["messages"]


def told(row: Row) -> str:
  """`fsdp 16, accumulate 1, remat full: fits, 0.95 s`, or `fits, 1.21e+15 FLOP`."""
  name = ", ".join(
    f"{key.split('.')[1]} {value}" for key, value in row["changes"].items() if key != "mesh.data"
  )
  if not row["fits"]:
    return f"{name}: does not fit"
  return f"{name}: fits, {time_of(row):.3g} {'s' if 'seconds' in row else 'FLOP'}"


def _parts(batch_size: int, shares: int) -> Iterator[int]:
  """Into how many equal parts a batch can be cut, of which every share of the devices gets as much.

  It may stay whole in any case: a batch that the devices do not share evenly is for `measure` to refuse.
  """
  return (
    n
    for n in (2**i for i in range(DEEPEST.bit_length()))
    if n == 1 or not batch_size % (n * shares)
  )
