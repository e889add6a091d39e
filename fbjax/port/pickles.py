"""Pickles as trees of plain containers and inert notes of what they would have called.

A pickle is a program for a stack machine, which can import and call anything. This machine has the
stack and the containers only: a class or function is a `Global`, which is nothing but its name, and
a call of it a `Call`, which holds the arguments. Nothing is ever imported, called or looked up.
"""

import dataclasses
import pickletools
from collections.abc import Iterable
from typing import Any

from fbjax.port import limits

LITERALS = {
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
  *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
ORDERED_DICT = "collections.OrderedDict"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Global:
  """The name of a class or function, such as torch._utils._rebuild_tensor_v2."""

  name: str


@dataclasses.dataclass(slots=True, eq=False)
class Call:
  """What a pickle would have called; then the items it would have set, and its pickled state."""

  what: Any
  args: tuple[Any, ...]
  items: dict[str, Any] = dataclasses.field(default_factory=dict)
  state: Any = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Outside:
  """A persistent id: refers to an object outside of the pickle, such as a storage of torch."""

  id: Any


def load(data: bytes) -> tuple[Any, set[str]]:
  """The tree in a pickle, and the names of all classes and functions that it asked for.

  Dictionaries keep their text keys only: those are the ones that name tensors.

  Raises:
    Refused: for more opcodes than any checkpoint needs, and those that none has.
    ValueError, IndexError, KeyError and others: for what is no pickle.
  """
  stack: list[Any] = []
  marks: list[int] = []
  memo: dict[int, Any] = {}
  names: dict[str, Global] = {}

  def since_mark() -> list[Any]:
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items

  def last(n: int) -> list[Any]:
    items = stack[len(stack) - n :]
    del stack[len(stack) - n :]
    return items

  def named(name: str) -> Global:
    return names.setdefault(name, Global(name))

  for count, (op, arg, _) in enumerate(pickletools.genops(data)):
    if count > limits.OPCODES:
      raise limits.Refused(
        f"has a pickle of more than {limits.OPCODES:,} steps: save its state dict alone"
      )
    name = op.name
    if name in LITERALS:
      stack.append(arg)
    elif name in CONSTANTS:
      stack.append(CONSTANTS[name])
    elif name in TUPLES:
      stack.append(tuple(last(TUPLES[name])))
    else:
      match name:
        case "PUT" | "BINPUT" | "LONG_BINPUT":
          memo[arg] = stack[-1]
        case "MEMOIZE":
          memo[len(memo)] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
          stack.append(memo[arg])
        case "MARK":
          marks.append(len(stack))
        case "TUPLE":
          stack.append(tuple(since_mark()))
        case "LIST" | "FROZENSET":
          stack.append(since_mark())
        case "EMPTY_LIST" | "EMPTY_SET":
          stack.append([])
        case "DICT":
          stack.append(_set({}, since_mark()))
        case "EMPTY_DICT":
          stack.append({})
        case "SETITEM":
          items = last(2)
          _set(stack[-1], items)
        case "SETITEMS":
          items = since_mark()
          _set(stack[-1], items)
        case "APPEND":
          items = last(1)
          _extend(stack[-1], items)
        case "APPENDS" | "ADDITEMS":
          items = since_mark()
          _extend(stack[-1], items)
        case "GLOBAL":
          stack.append(named(arg.replace(" ", ".", 1)))
        case "STACK_GLOBAL":
          module, attribute = last(2)
          stack.append(named(f"{_text(module)}.{_text(attribute)}"))
        case "REDUCE" | "NEWOBJ":
          stack.append(_call(*last(2)))
        case "NEWOBJ_EX":
          what, args, _ = last(3)
          stack.append(_call(what, args))
        case "INST":
          stack.append(_call(named(arg.replace(" ", ".", 1)), tuple(since_mark())))
        case "OBJ":
          what, *args = since_mark()
          stack.append(_call(what, tuple(args)))
        case "BUILD":
          state = stack.pop()
          if isinstance(stack[-1], Call):
            stack[-1].state = state
        case "BINPERSID":
          stack.append(Outside(stack.pop()))
        case "POP":
          marks.pop() if marks and marks[-1] == len(stack) else stack.pop()
        case "POP_MARK":
          since_mark()
        case "DUP":
          stack.append(stack[-1])
        case "PROTO" | "FRAME" | "STOP":
          pass
        case _:
          raise limits.Refused(
            f"has a pickle with the opcode {name}, which torch does not write: download it again"
          )
  return stack.pop(), set(names)


def _call(what: Any, args: Any) -> Any:
  args = args if isinstance(args, tuple) else ()
  return {} if isinstance(what, Global) and what.name == ORDERED_DICT else Call(what, args)


def _set(target: Any, items: list[Any]) -> Any:
  entries = target.items if isinstance(target, Call) else target
  if isinstance(entries, dict):
    # Other keys may be objects whose hash takes for ever.
    pairs = zip(items[::2], items[1::2], strict=True)
    entries.update((key, x) for key, x in pairs if type(key) is str)
  return target


def _extend(target: Any, items: Iterable[Any]) -> None:
  if isinstance(target, list):
    target.extend(items)


def _text(x: Any) -> str:
  if type(x) is not str:
    raise limits.Refused("has a pickle that calls what has no name: download it again")
  return x
