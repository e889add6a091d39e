"""Calls whose arguments are the keys of a config: mistakes are told in the config's words."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fbjax import errors
from fbjax.build.tables import Spec


def choose(table: Mapping[str, Any] | Sequence[str], name: str, key: str) -> Any:
  """The entry of a table, or the name itself where there is only a list of names.

  Raises:
    UserError: when there is none of that name; lists those that exist.
  """
  if not isinstance(name, str) or name not in table:
    raise errors.UserError(f"config.{key} is {name!r}; expected one of {', '.join(sorted(table))}")
  return table[name] if isinstance(table, Mapping) else name


def check_keys(spec: Spec, takes: Iterable[str], key: str) -> None:
  """Raises a UserError for keys of a group that are not among those it takes."""
  takes = list(takes)
  if unknown := [name for name in spec if name not in takes]:
    raise errors.UserError(
      f"config.{key} has no key {', '.join(map(repr, unknown))}; it takes {', '.join(takes) or 'none'}"
    )


def bind(fn: Callable[..., Any], spec: Spec, key: str, **given: Any) -> Callable[[], Any]:
  """() -> fn(**given, **spec), with unknown and missing keys told in the config's words.

  Raises:
    UserError: names the keys.
  """
  arguments = inspect.signature(fn).parameters
  takes = [name for name in arguments if name not in given]
  check_keys(spec, takes, key)
  missing = [
    name
    for name in takes
    if name not in spec and arguments[name].default is inspect.Parameter.empty
  ]
  if missing:
    raise errors.UserError(f"config.{key} lacks {', '.join(map(repr, missing))}")
  return functools.partial(fn, **given, **spec)


def call(fn: Callable[..., Any], spec: Spec, key: str, **given: Any) -> Any:
  """fn(**given, **spec), as `bind`; for constructors, which check their arguments.

  Raises:
    UserError: names the keys, or says what a value is.
  """
  bound = bind(fn, spec, key, **given)
  try:
    return bound()
  except errors.UserError:
    raise
  except ValueError as error:
    # The bridge says what is wrong with its arguments without knowing of configs.
    raise errors.UserError(f"config.{key}: {error}") from error


def make(table: Mapping[str, Any], spec: Spec, key: str, **given: Any) -> Any:
  """The object that `spec["name"]` names, made of the other keys and of `given`."""
  if "name" not in spec:
    raise errors.UserError(f"config.{key} lacks 'name'; expected one of {', '.join(sorted(table))}")
  fn = choose(table, spec["name"], f"{key}.name")
  return call(fn, {k: v for k, v in spec.items() if k != "name"}, key, **given)
