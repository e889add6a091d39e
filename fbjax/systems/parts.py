"""The networks that a system is made of: what each is called where, and how to run it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fbjax.models import layers

Params = Any


class Part(NamedTuple):
  """One network.

  make: the class, taking `sizes` and `rngs`.
  sizes: arguments of its constructor.
  network: its name in the port.
  trained: whether its weights are among the trainable ones.
  options: further arguments that change no weights, such as dtype.
  """

  make: Callable[..., nnx.Module]
  sizes: Mapping[str, Any]
  network: str
  trained: bool
  options: Mapping[str, Any] = {}

  def build(self, key: jax.Array) -> nnx.Module:
    return self.make(**self.sizes, **self.options, rngs=layers.Keys(key))

  def abstract(self) -> nnx.Module:
    """The network without values."""
    return nnx.eval_shape(self.build, jax.random.key(0))

  def shapes(self) -> Params:
    """Its weights without values."""
    return nnx.to_pure_dict(nnx.state(self.abstract(), nnx.Param))


class Networks:
  """Networks by name; weights are nested dicts of arrays, one for each name.

  What every system is at its core: it says which networks train, and trains them as a whole.
  """

  def __init__(self, parts: Mapping[str, Part]):
    self.parts = dict(parts)
    self._graphs: dict[str, nnx.GraphDef] = {}

  def init(self, key: jax.Array) -> Params:
    """New weights of the trained networks."""
    return self._init(key, trained=True)

  def init_frozen(self, key: jax.Array) -> Params:
    """New weights of the others."""
    return self._init(key, trained=False)

  def _init(self, key: jax.Array, trained: bool) -> Params:
    keys = dict(zip(self.parts, jax.random.split(key, len(self.parts)), strict=True))
    return {
      name: nnx.to_pure_dict(nnx.state(part.build(keys[name]), nnx.Param))
      for name, part in self.parts.items()
      if part.trained == trained
    }

  @property
  def whole(self) -> "Networks":
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
      self._graphs[name] = nnx.split(self.parts[name].abstract())[0]
    return getattr(nnx.merge(self._graphs[name], weights[name]), method)


AT_ONCE = 2**25  # bytes of new values that are drawn together


class Drawn:
  """A new leaf that is drawn by np.asarray, together with its neighbours."""

  latest: tuple[Any, dict[str, Any]] = (None, {})  # the neighbours that are in memory

  def __init__(self, name: str, like: jax.ShapeDtypeStruct, draw: Callable[[], dict[str, Any]]):
    self.name, self.draw = name, draw
    self.shape, self.dtype = like.shape, like.dtype

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if Drawn.latest[0] is not self.draw:
      Drawn.latest = (None, {})  # before the next ones come
      Drawn.latest = (self.draw, self.draw())
    return np.asarray(Drawn.latest[1][self.name], dtype)


def fresh(part: Part, key: jax.Array, wanted: Iterable[str]) -> dict[str, Drawn]:
  """New values of some leaves of a network, by path; the others are never computed.

  They are drawn in groups, when one of a group is asked for.
  """

  def named(state: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}

  shapes = named(part.shapes())
  groups: list[list[str]] = []
  size = AT_ONCE
  for name in wanted:
    size += shapes[name].size * shapes[name].dtype.itemsize
    if size > AT_ONCE:
      groups.append([])
      size = shapes[name].size * shapes[name].dtype.itemsize
    groups[-1].append(name)

  def drawer(names: Sequence[str]) -> Callable[[], dict[str, Any]]:
    @jax.jit
    def draw(key: jax.Array) -> dict[str, jax.Array]:
      state = named(nnx.to_pure_dict(nnx.state(part.build(key), nnx.Param)))
      return {name: state[name] for name in names}

    return lambda: draw(key)

  return {
    name: Drawn(name, shapes[name], draw)
    for names, draw in ((names, drawer(names)) for names in groups)
    for name in names
  }
