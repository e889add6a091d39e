"""The networks of a system: how each is built, initialised and applied, and its name in the port."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np
from flax import nnx

from fbjax import errors
from fbjax.models import layers

Params = Any


class NetworkSpec(NamedTuple):
  """How one network is built.

  make: its class.
  sizes: arguments of the constructor that decide the shapes of weights.
  network: its name in the port.
  trained: whether its weights are among the trainable ones.
  options: further arguments that change no weights, such as dtype.
  """

  make: type[nnx.Module]
  sizes: Mapping[str, Any]
  network: str
  trained: bool
  options: Mapping[str, Any] = {}

  def check(self, key: str) -> None:
    """Raises a UserError where its sizes, the config's `key`, are not those of the class."""
    # The metaclass hides the signature of the class.
    arguments = inspect.signature(self.make.__init__).parameters
    if any(x.kind is x.VAR_KEYWORD for x in arguments.values()):
      return  # some go on to another class
    takes = [name for name in arguments if name not in (*self.options, "self", "rngs")]
    if unknown := [name for name in self.sizes if name not in takes]:
      raise errors.UserError(
        f"{key} has no key {', '.join(map(repr, unknown))}; it takes {', '.join(takes)}"
      )
    missing = [
      name
      for name in takes
      if name not in self.sizes and arguments[name].default is inspect.Parameter.empty
    ]
    if missing:
      raise errors.UserError(f"{key} lacks {', '.join(map(repr, missing))}")

  def build(self, key: jax.Array) -> nnx.Module:
    return self.make(**self.sizes, **self.options, rngs=layers.Keys(key))

  def abstract(self) -> nnx.Module:
    """The network without values."""
    return nnx.eval_shape(self.build, jax.random.key(0))

  def shapes(self) -> Params:
    """Its weights without values."""
    return nnx.to_pure_dict(nnx.state(self.abstract(), nnx.Param))


class NetworkSet:
  """Networks by name. Their weights are nested dicts of arrays, keyed by these names first.

  The base class of all systems: `params` are the weights of the networks that train, `frozen` those
  of the others.
  """

  fixed: tuple[str, ...] = ()

  def __init__(self, specs: Mapping[str, NetworkSpec]):
    for name, spec in specs.items():
      spec.check(f"config.system.{name}")
    self.networks = dict(specs)
    self._graphs: dict[str, nnx.GraphDef] = {}

  def init(self, key: jax.Array) -> Params:
    """New weights of the trained networks."""
    return self._init(key, trained=True)

  def init_frozen(self, key: jax.Array) -> Params:
    """New weights of the others."""
    return self._init(key, trained=False)

  def _init(self, key: jax.Array, trained: bool) -> Params:
    keys = dict(zip(self.networks, jax.random.split(key, len(self.networks)), strict=True))
    return {
      name: nnx.to_pure_dict(nnx.state(spec.build(keys[name]), nnx.Param))
      for name, spec in self.networks.items()
      if spec.trained == trained
    }

  def check_clip(self, frames: int, size: tuple[int, int]) -> None:
    """Any clip will do, unless a system knows better."""

  def for_clips(self, frames: int, size: tuple[int, int]) -> "NetworkSet":
    self.check_clip(frames, size)
    return self

  @property
  def whole(self) -> "NetworkSet":
    return self

  def split(self, whole: Params, key: jax.Array) -> tuple[Params, Params]:
    del key
    return whole, {}

  def weights(self, params: Params, frozen: Params) -> Params:
    del frozen
    return params

  def run(self, name: str, weights: Mapping[str, Params], method: str = "__call__") -> Callable:
    """The network `name` as a function of its inputs."""
    if name not in self._graphs:
      self._graphs[name] = nnx.split(self.networks[name].abstract())[0]
    return getattr(nnx.merge(self._graphs[name], weights[name]), method)


class Deferred:
  """A leaf that is made by np.asarray. The last one is kept: all tensors of a stack are of one."""

  last: tuple[Any, np.ndarray | None] = (None, None)

  def __init__(self, like: Any, make: Callable[[], np.ndarray]):
    self.shape, self.dtype, self.make = tuple(like.shape), np.dtype(like.dtype), make

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if Deferred.last[0] is not self:
      Deferred.last = (None, None)  # before the next one comes
      Deferred.last = (self, self.make())
    return np.asarray(Deferred.last[1], dtype)


def fresh(spec: NetworkSpec, key: jax.Array, wanted: Iterable[str]) -> dict[str, Deferred]:
  """New values of some leaves of a network, by path; each is computed when it is asked for."""

  def draw(key: jax.Array) -> dict[str, jax.Array]:
    state = nnx.to_pure_dict(nnx.state(spec.build(key), nnx.Param))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}

  wanted = set(wanted)
  if not wanted:
    return {}
  program, shapes = jax.make_jaxpr(draw, return_shape=True)(key)

  def value(part: jex.ClosedJaxpr) -> np.ndarray:
    return np.asarray(jex.jaxpr_as_fun(part)(key)[0])

  return {
    name: Deferred(shapes[name], functools.partial(value, only(program, i)))
    for i, name in enumerate(sorted(shapes))  # the order of a dict's leaves
    if name in wanted
  }


def only(program: jex.ClosedJaxpr, place: int) -> jex.ClosedJaxpr:
  """The part of a program that its output at `place` needs."""
  out = program.jaxpr.outvars[place]
  needed, lines = {out} if isinstance(out, jex.Var) else set(), []
  for line in reversed(program.jaxpr.eqns):
    if needed.intersection(line.outvars):
      lines.append(line)
      needed.update(x for x in line.invars if isinstance(x, jex.Var))
  part = program.jaxpr.replace(eqns=lines[::-1], outvars=[out])
  return jex.ClosedJaxpr(part, program.consts)
