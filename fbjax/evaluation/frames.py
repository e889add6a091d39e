"""Functions of images, for the frames of clips."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped


def each(f: Callable[..., Array], *clips: Shaped[Array, "n t h w c"]) -> Shaped[Array, "n t *rest"]:
  """f of a frame of all clips after the other: no more of them need memory at once than there are clips.

  Args:
    f: of one batch of images for each of `clips`.
    clips: of as many frames.
  """
  swapped = [jnp.swapaxes(x, 0, 1) for x in clips]
  return jnp.swapaxes(jax.lax.map(lambda images: f(*images), swapped), 0, 1)
