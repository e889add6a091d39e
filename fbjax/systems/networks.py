"""The networks of a system: how each is built, initialised and applied, and its name in the port."""

import inspect
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import jax
from flax import nnx

from fbjax import checks, errors, trees
from fbjax.models import layers

Params = Any

# Sizes that may be 0, or lists that may be empty: the network then goes without.
WITHOUT = ("attention_levels", "positions", "skip")
MOST_WEIGHTS = 10**12  # of one network


# Graphs and shapes of networks that were built, by class and arguments.
_ABSTRACT: dict[tuple[Any, str, str], tuple[nnx.GraphDef, Params]] = {}


class NetworkSpec(NamedTuple):
  """How one network is built.

  make: its class.
  sizes: arguments of the constructor that decide the shapes of weights.
  network: its name in the port.
  trained: whether its weights are among the trainable ones.
  options: further arguments that change no weights, such as dtype.
  given: names of the sizes that follow from other groups of the config, see `sizes_of`.
  """

  make: type[nnx.Module]
  sizes: Mapping[str, Any]
  network: str
  trained: bool
  options: Mapping[str, Any] = {}
  given: Collection[str] = ()

  def check(self, key: str) -> None:
    """Raises a UserError unless its sizes, the config's `key`, are valid arguments of the class."""
    # The metaclass hides the signature of the class.
    arguments = inspect.signature(self.make.__init__).parameters
    for name, value in self.sizes.items():
      kind = arguments[name].annotation if name in arguments else type(value)
      check_size(f"{key}.{name}", kind, value, empty=name in WITHOUT)
    takes = [name for name in arguments if name not in (*self.options, *self.given, "self", "rngs")]
    if unknown := [name for name in self.sizes if name not in (*takes, *self.given)]:
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
    try:
      weights = sum(math.prod(x.shape) for x in jax.tree.leaves(self.shapes()))
    except errors.UserError as error:
      raise errors.UserError(f"{key}: {error}") from error
    except (OverflowError, ValueError) as error:  # NumPy's, of dimensions that no array has
      if "dimension" not in str(error) and "C long" not in str(error):
        raise
      weights = math.inf
    if weights > MOST_WEIGHTS:
      raise errors.UserError(
        f"{key} makes a network of {weights:,} parameters; at most {MOST_WEIGHTS:,} are taken for meant"
      )

  def build(self, key: jax.Array) -> nnx.Module:
    return self.make(**self.sizes, **self.options, rngs=layers.Keys(key))

  def init(self, key: jax.Array) -> Params:
    """New weights."""
    return nnx.to_pure_dict(nnx.state(self.build(key), nnx.Param))

  def graph(self) -> nnx.GraphDef:
    """The network without weights."""
    return self._abstract()[0]

  def shapes(self) -> Params:
    """Its weights without values."""
    return self._abstract()[1]

  def _abstract(self) -> tuple[nnx.GraphDef, Params]:
    # Building takes seconds for a large network, and a start asks for it a dozen times.
    key = (self.make, repr(dict(self.sizes)), repr(dict(self.options)))
    if key not in _ABSTRACT:
      graph, state = nnx.split(nnx.eval_shape(self.build, jax.random.key(0)))
      _ABSTRACT[key] = graph, nnx.to_pure_dict(nnx.filter_state(state, nnx.Param))
    graph, shapes = _ABSTRACT[key]
    return graph, jax.tree.map(lambda x: x, shapes)  # whoever asks may change its tree


def sizes_of(key: str, chosen: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
  """All sizes of a network.

  Args:
    key: of the config's group with the chosen ones.
    chosen: sizes that the config chooses.
    given: sizes that follow from other groups: channels of the codec, frames of the data.

  Raises:
    UserError: for a chosen size that follows from others.
  """
  if both := [name for name in chosen if name in given]:
    raise errors.UserError(
      f"{key} sets {', '.join(map(repr, both))}, which follows from other groups of the config (codec, "
      "text, data); leave it out"
    )
  return dict(given) | dict(chosen)


def check_size(key: str, kind: Any, value: Any, empty: bool = False) -> None:
  """Raises a UserError for a size that is not of its kind, or makes no sense.

  Args:
    key: of the config.
    kind: annotation of the constructor's argument.
    value: of the config.
    empty: whether it may be 0, or a list of none.
  """
  least = 0 if empty else 1
  if kind is int or (kind == int | None and value is not None):
    checks.whole(key, value, least)
  elif kind is bool and not isinstance(value, bool):
    raise errors.UserError(f"{key} is {value!r}; expected True or False.")
  elif kind == Sequence[int] or kind in (list, tuple):
    checks.wholes(key, value, least, empty)
  elif kind == tuple[int, int]:
    if len(checks.wholes(key, value)) != 2:
      raise errors.UserError(f"{key} is {value!r}; expected two whole numbers.")
  elif get_origin(kind) is Literal and value not in get_args(kind):
    raise errors.UserError(f"{key} is {value!r}; expected one of {', '.join(get_args(kind))}.")
  elif kind is float and key.endswith("dropout"):
    checks.number(key, value, least=0, below=1)
  elif kind is float:
    checks.number(key, value, above=0)


class NetworkSet:
  """Networks by name. Their weights are nested dicts of arrays, keyed by these names first.

  The base class of all systems: `params` are the weights of the networks that train, `frozen` those
  of the others.
  """

  # Regexes of leaves, as `network/leaf`, that hold constants: they never train and never decay.
  fixed: tuple[str, ...] = ()
  # What the networks are told beside the given frame, of text, label, stride, image, last.
  conditions: frozenset[str] = frozenset()
  # Number of classes, where a label is among the conditions.
  classes: int | None = None
  # What each leaf starts from, by `network/leaf` (`start.sources`): those of a config know it.
  starts: Mapping[str, str] | None = None

  def __init__(self, specs: Mapping[str, NetworkSpec]):
    for name, spec in specs.items():
      spec.check(f"config.system.{name}")
    self.networks = dict(specs)

  def init(self, key: jax.Array) -> Params:
    """New weights of the trained networks."""
    return self._init(key, trained=True)

  def init_frozen(self, key: jax.Array) -> Params:
    """New weights of the networks that are not trained."""
    return self._init(key, trained=False)

  def _init(self, key: jax.Array, trained: bool) -> Params:
    # By the name: what other networks a system has does not change a network's draw.
    return {
      name: spec.init(jax.random.fold_in(key, zlib.crc32(name.encode())))
      for name, spec in self.networks.items()
      if spec.trained == trained
    }

  def check_clip(self, frames: int, size: tuple[int, int]) -> None:
    """Accepts every clip; a system with limits overrides it."""

  def for_clips(self, frames: int, size: tuple[int, int]) -> "NetworkSet":
    self.check_clip(frames, size)
    return self

  def shapes(self, name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of each leaf of the network `name`, by path."""
    return trees.flatten(self.networks[name].shapes())

  @property
  def whole(self) -> "NetworkSet":
    return self

  @property
  def encoders(self) -> tuple[str, ...]:
    """The networks that do not train; a system that runs some of them elsewhere overrides it."""
    return tuple(name for name, spec in self.networks.items() if not spec.trained)

  def weights(self, params: Params, frozen: Params) -> Params:
    del frozen
    return params

  def run(self, name: str, weights: Mapping[str, Params], method: str = "__call__") -> Callable:
    """The network `name` as a function of its inputs."""
    return getattr(nnx.merge(self.networks[name].graph(), weights[name]), method)
