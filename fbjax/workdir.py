"""A workdir: whose it is, and which config it was trained with."""

import json
from typing import Any

import jax
from etils import epath

from fbjax import errors

CONFIG_FILE = "config.json"


def claim(workdir: str, config: dict[str, Any], free: tuple[str, ...] = ()) -> None:
  """Makes `workdir` this run's, or checks that it already is: its config must be the same.

  Args:
    workdir: created when missing.
    config: nested plain values.
    free: dotted keys, or beginnings of keys, that may change between runs of one workdir.

  Raises:
    UserError: when the workdir was trained with another config; names every key that differs.
    UserError: when the workdir cannot be written.
  """
  path = epath.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".write-{jax.process_index()}"
    probe.write_text("")
    probe.unlink()
  except OSError as error:
    raise errors.UserError(
      f"cannot write to workdir {workdir} ({error.strerror or error}); choose another --workdir"
    ) from None
  if (path / CONFIG_FILE).exists():
    check(workdir, config, free)
  if jax.process_index() == 0:
    (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def check(workdir: str, config: dict[str, Any], free: tuple[str, ...] = ()) -> None:
  """Checks that `workdir` was trained with `config`, the `free` keys aside.

  Raises:
    UserError: when it was not; names every key that differs.
    UserError: when nothing was trained there.
  """
  differing = _differences(read_config(workdir), config, free)
  if differing:
    raise errors.UserError(
      f"{workdir} was trained with another config; these keys differ: {'; '.join(differing)}. "
      "Take another --workdir, or the config it was trained with"
    )


def read_config(workdir: str) -> dict[str, Any]:
  """The resolved config that a workdir was trained with.

  Raises:
    UserError: when nothing was trained there.
  """
  file = epath.Path(workdir) / CONFIG_FILE
  if not file.exists():
    raise errors.UserError(
      f"{workdir} holds no {CONFIG_FILE}: nothing was trained there; "
      "train first, or give the --workdir of a trained run"
    )
  return json.loads(file.read_text())


def _differences(old: dict[str, Any], new: dict[str, Any], free: tuple[str, ...]) -> list[str]:
  old, new = _flatten(old), _flatten(json.loads(json.dumps(new)))
  absent = "(absent)"
  return [
    f"{key}: {old.get(key, absent)!r} there, {new.get(key, absent)!r} now"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, absent) != new.get(key, absent)
    and not any(key == name or key.startswith(name + ".") for name in free)
  ]


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
