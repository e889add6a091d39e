"""A workdir: the run that it belongs to, and what was changed from one start of it to the next.

  config.json    the config of the newest start, resolved
  origin.json    digests of what it started from and reads: ported weights, neural prior, data
  start.json     by what the newest start was made: see `fbjax.reports.run`
  changes.jsonl  one line a key that a later start changed: step, key, what it was and is
  .lock          held by the process that trains

A workdir's identity is all that changes what its network computes: the system, the bridge, the
prediction, the weights it started from. All else may change between two starts. A workdir is
claimed once a run has all that it needs, and has an identity from its first checkpoint on.
"""

import contextlib
import fcntl
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from fbjax import errors, places

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
ORIGIN_FILE = "origin.json"
CHANGES_FILE = "changes.jsonl"
LOCK_FILE = ".lock"

# Groups and keys of a config that are a workdir's identity, and keys of these groups that are not:
# they change how a network is computed, not what.
IDENTITY = (
  "system",
  "prior",
  "bridge",
  "diffusion",
  "objective.name",
  "objective.predict",
  "trainable",
  "tokenizer",
  "optim.name",
)
FREE = (
  "system.dtype",
  "system.remat",
  "system.codec.at_once",
  "system.codec.tiled",
  "system.unet.dropout",
  "prior.dtype",
  "prior.remat",
  "tokenizer.path",
)
# With other values the resumed run sees other clips and noise than the one that was begun. Where the
# data is on disk does not matter: its digest tells.
STREAM = ("data", "cache", "seed", "train.batch_size")


def newest_step(workdir: str) -> int | None:
  """The step of the newest checkpoint, or None."""
  folder = places.absolute(workdir) / "checkpoints"
  steps = [int(x.name) for x in folder.iterdir() if x.name.isdigit()] if folder.exists() else []
  return max(steps, default=None)


def read_config(workdir: str) -> dict[str, Any]:
  """The resolved config that a workdir was trained with.

  Raises:
    UserError: when nothing was trained there, or the file is damaged.
  """
  home = places.absolute(workdir)
  file = home / CONFIG_FILE
  if not file.exists():
    if (home / "checkpoints").exists():
      raise errors.UserError(
        f"{workdir} has checkpoints, but {CONFIG_FILE} is gone: put it back, or take another --workdir"
      )
    raise errors.UserError(
      f"{workdir} holds no {CONFIG_FILE}: nothing was trained there; "
      "train first, or give the --workdir of a trained run"
    )
  found = _read_json(file)
  if not isinstance(found, dict) or not isinstance(found.get("system"), dict):
    raise errors.UserError(
      f"{file} is damaged: put back the config that {workdir} was trained with"
    )
  return found


def read_origin(workdir: str) -> dict[str, Any] | None:
  """Digests of what a workdir started from, by name; None where the file was removed."""
  file = places.absolute(workdir) / ORIGIN_FILE
  if not file.exists():
    return None
  found = _read_json(file)
  if not isinstance(found, dict):
    raise errors.UserError(f"{file} is damaged: remove it to do without its checks")
  return found


def _read_json(file: epath.Path) -> Any:
  try:
    return json.loads(file.read_bytes())
  except (ValueError, RecursionError):
    return None
  except OSError as error:
    raise errors.UserError(f"cannot read {file} ({error.strerror or error})") from None


def check(workdir: str, config: Mapping[str, Any], origin: Mapping[str, Any] | None = None) -> None:
  """Checks that a config, and what it starts from, are those that a workdir was trained with.

  Args:
    workdir: of a trained run.
    config: nested plain values.
    origin: digests by name; None looks at the config alone.

  Raises:
    UserError: when they are not; names every key that differs. Or when nothing was trained there.
  """
  differing = [
    f"{key}: {was!r} there, {now!r} now"
    for key, was, now in changes(read_config(workdir), config)
    if is_identity(key)
  ]
  there = read_origin(workdir)
  differing += [
    f"{name}: other values there, from {read_config(workdir).get(name)!r}, than in "
    f"{config.get(name)!r} now"
    for name in ("weights", "prior_run")
    if None not in (origin, there) and there.get(name) != origin.get(name)
  ]
  if differing:
    raise errors.UserError(
      f"{workdir} was trained as another network; these keys differ: {'; '.join(differing)}. "
      "Take another --workdir, or these keys as they were"
    )


def is_identity(key: str) -> bool:
  """Whether a dotted key of a config is part of a workdir's identity."""
  return _within(key, IDENTITY) and not _within(key, FREE)


def _within(key: str, groups: tuple[str, ...]) -> bool:
  return any(key == group or key.startswith(f"{group}.") for group in groups)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
  """(dotted key, old value, new value) of every key in which two configs differ."""
  old, new = flatten(old), flatten(json.loads(json.dumps(new)))
  absent = "(absent)"
  return [
    (key, old.get(key, absent), new.get(key, absent))
    for key in sorted(old.keys() | new.keys())
    if old.get(key, absent) != new.get(key, absent)
  ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """A nested config by dotted keys."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


@contextlib.contextmanager
def claim(
  workdir: str, config: Mapping[str, Any], origin: Mapping[str, Any]
) -> Iterator[Callable[[int], None]]:
  """Locks `workdir` for this run while the context lasts; a workdir in a bucket has no lock.

  Args:
    workdir: created when missing.
    config: nested plain values, checked as by `check` where there is a checkpoint.
    origin: digests of what is trained on, and started from.

  Yields:
    A function to call with the step that the run goes on from, once it has all that it needs:
    writes config and origin, and records what they change in the workdir.

  Raises:
    UserError: when the workdir is another run's, somebody trains there, or it cannot be written.
  """
  with _telling(workdir):
    places.probe(workdir)
  with _locked(workdir):
    if newest_step(workdir) is not None:
      check(workdir, config, origin)
    yield functools.partial(_record, workdir, config, origin)


def _record(workdir: str, config: Mapping[str, Any], origin: Mapping[str, Any], step: int) -> None:
  with _telling(workdir):
    if newest_step(workdir) is not None:
      _tell_changes(workdir, config, origin, step)
    if jax.process_index() == 0:
      # In this order: another process that sees the config finds the origin as well.
      places.write_json(f"{workdir}/{ORIGIN_FILE}", origin)
      places.write_json(f"{workdir}/{CONFIG_FILE}", config)


def _telling(workdir: str) -> contextlib.AbstractContextManager[None]:
  return errors.of_the_disk(
    f"cannot write to workdir {workdir}",
    lambda: "choose another --workdir, or make sure that this one can be written to and has room",
  )


@contextlib.contextmanager
def _locked(workdir: str) -> Iterator[None]:
  """The lock of a workdir, held by the first process; a bucket has none."""
  if places.is_remote(workdir) or jax.process_index() != 0:
    yield
    return
  with _telling(workdir):
    file = (places.absolute(workdir) / LOCK_FILE).open("w")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.UserError(
        f"another process is training in {workdir}: wait for it, stop it, or take another --workdir"
      ) from None
    except OSError as error:  # some network file systems know no locks
      logger.warning(
        "Cannot lock %s (%s): make sure that nobody else trains there.", workdir, error
      )
    yield


def _tell_changes(
  workdir: str, config: Mapping[str, Any], origin: Mapping[str, Any], step: int
) -> None:
  """Logs what differs from the last start, and keeps it with the step."""
  found = changes(read_config(workdir), config)
  there = read_origin(workdir) or {}
  if there.get("data") and origin.get("data") and there["data"] != origin["data"]:
    found.append(("the clips of data", there["data"], origin["data"]))
  for key, was, now in found:
    another = _within(key, (*STREAM, "the clips of data")) and key != "data.path"
    logger.log(
      logging.WARNING if another else logging.INFO,
      "%s: %r before, %r from step %s on.%s",
      key,
      was,
      now,
      step,
      " The run is no longer the one that was begun." if another else "",
    )
  if found and jax.process_index() == 0:
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    rows = [{"step": step, "time": now, "key": k, "was": w, "now": n} for k, w, n in found]
    file = places.absolute(workdir) / CHANGES_FILE
    before = file.read_text() if file.exists() else ""
    places.write_text(str(file), before + "".join(json.dumps(row) + "\n" for row in rows))
