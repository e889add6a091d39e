"""Functions of images, for the frames of clips."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped


def each(f: Callable[..., Array], *clips: Shaped[Array, "n t h w c"]) -> Shaped[Array, "n t *rest"]:
  """Applies f to one frame of every clip at a time, sequentially over frames to bound memory.

  Args:
    f: from a batch of images "n h w c" of each of `clips` to "n *rest".
    clips: with equal n and t.
  """
  swapped = [jnp.swapaxes(x, 0, 1) for x in clips]
  return jnp.swapaxes(jax.lax.map(lambda images: f(*images), swapped), 0, 1)
