"""What weights start from: each leaf stored in a folder of ported weights, widened, zero, or new.

  rules  of a config, by network: regexes of leaves (whole paths)
           new    drawn from the config's seed where the folder has none of that shape
           zero   zero where the folder has none, or there is no folder
           widen  the folder's kernel for the input channels it knows, zero for the others
         A leaf that the folder lacks and no rule names is an error.

The folder stays what the files were: rules, and so the draws, are the run's own.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fbjax import checks, errors, sharding, trees
from fbjax import weights as weights_lib
from fbjax.bridge import initialise
from fbjax.systems import adapters, base, networks

logger = logging.getLogger(__name__)

Source = Literal["stored", "widen", "zero", "new"]
Rules = Mapping[str, Mapping[str, Iterable[str]]]
KINDS = ("new", "zero", "widen")


def check_rules(rules: Mapping[str, Any], system: networks.NetworkSet) -> None:
  """Raises a UserError for unknown networks or rules, and for patterns that match no leaf."""
  for name, own in rules.items():
    if name not in system.networks:
      raise errors.UserError(
        f"config.start has {name!r}, which is no network of this system; it has "
        f"{', '.join(system.networks)}"
      )
    if not isinstance(own, Mapping):
      raise errors.UserError(
        f"config.start.{name} is {own!r}; expected {', '.join(KINDS)} below it"
      )
    if unknown := sorted(set(own) - set(KINDS)):
      raise errors.UserError(
        f"config.start.{name} has {', '.join(unknown)}; it takes {', '.join(KINDS)}"
      )
    for kind, patterns in own.items():
      for pattern in checks.patterns(f"config.start.{name}.{kind}", patterns):
        if not any(re.fullmatch(pattern, leaf) for leaf in system.shapes(name)):
          raise errors.UserError(
            f"config.start.{name}.{kind} has {pattern!r}, which no weight of this network is called"
          )


def sources(
  system: networks.NetworkSet, folder: str, rules: Rules, elsewhere: Iterable[str] = ()
) -> dict[str, Source]:
  """Where each leaf of the system's networks comes from, by `network/leaf`.

  Args:
    system: whose weights are all looked at, whatever trains of them.
    folder: of ported weights; empty for a system that starts from scratch.
    rules: see above.
    elsewhere: networks that come from somewhere else, and are left out.

  Raises:
    UserError: lists the leaves that the folder lacks, or holds in another shape.
  """
  check_rules(rules, system)
  found = weights_lib.stored(folder) if folder else {}
  chosen: dict[str, Source] = {}
  problems = []
  for name in system.networks:
    if name in elsewhere:
      continue
    for leaf, like in system.shapes(name).items():
      path = f"{name}/{leaf}"
      there = found.get(weights_lib.network_path(name, leaf))
      shape = None if there is None else tuple(there.shape)
      own = rules.get(name, {})
      if not folder:
        chosen[path] = "zero" if _matches(own.get("zero", ()), leaf) else "new"
        continue
      if shape == tuple(like.shape):
        chosen[path] = "stored"
        continue
      narrow = shape is not None and _is_narrow(shape, like.shape)
      if narrow and _matches(own.get("widen", ()), leaf):
        chosen[path] = "widen"
      elif _matches(own.get("zero", ()), leaf) and shape is None:
        chosen[path] = "zero"
      elif _matches(own.get("new", ()), leaf) and (shape is None or narrow):
        chosen[path] = "new"
      elif shape is None:
        problems.append(f"  missing   {path} {tuple(like.shape)}")
      else:
        problems.append(f"  misshapen {path}: {shape} there, {tuple(like.shape)} in the config")
  if problems:
    lines = "\n".join(problems)
    raise errors.UserError(
      f"the weights in {folder} do not fit the config in {len(problems)} leaves:\n{lines}\n"
      "Name those that start anew in config.start, or port the checkpoint that this config is for"
    )
  return chosen


def started_anew(
  system: networks.NetworkSet, chosen: Mapping[str, Source], folder: str, rules: Rules
) -> set[str]:
  """The leaves of trained networks that are not read whole from the folder, by `network/leaf`.

  Without a folder, where nothing is pretrained, only those that the rules name.
  """
  anew = set()
  for path, source in chosen.items():
    name, leaf = path.split("/", 1)
    named = folder or any(_matches(patterns, leaf) for patterns in rules.get(name, {}).values())
    if system.networks[name].trained and source != "stored" and named:
      anew.add(path)
  return anew


def load(
  init: Callable[[jax.Array], base.Params],
  like: base.Params,
  chosen: Mapping[str, Source],
  folder: str,
  mesh: jax.sharding.Mesh,
  key: jax.Array,
) -> base.Params:
  """Weights on a mesh, each leaf from where it comes.

  Args:
    init: draws new weights from a key; only the leaves that are new are computed.
    like: shapes and dtypes of what `init` returns.
    chosen: from `sources`; leaves that it does not name are new.
    folder: of ported weights.
    mesh: the devices.
    key: of what is drawn.
  """
  shapes, shardings = trees.flatten(like), trees.flatten(sharding.tree(like, mesh))
  by_source: dict[str, list[str]] = {"stored": [], "widen": [], "zero": [], "new": []}
  for path in shapes:
    by_source[chosen.get(path.removeprefix(adapters.BASE), "new")].append(path)

  def there(path: str) -> str:
    return weights_lib.network_path(*path.removeprefix(adapters.BASE).split("/", 1))

  def read(paths: list[str], placed: Callable[[str], Any]) -> dict[str, jax.Array]:
    found = weights_lib.read(folder, {there(path): placed(path) for path in paths})
    return {path: found[there(path)] for path in paths}

  def struct(path: str) -> jax.ShapeDtypeStruct:
    x = shapes[path]
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[path])

  flat = read(by_source["stored"], struct)
  if by_source["widen"]:
    known = weights_lib.stored(folder)
    whole = sharding.replicated(mesh)

    def narrow(path: str) -> jax.ShapeDtypeStruct:
      shape = known[there(path)].shape
      return jax.ShapeDtypeStruct(shape, shapes[path].dtype, sharding=whole)

    def widen(kernels: dict[str, jax.Array]) -> dict[str, jax.Array]:
      more = {path: shapes[path].shape[-2] - x.shape[-2] for path, x in kernels.items()}
      return {path: initialise.widen_input(x, more[path]) for path, x in kernels.items()}

    kernels = read(by_source["widen"], narrow)
    flat |= jax.jit(widen, out_shardings={path: shardings[path] for path in kernels})(kernels)

  def make(key: jax.Array) -> dict[str, jax.Array]:
    drawn = trees.flatten(init(key)) if by_source["new"] else {}
    made = {path: drawn[path].astype(shapes[path].dtype) for path in by_source["new"]}
    return made | {
      path: jnp.zeros(shapes[path].shape, shapes[path].dtype) for path in by_source["zero"]
    }

  rest = by_source["new"] + by_source["zero"]
  if rest:
    flat |= jax.jit(make, out_shardings={path: shardings[path] for path in rest})(key)
  return trees.nest(flat)


def _matches(patterns: Iterable[str], leaf: str) -> bool:
  return any(re.fullmatch(pattern, leaf) for pattern in checks.strings("config.start", patterns))


def _is_narrow(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
  """Whether a kernel has this shape but for fewer input channels."""
  return (
    len(shape) == len(wanted) > 1
    and shape[-2] < wanted[-2]
    and (*shape[:-2], shape[-1]) == (*wanted[:-2], wanted[-1])
  )
