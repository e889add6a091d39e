"""Calls functions with the keys of a config as arguments; errors name the config's keys."""

import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fbjax import errors

Spec = Mapping[str, Any]

KINDS = {
  int: "a whole number",
  float: "a number",
  bool: "True or False",
  str: "a text",
  os.PathLike: "a path",
  Mapping: "a group of keys",
  dict: "a group of keys",
  type(None): "None",
}


def choose(table: Mapping[str, Any] | Sequence[str], name: str, key: str) -> Any:
  """The entry of a table, or the name itself where there is only a list of names.

  Raises:
    UserError: when there is none of that name; lists those that exist.
  """
  if not isinstance(name, str) or name not in table:
    raise errors.UserError(f"config.{key} is {name!r}; expected one of {', '.join(sorted(table))}")
  return table[name] if isinstance(table, Mapping) else name


def check_keys(spec: Spec, takes: Iterable[str], key: str, name: str | None = None) -> None:
  """Raises a UserError for keys of a config group that are not in `takes`.

  `name` is the group's own key `name`, if it has one.
  """
  takes = list(takes)
  if unknown := [name for name in spec if name not in takes]:
    told = f"config.{key} has no key {', '.join(map(repr, unknown))}; it takes {', '.join(takes) or 'none'}"
    other = (
      f". That is of the name {name!r}: for another one set the whole group, the name with its keys, as "
      f"--config.{key}={{'name': ..., ...}}"
    )
    raise errors.UserError(told + (other if name else ""))


def check_types(fn: Callable[..., Any], spec: Spec, key: str) -> None:
  """Raises a UserError for a value of another type than the constructor's argument.

  Looks at arguments that are plain numbers, texts, groups or None; the others check themselves.
  """
  arguments = inspect.signature(fn).parameters
  for name, value in spec.items():
    wanted = arguments[name].annotation
    union = typing.get_origin(wanted) in (types.UnionType, typing.Union)
    kinds = typing.get_args(wanted) if union else (wanted,)
    kinds = [typing.get_origin(kind) or kind for kind in kinds]
    if all(kind in KINDS for kind in kinds) and not any(_fits(value, kind) for kind in kinds):
      told = " or ".join(KINDS[kind] for kind in kinds)
      raise errors.UserError(f"config.{key}.{name} is {value!r}; expected {told}")


def required(fn: Callable[..., Any], takes: Iterable[str]) -> list[str]:
  """Those of the arguments `takes` of fn that have no default."""
  arguments = inspect.signature(fn).parameters
  return [name for name in takes if arguments[name].default is inspect.Parameter.empty]


def check_missing(spec: Spec, needed: Iterable[str], key: str) -> None:
  """Raises a UserError for keys that a group needs and lacks."""
  if missing := [name for name in needed if name not in spec]:
    raise errors.UserError(
      f"config.{key} lacks {', '.join(map(repr, missing))}: set config.{key}.{missing[0]}"
    )


def _fits(value: Any, kind: type) -> bool:
  if kind in (int, float) and isinstance(value, bool):
    return False
  return isinstance(value, {int: numbers.Integral, float: numbers.Real}.get(kind, kind))


def bind(
  fn: Callable[..., Any], spec: Spec, key: str, name: str | None = None, **given: Any
) -> Callable[[], Any]:
  """Checks a config group against fn's signature and returns () -> fn(**given, **spec).

  Args:
    fn: whose arguments the keys are.
    spec: the group, without its `name`.
    key: path of the group in the config, for errors.
    name: what the config calls fn, if its group has a `name`.
    given: arguments that are not keys of the config.

  Raises:
    UserError: for unknown keys, missing keys, and values of other types.
  """
  arguments = inspect.signature(fn).parameters
  takes = [name for name in arguments if name not in given]
  check_keys(spec, takes, key, name)
  check_types(fn, spec, key)
  check_missing(spec, required(fn, takes), key)
  return functools.partial(fn, **given, **spec)


def call(
  fn: Callable[..., Any], spec: Spec, key: str, name: str | None = None, **given: Any
) -> Any:
  """Calls fn(**given, **spec), checked as by `bind`; for constructors that validate arguments.

  Raises:
    UserError: as `bind`, and in place of a ValueError of fn.
  """
  bound = bind(fn, spec, key, name, **given)
  try:
    return bound()
  except errors.UserError:
    raise
  except ValueError as error:
    # The bridge says what is wrong with its arguments without knowing of configs.
    raise errors.UserError(f"config.{key}: {error}") from error


def make(table: Mapping[str, Any], spec: Spec, key: str, **given: Any) -> Any:
  """Makes the object that `spec["name"]` names in a table, of the other keys and of `given`.

  Raises:
    UserError: for a name that is missing or not in the table, and as `call`.
  """
  if "name" not in spec:
    raise errors.UserError(f"config.{key} lacks 'name'; expected one of {', '.join(sorted(table))}")
  fn = choose(table, spec["name"], f"{key}.name")
  options = {k: v for k, v in spec.items() if k != "name"}
  return call(fn, options, key, spec["name"], **given)
