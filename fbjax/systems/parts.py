"""The networks that a system is made of: what each is called where, and how to run it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
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


def fresh(part: Part, key: jax.Array, wanted: Iterable[str]) -> dict[str, jax.Array]:
  """New values of some leaves of a network, by path; the others are never computed."""
  wanted = frozenset(wanted)

  @jax.jit
  def draw(key: jax.Array) -> dict[str, jax.Array]:
    state = nnx.to_pure_dict(nnx.state(part.build(key), nnx.Param))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    return {name: x for name, x in named.items() if name in wanted}

  return draw(key) if wanted else {}
