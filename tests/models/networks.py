"""How the tests build and call a network: shapes first, then a jitted function of params."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from fbjax import trees
from fbjax.models import layers


def split(network: Callable[..., nnx.Module], **sizes: Any):
  """The graph of network(**sizes) and a function that draws its params."""

  def make(key: jax.Array) -> nnx.Module:
    return network(**sizes, rngs=layers.Keys(key))

  def init(seed: int) -> dict[Any, Any]:
    return jax.jit(lambda key: nnx.to_pure_dict(nnx.state(make(key), nnx.Param)))(
      jax.random.key(seed)
    )

  return nnx.split(nnx.eval_shape(make, jax.random.key(0)))[0], init


def call(graph: Any, method: str = "__call__", **options: Any) -> Callable[..., jax.Array]:
  return jax.jit(lambda params, *args: getattr(nnx.merge(graph, params), method)(*args), **options)


def shapes(network: Callable[..., nnx.Module], **sizes: Any) -> dict[str, tuple[int, ...]]:
  """{"path/of/leaf": shape} without any memory."""
  model = nnx.eval_shape(lambda key: network(**sizes, rngs=layers.Keys(key)), jax.random.key(0))
  flat = trees.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  return {path: leaf.shape for path, leaf in flat.items()}


def params(network: Callable[..., nnx.Module], seed: int = 0, **sizes: Any) -> dict[Any, Any]:
  """Params of which none is zero, drawn without compiling an initialization."""
  rng = np.random.default_rng(seed)

  def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
      return x / np.float32(np.sqrt(np.prod(shape[:-1])))
    return np.float32(path.endswith("scale")) + np.float32(0.1) * x

  flat = {path: draw(path, shape) for path, shape in shapes(network, **sizes).items()}
  return trees.nest(flat)
