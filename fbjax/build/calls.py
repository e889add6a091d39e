"""Calls whose arguments are the keys of a config: mistakes are told in the config's words."""

import functools
import inspect
import numbers
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
  """Raises a UserError for keys of a group, of this name if any, that are not among those it takes."""
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
  """The arguments without a default, among those that the config gives."""
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
  """() -> fn(**given, **spec), where `name` stands for fn, if any.

  Raises:
    UserError: names unknown and missing keys in the config's words, and values of other types.
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
  """fn(**given, **spec), as `bind`; for constructors, which check their arguments.

  Raises:
    UserError: names the keys, or says what a value is.
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
  """The object that `spec["name"]` names, made of the other keys and of `given`."""
  if "name" not in spec:
    raise errors.UserError(f"config.{key} lacks 'name'; expected one of {', '.join(sorted(table))}")
  fn = choose(table, spec["name"], f"{key}.name")
  options = {k: v for k, v in spec.items() if k != "name"}
  return call(fn, options, key, spec["name"], **given)
