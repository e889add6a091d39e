"""--mode=port: turns checkpoints of other code bases into a folder of weights.

files -> the tensors of each network of the config's system -> one folder of weights, that training
starts from and sampling reads, whatever the mesh.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fbjax import build, checks, errors, port, start, trees
from fbjax import weights as weights_lib
from fbjax.evaluation import networks as metrics
from fbjax.modes import memory
from fbjax.port import convert, files, table
from fbjax.systems import base, networks

logger = logging.getLogger(__name__)


class Found(NamedTuple):
  """Where the tensors of a network are: in which file, behind which prefix."""

  file: int
  prefix: str
  tensors: dict[str, np.ndarray]


def port_files(config: dict[str, Any], weights: Sequence[str], out: str | None) -> None:
  """Reads checkpoints into a folder of weights that `config.weights` can name.

  `config.start` says what the files may lack: leaves that a run draws anew, sets to zero or widens.
  `config.port` has regexes of keys that may be left over: `ignore` of those of no network,
  `<network>.ignore` of those of a network.

  Raises:
    UserError: for files that do not hold the config's networks, listing every key that is wrong;
      for files that cannot be read, or a folder that already holds weights.
  """
  if not weights or not out:
    raise errors.UserError(
      "--mode=port needs --weights=<checkpoint>[,<another>] and --out=<folder>"
    )
  memory.return_freed()
  system = build.make_networks(config, None)
  rules, ignore = config["start"], check_ignore(config["port"], system)
  start.check_rules(rules, system)
  elsewhere = build.of_prior_run(config, system)
  wanted = {name: spec for name, spec in system.networks.items() if name not in elsewhere}
  opened = [files.read(file) for file in weights]
  for file, found in zip(weights, opened, strict=True):
    logger.info("%s: %s with %d tensors.", file, found.kind, len(found.tensors))
    if found.inert:
      logger.info("  not run and not read: %s", ", ".join(found.inert))

  located = {name: locate(name, spec, opened, rules.get(name, {})) for name, spec in wanted.items()}
  located = {name: found for name, found in located.items() if found is not None}
  leaves, about, count = {}, {}, 0
  kept = left_over(opened, list(located.values()), ignore[""])
  if kept:
    logger.info("Of no network: %s.", ", ".join(sorted(map(files.printable, kept))))
  for name, found in located.items():
    spec = wanted[name]
    params, report = fill(name, spec, found.tensors, rules.get(name, {}), ignore.get(name, ()))
    logger.info("%s", report)
    count += report.count
    leaves |= {weights_lib.network_path(name, p): x for p, x in trees.flatten(params).items()}
    layout = table.layout_name(spec.network, spec.sizes, found.tensors)
    # A network's own file has no prefix; exported, all networks are in one.
    prefix = found.prefix or table.prefix(spec.network, layout)
    about[name] = {"network": spec.network, "prefix": prefix, "layout": layout}
    # What the network does not need is kept for the way back.
    kept |= {prefix + key: found.tensors[key] for key in report.left if key in found.tensors}

  for key in [key for key, x in kept.items() if isinstance(x, files.Unread)]:
    logger.info("Not kept for the way back: %s.", kept.pop(key).problem)
  leaves |= {f"left/{key}": x for key, x in kept.items()}
  weights_lib.write(out, leaves, check, {"files": list(weights), "parts": about})
  for name in wanted.keys() - located.keys():
    logger.info("%s is in no file: every run draws it anew.", name)
  logger.info("Wrote %s parameters to %s; train with --config.weights=%s.", f"{count:,}", out, out)


def port_network(network: str, weights: Sequence[str], out: str | None) -> None:
  """Reads the weights of a network that a measure needs into the folder where it looks for them.

  Args:
    network: one of `evaluation.networks.SPECS`.
    weights: its checkpoint, or several with a part each.
    out: the folder; None takes the one where the measure looks for it.

  Raises:
    UserError: for a file that does not hold the network, or a folder that already holds weights.
  """
  if not weights:
    raise errors.UserError(
      f"--network={network} needs --weights=<its checkpoint>[,<another part>]: "
      f"{metrics.SOURCES[network]}"
    )
  out = out or metrics.folder(network)
  spec = metrics.SPECS[network]
  there = together(weights)
  found = find(spec.network, [there])
  if found is None:
    known = ", ".join(sorted(set(port.recognize(there.tensors).values())))
    raise errors.UserError(
      f"{', '.join(weights)}: {f'that is {known}' if known else 'no network known here'}, and not {network}; "
      f"get {metrics.SOURCES[network]}"
    )
  params, report = fill(network, spec, found.tensors, {}, ())
  logger.info("%s", report)
  leaves = {weights_lib.network_path(network, p): x for p, x in trees.flatten(params).items()}
  about = {"network": spec.network, "prefix": found.prefix, "layout": "pytorch"}
  weights_lib.write(out, leaves, check, {"files": list(weights), "parts": {network: about}})
  logger.info("Wrote %s parameters to %s.", f"{report.count:,}", out)


def together(weights: Sequence[str]) -> files.Checkpoint:
  """The tensors of several files.

  Raises:
    UserError: when two of them hold one of the same name.
  """
  first, *others = (files.read(file) for file in weights)
  for file, other in zip(weights[1:], others, strict=True):
    if twice := sorted(first.tensors.keys() & other.tensors.keys()):
      raise errors.UserError(
        f"{file} holds {files.printable(twice[0])}, as another of --weights does: name files with a part of "
        "the network each"
      )
    first = first._replace(tensors=first.tensors | other.tensors)
  return first


def check_ignore(spec: Mapping[str, Any], system: base.System) -> dict[str, tuple[str, ...]]:
  """Regexes of keys that may be left over, by network; "" for keys of no network.

  Raises:
    UserError: when `config.port` has anything else.
  """
  ignore = {"": checks.patterns("config.port.ignore", spec.get("ignore", ()))}
  for name, own in spec.items():
    if name == "ignore":
      continue
    if name not in system.networks or not isinstance(own, Mapping) or set(own) - {"ignore"}:
      raise errors.UserError(
        f"config.port.{name} is no list of keys to ignore: config.port takes ignore, and "
        f"<network>.ignore for {', '.join(system.networks)}. What a run draws anew, sets to zero or "
        "widens is named in config.start"
      )
    ignore[name] = checks.patterns(f"config.port.{name}.ignore", own.get("ignore", ()))
  return ignore


def find(network: str, opened: Sequence[files.Checkpoint]) -> Found | None:
  """The network in the first file that holds it."""
  for i, file in enumerate(opened):
    prefix = port.locate(network, file.tensors)
    if prefix is not None:
      own = {k.removeprefix(prefix): x for k, x in file.tensors.items() if k.startswith(prefix)}
      return Found(i, prefix, own)
  return None


def locate(
  name: str,
  spec: networks.NetworkSpec,
  opened: Sequence[files.Checkpoint],
  rules: Mapping[str, Any],
) -> Found | None:
  """The network in the first file that holds it; None if none does and it may start anew.

  Raises:
    UserError: when none does, and the rules do not let it.
  """
  found = find(spec.network, opened)
  if found is not None:
    return found
  if ".*" in checks.strings(f"config.start.{name}.new", rules.get("new", ())):
    return None
  there = sorted({network for file in opened for network in port.recognize(file.tensors).values()})
  raise errors.UserError(
    f"no file holds the network {name!r} ({spec.network}) of the config; "
    f"they look like {', '.join(there) or 'no network known here'}. Name a file that has it, or let "
    f"it start anew with config.start.{name}.new=('.*',)"
  )


def fill(
  name: str,
  spec: networks.NetworkSpec,
  tensors: Mapping[str, Any],
  rules: Mapping[str, Any],
  ignore: Sequence[str],
) -> tuple[convert.Params, convert.Report]:
  """The network's leaves that the file has, read only when asked for."""
  new, zero, widen = (
    checks.strings(f"config.start.{name}.{kind}", rules.get(kind, ())) for kind in start.KINDS
  )
  try:
    return port.fill(
      spec.network,
      tensors,
      spec.sizes,
      optional=new + zero,
      narrow=new + widen,
      ignore=ignore,
    )
  except errors.UserError as error:
    raise errors.UserError(f"network {name!r} of the system: {error}") from None


def left_over(
  opened: Sequence[files.Checkpoint], located: Sequence[Found], ignore: Sequence[str]
) -> dict[str, np.ndarray]:
  """Tensors of no network: schedule buffers, and what the config ignores.

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
    lines = "\n".join(
      f"  {files.printable(key)} {tuple(left[key].shape)}" for key in sorted(unknown)
    )
    raise errors.UserError(
      f"the files hold {len(unknown)} tensors of no network of this config:\n{lines}\n"
      "Name them in config.port.ignore if they are not needed"
    )
  return left


def check(path: str, array: np.ndarray) -> None:
  """Raises a UserError for NaN or infinity in a network's leaf; left-over tensors may have them."""
  if not path.startswith("left/") and not np.all(np.isfinite(array)):
    raise errors.UserError(
      f"the checkpoint has values that are not finite in {path.removeprefix('networks/')}"
    )
