"""Checkpoints of other code bases in and out: what --mode=port and --mode=export do.

files -> the tensors of each network of the config's system -> one folder of weights, that training
starts from and sampling reads, whatever the mesh; and back, tensor by tensor as it was.
"""

import ctypes
import functools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from fbjax import build, errors, port
from fbjax import weights as weights_lib
from fbjax.port import convert, files, table
from fbjax.systems import base, networks

logger = logging.getLogger(__name__)

ABOUT = "port.json"
RULES = ("new", "zero", "widen", "ignore")


class Found(NamedTuple):
  """Where the tensors of a part are: in which file, behind which prefix."""

  file: int
  prefix: str
  tensors: dict[str, np.ndarray]


def port_files(config: dict[str, Any], weights: Sequence[str], out: str) -> None:
  """Reads checkpoints into a folder of weights that `config.weights` can name.

  `config.port` says what of a part may differ: {part: {new: regexes of leaves drawn anew where the
  files have none that fit, zero: the same but zero, widen: kernels with more input channels, ignore:
  keys to leave}}; its own key `ignore` is for keys of no part.

  Raises:
    UserError: for files that do not hold the config's networks; lists every key that is wrong.
    UserError: for files that cannot be read, or a folder that already holds weights.
  """
  if not weights or not out:
    raise errors.UserError(
      "--mode=port needs --weights=<checkpoint>[,<another>] and --out=<folder>"
    )
  return_memory()
  system = build.make_system(config, None).whole
  rules = check_rules(config["port"], system)
  elsewhere = build.of_prior_run(config, system)
  wanted = {name: part for name, part in system.networks.items() if name not in elsewhere}
  opened = [files.read(file) for file in weights]
  for file, found in zip(weights, opened, strict=True):
    logger.info("%s: %s with %d tensors.", file, found.kind, len(found.tensors))
    if found.inert:
      logger.info("  not run and not read: %s", ", ".join(found.inert))

  located = {name: locate(name, part, opened, rules.get(name, {})) for name, part in wanted.items()}
  lazy, about, count = {}, {}, 0
  kept = left_over(opened, list(located.values()), rules["ignore"])
  if kept:
    logger.info("Of no network: %s.", ", ".join(sorted(kept)))
  for name, part in wanted.items():
    found = located[name]
    lazy[name], report = fill(name, part, found.tensors, rules.get(name, {}))
    logger.info("%s", report)
    count += report.count
    layout = table.layout_name(part.network, part.sizes, found.tensors)
    # A network's own file has no prefix; exported, all networks are in one.
    prefix = found.prefix or table.prefix(part.network, layout)
    about[name] = {"network": part.network, "prefix": prefix, "layout": layout}
    # What the network does not need is kept for the way back.
    kept |= {prefix + key: found.tensors[key] for key in report.left if key in found.tensors}

  weights_lib.write_weights(out, leaves(system, lazy, kept), check)
  (epath.Path(out) / ABOUT).write_text(json.dumps({"files": list(weights), "parts": about}) + "\n")
  logger.info("Wrote %s parameters to %s; train with --config.weights=%s.", f"{count:,}", out, out)


def return_memory() -> None:
  """From now on arrays that are freed go back to the system at once.

  By itself glibc keeps up to 64 MB of them for every thread, 450 MB with TensorStore's threads.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc only
  if mallopt is not None:
    m_mmap_threshold = -3
    mallopt(m_mmap_threshold, 2**20)


def check_rules(spec: Mapping[str, Any], system: base.System) -> dict[str, Any]:
  """`config.port` with its gaps filled.

  Raises:
    UserError: for a key that is no part of the system, or no rule.
  """
  for name, rules in spec.items():
    if name != "ignore" and name not in system.networks:
      raise errors.UserError(
        f"config.port has {name!r}; expected ignore, {', '.join(system.networks)}"
      )
    if name != "ignore" and (unknown := sorted(set(rules) - set(RULES))):
      raise errors.UserError(
        f"config.port.{name} has {', '.join(unknown)}; it takes {', '.join(RULES)}"
      )
  return {"ignore": ()} | dict(spec)


def locate(
  name: str,
  part: networks.NetworkSpec,
  opened: Sequence[files.Checkpoint],
  rules: Mapping[str, Any],
) -> Found:
  """The part in the first file that holds it.

  Raises:
    UserError: when none does, and the rules do not make it anew.
  """
  for i, file in enumerate(opened):
    prefix = port.locate(part.network, file.tensors)
    if prefix is not None:
      own = {k.removeprefix(prefix): x for k, x in file.tensors.items() if k.startswith(prefix)}
      return Found(i, prefix, own)
  if ".*" in rules.get("new", ()):
    return Found(-1, "", {})
  there = sorted({network for file in opened for network in port.recognize(file.tensors).values()})
  raise errors.UserError(
    f"no file holds the part {name!r} ({part.network}) of the config; "
    f"they look like {', '.join(there) or 'no network known here'}. Name a file that has it, or let "
    f"it be drawn anew with config.port.{name}.new=('.*',)"
  )


def fill(
  name: str, part: networks.NetworkSpec, tensors: Mapping[str, Any], rules: Mapping[str, Any]
) -> tuple[convert.Params, convert.Report]:
  """The part's leaves, read only when asked for, by the rules of the config."""
  new, zero = tuple(rules.get("new", ())), tuple(rules.get("zero", ()))
  shapes = {path: x.shape for path, x in convert.flatten(part.shapes()).items()}
  zeros = convert.match(zero, shapes)
  wanted = [path for path in convert.match(new, shapes) if path not in zeros]
  drawn = dict(networks.fresh(part, jax.random.key(0), wanted))
  drawn |= {path: np.broadcast_to(np.float32(0), shapes[path]) for path in zeros}
  try:
    return port.fill(
      part.network,
      tensors,
      part.sizes,
      fresh=convert.nest(drawn),
      new=new + zero,
      widen=tuple(rules.get("widen", ())),
      ignore=tuple(rules.get("ignore", ())),
    )
  except ValueError as error:
    raise errors.UserError(f"part {name!r} of the system: {error}") from None


def left_over(
  opened: Sequence[files.Checkpoint], located: Sequence[Found], ignore: Sequence[str]
) -> dict[str, np.ndarray]:
  """Tensors of no part: schedule buffers, and what the config ignores.

  Raises:
    UserError: when there are others.
  """
  left = {}
  for i, file in enumerate(opened):
    prefixes = tuple(found.prefix for found in located if found.file == i)
    left |= {key: x for key, x in file.tensors.items() if not key.startswith(prefixes)}
  # A buffer of the schedule has no module before its name: they are computed here.
  unknown = [key for key in left if "." in key and not convert.match(ignore, [key])]
  if unknown:
    lines = "\n".join(f"  {key} {tuple(left[key].shape)}" for key in sorted(unknown))
    raise errors.UserError(
      f"the files hold {len(unknown)} tensors of no network of this config:\n{lines}\n"
      "Name them in config.port.ignore if they are not needed"
    )
  return left


def leaves(
  system: base.System, lazy: Mapping[str, Any], left: Mapping[str, np.ndarray]
) -> dict[tuple[Any, ...], Any]:
  """Everything by its path in the folder."""
  flat: dict[tuple[Any, ...], Any] = {}
  for name, tree in lazy.items():
    group = "params" if system.networks[name].trained else "frozen"
    flat |= {(group, name, *convert.keys(k)): x for k, x in convert.flatten(tree).items()}
  return flat | {("left", key): x for key, x in left.items()}


def check(path: tuple[Any, ...], array: np.ndarray) -> None:
  """Raises when weights are no numbers; what no network needs may hold anything."""
  if path[0] != "left" and not np.all(np.isfinite(array)):
    name = "/".join(map(str, path[1:]))
    raise errors.UserError(f"the checkpoint has values that are not finite in {name}")


def export(
  config: dict[str, Any], params: base.Params, frozen: base.Params, folder: str, out: str
) -> None:
  """Writes weights in the layout and under the names of the files they were ported from.

  Args:
    config: of the weights.
    params, frozen: trees whose leaves have shape, dtype and np.asarray.
    folder: the ported weights, which know the layout and what the files held besides.
    out: a .ckpt, .pt or .safetensors with everything, or a folder with one for each network and its
      config.json, which diffusers and transformers load.
  """
  return_memory()
  system = build.make_system(config, None).whole
  about = json.loads((epath.Path(folder) / ABOUT).read_text())["parts"]
  # A neural prior of another run was not ported, and goes back from there.
  held = {name: part for name, part in system.networks.items() if name in about}
  tensors = {
    name: port.unfill(
      part.network, (params if part.trained else frozen)[name], part.sizes, about[name]["layout"]
    )
    for name, part in held.items()
  }
  if not pathlib.Path(out).suffix:
    for name, part in held.items():
      write_folder(name, part, about[name]["layout"], tensors[name], pathlib.Path(out))
    return
  together = {
    about[name]["prefix"] + key: x for name, lazy in tensors.items() for key, x in lazy.items()
  } | stored_tree(folder).get("left", {})
  pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
  files.write(out, together)
  logger.info("Wrote %d tensors to %s.", len(together), out)


def write_folder(
  name: str, part: networks.NetworkSpec, layout: str, tensors: Mapping[str, Any], out: pathlib.Path
) -> None:
  """One network as diffusers or transformers keep it.

  Raises:
    UserError: when its origin has no folders.
  """
  found = table.layout(part.network, part.sizes, name=layout)
  if not found.file:
    raise errors.UserError(
      f"the part {name!r} ({part.network}) comes from one file: give --out a name in .ckpt or "
      ".safetensors"
    )
  file = out / found.file
  file.parent.mkdir(parents=True, exist_ok=True)
  (file.parent / "config.json").write_text(json.dumps(found.config(**part.sizes), indent=2) + "\n")
  files.write(file, tensors)
  logger.info("Wrote %d tensors to %s.", len(tensors), file)


def stored_tree(folder: str) -> dict[str, Any]:
  """All that is in a folder of weights, read only when asked for."""
  flat = {}
  for path, like in weights_lib.stored(folder).items():
    keys = path[:1] + tuple(int(k) if k.isdigit() else k for k in path[1:])
    flat[keys] = networks.Deferred(like, functools.partial(weights_lib.read_leaf, folder, path))
  return weights_lib.nest(flat)
