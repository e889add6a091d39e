"""A system whose batches are cached features in place of clips: it runs no encoder."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fbjax import trees
from fbjax.systems import base

NULLS = "nulls"  # among the frozen weights: what is the same for all clips


def fed(system: base.System) -> base.System:
  """A copy of the system that encodes batches of features, by path.

  The features of the null conditions are read from `nulls` of its frozen weights.
  """
  other = copy.copy(system)
  other.encode = functools.partial(_encode, system)
  return other


def _encode(
  system: base.System, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
) -> base.Example:
  features = trees.nest(dict(batch)) | frozen[NULLS]
  return system.draw(frozen, jax.tree.map(_widened, features), keys)


def _widened(x: jax.Array) -> jax.Array:
  """Kept in half precision, computed with in float32."""
  return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def narrowed(features: base.Features, dtype: Any) -> dict[str, jax.Array]:
  """Features as a cache keeps them: by path, floats in `dtype`."""

  def narrow(x: jax.Array) -> jax.Array:
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return {path: narrow(x) for path, x in trees.flatten(features).items()}
