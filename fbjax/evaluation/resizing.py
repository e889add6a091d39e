"""Frames of other sizes, as the programs make them whose numbers are published."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bilinear(x: Float[Array, "*b h w c"], h: int, w: int) -> Float[Array, "*b h2 w2 c"]:
  """Between centres of pixels, and like torch without a filter where it makes smaller."""
  return jax.image.resize(x, (*x.shape[:-3], h, w, x.shape[-1]), "linear", antialias=False)


def bicubic(x: Float[Array, "*b h w c"], h: int, w: int) -> Float[Array, "*b h2 w2 c"]:
  """Of grey levels from 0 to 255, as PIL does it: a = -0.5, filtered where it makes smaller, whole grey
  levels after each axis, the columns first.
  """
  for size in ((x.shape[-3], w), (h, w)):
    x = jax.image.resize(x, (*x.shape[:-3], *size, x.shape[-1]), "cubic")
    x = jnp.clip(jnp.floor(x + 0.5), 0, 255)
  return x
