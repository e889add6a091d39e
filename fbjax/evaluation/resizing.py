"""Image resizing as in the reference implementations of the metrics."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bilinear(x: Float[Array, "*b h w c"], h: int, w: int) -> Float[Array, "*b h2 w2 c"]:
  """Bilinear with half-pixel centres and no antialiasing, as torch with align_corners=False."""
  return jax.image.resize(x, (*x.shape[:-3], h, w, x.shape[-1]), "linear", antialias=False)


def bicubic(x: Float[Array, "*b h w c"], h: int, w: int) -> Float[Array, "*b h2 w2 c"]:
  """Bicubic (a = -0.5) with antialiasing, as PIL does for values from 0 to 255.

  The width is resized first, then the height; each result is rounded and clipped to 0..255.
  """
  for size in ((x.shape[-3], w), (h, w)):
    x = jax.image.resize(x, (*x.shape[:-3], *size, x.shape[-1]), "cubic")
    x = jnp.clip(jnp.floor(x + 0.5), 0, 255)
  return x
