"""What the benchmarks share: the fastest of some calls, arrays of wanted shapes, the peak of the machine."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fastest(*calls: Callable[[], Any], rounds: int) -> list[float]:
  """Least seconds of each of some calls, which take turns; a round before the others does not count."""
  times: list[list[float]] = [[] for _ in calls]
  for _ in range(rounds + 1):
    for call, found in zip(calls, times, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(call())
      found.append(time.perf_counter() - start)
  return [min(found[1:]) for found in times]


def product(n: int, dtype: Any) -> tuple[Callable[[], jax.Array], float]:
  """A product of two n x n matrices on the first device, compiled, and its FLOPs."""
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (n, n), dtype) for key in keys)
  program = jax.jit(jnp.matmul).lower(a, b).compile()
  return lambda: program(a, b), 2.0 * n**3


def filled(shapes: Any, deviation: float = 1.0) -> Any:
  """Arrays where the shapes want them: normal numbers for floats, otherwise 0; what is an array stays.

  Without a program: to compile one that draws them takes longer than to copy parts of one host array.
  """
  largest = max((x.size for x in jax.tree.leaves(shapes)), default=0)
  few = np.random.default_rng(0).standard_normal(2**20, np.float32) * np.float32(deviation)

  @functools.cache
  def pool(dtype: np.dtype) -> np.ndarray:
    floats = deviation and jnp.issubdtype(dtype, jnp.floating)
    return np.resize(few.astype(dtype), largest) if floats else np.zeros(largest, dtype)

  def put(x: jax.ShapeDtypeStruct | jax.Array) -> jax.Array:
    if isinstance(x, jax.Array):
      return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.device_put(jax.random.split(jax.random.key(0), x.shape), x.sharding)
    return jax.device_put(pool(x.dtype)[: x.size].reshape(x.shape), x.sharding)

  return jax.block_until_ready(jax.tree.map(put, shapes))
