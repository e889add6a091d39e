"""Where in a torch checkpoint the weights are: whatever training programs save around them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fbjax.port import dtypes, keys, limits, pickles, torch_tensors

Tensors = dict[str, torch_tensors.Tensor]

# Keys that a checkpoint may hold its weights under. The first line that holds some counts: averaged
# weights come before plain ones.
HOMES = (r"state_dict", r"module", r"(.*[_.])?ema([_.].*)?|shadow", r"model|model[_.]state_dict")
KINDS = {
  "": "a state dict",
  "state_dict": "a Lightning checkpoint",
  "module": "a DeepSpeed checkpoint",
}
NO_WEIGHTS = re.compile("optim|sched|scaler|grad|callback|loop|hyper|rng", re.IGNORECASE)


def find(tree: Any, builder: torch_tensors.Builder) -> tuple[Tensors, str]:
  """The state dict in an unpickled checkpoint, and a phrase that says what the checkpoint is.

  Raises:
    Refused: when no tensors have names, or those of several keys could be meant.
  """
  if _is_module(tree):
    scripted = isinstance(tree.what, pickles.Global) and tree.what.name.startswith("__torch__.")
    kind = "a TorchScript archive" if scripted else "a pickled module"
    if tensors := builder.build(_named(tree, builder)):
      return tensors, kind
    raise limits.Refused(f"is {kind} that holds no tensors by name: save a state dict instead")
  found = _at_home(tree, builder, ())
  if found is None:
    held = ", ".join(keys.printable(key) for key in list(builder.entries(tree))[:10]) or "none"
    raise limits.Refused(
      f"holds no tensors by name (its keys: {held}): save the state dict of the network alone"
    )
  tensors, path = found
  name = ".".join(map(keys.printable, path))
  averaged = any(re.fullmatch(HOMES[2], key) for key in path)
  return tensors, KINDS.get(name, f"{'averaged ' if averaged else ''}weights under `{name}`")


def _is_module(node: Any) -> bool:
  """Whether it is an object with a state rather than a mapping or a tensor."""
  return isinstance(node, pickles.Call) and not node.items and torch_tensors.as_tensor(node) is None


def _at_home(
  tree: Any, builder: torch_tensors.Builder, path: tuple[str, ...]
) -> tuple[Tensors, tuple[str, ...]] | None:
  """The weights at the first home that holds some, and the way there.

  Scalars alone are none: they count steps, or say how averages decay. Nor are tensors by number.
  """
  entries = builder.entries(tree)
  own = {key: call for key, x in entries.items() if (call := torch_tensors.as_tensor(x))}
  inner = (
    {} if _is_module(tree) else {k: x for k, x in entries.items() if _holds(x) and k not in own}
  )
  for home in HOMES if len(path) < 3 else ():
    for key, x in inner.items():
      if _matches(home, key) and (found := _at_home(x, builder, (*path, key))):
        return found
  tensors = builder.build(own.items())
  if _has_weights(tensors):
    return tensors, path
  if path:
    tensors = builder.build(_named(tree, builder))
    return (tensors, path) if _has_weights(tensors) else None
  return _elsewhere(inner, builder) or ((tensors, path) if tensors else None)


def _elsewhere(
  entries: Mapping[str, Any], builder: torch_tensors.Builder
) -> tuple[Tensors, tuple[str, ...]] | None:
  """Weights under another key, if there is but one."""
  found = {}
  for key, x in entries.items():
    if len(key) <= limits.NAME and not NO_WEIGHTS.search(key):
      tensors = builder.build(_named(x, builder))
      if _has_weights(tensors):
        found[key] = tensors
  if len(found) > 1:
    raise limits.Refused(
      f"holds tensors under {', '.join(map(keys.printable, found))}: save those that are meant alone"
    )
  return next(((tensors, (key,)) for key, tensors in found.items()), None)


def _named(tree: Any, builder: torch_tensors.Builder) -> Iterator[tuple[str, pickles.Call]]:
  """Every tensor in a tree, by its path."""
  ahead = [("", tree)]
  while ahead:
    path, node = ahead.pop()
    if (call := torch_tensors.as_tensor(node)) is not None:
      yield path.removesuffix("."), call
    elif path.count(".") < limits.NESTED and len(path) <= limits.NAME:
      ahead += [(f"{path}{key}.", x) for key, x in reversed(builder.entries(node).items())]


def _holds(node: Any) -> bool:
  return isinstance(node, dict | pickles.Call)


def _matches(pattern: str, key: str) -> bool:
  return len(key) <= limits.NAME and re.fullmatch(pattern, key) is not None


def _has_weights(tensors: Tensors) -> bool:
  return any(
    (x.shape or isinstance(x, dtypes.Unread)) and not name.isdigit() for name, x in tensors.items()
  )
