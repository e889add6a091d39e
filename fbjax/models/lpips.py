"""LPIPS: perceptual distance of two images by features of AlexNet (arXiv:1801.03924, version 0.1).

  two images [-1, 1] "b h w 3" -> distances "b"

The features of five layers become unit vectors at each place; the squares of their differences are
weighted by channel, and their mean over the image is added up over the layers.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fbjax.models import layers

LEAST = 31  # pixels a side, of which the last layer makes one place
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Channels, kernel, stride, padding; and whether a pooling comes before.
CONVS = (
  (64, 11, 4, 2, False),
  (192, 5, 1, 2, True),
  (384, 3, 1, 1, True),
  (256, 3, 1, 1, False),
  (256, 3, 1, 1, False),
)


class LPIPS(nnx.Module):
  """The distance network; images have at least `LEAST` pixels a side."""

  def __init__(self, *, dtype: Any = jnp.float32, rngs: layers.Keys):
    c, convs = 3, []
    for width, size, stride, padding, _ in CONVS:
      options = {"stride": stride, "padding": padding, "dtype": dtype, "rngs": rngs}
      convs.append(layers.conv(c, width, size, **options))
      c = width
    self.convs = nnx.List(convs)
    self.weights = nnx.List([nnx.Param(jnp.full(width, 1 / width)) for width, *_ in CONVS])

  def features(self, image: Float[Array, "b h w 3"]) -> list[Float[Array, "b h2 w2 c2"]]:
    """Features of the five layers, normalized over channels."""
    shift, scale = (layers.per_channel(jnp.array(x), image) for x in (SHIFT, SCALE))
    x, found = (image - shift) / scale, []
    for conv, (*_, pooled) in zip(self.convs, CONVS, strict=True):
      x = nnx.max_pool(x, (3, 3), (2, 2), "VALID") if pooled else x
      x = nnx.relu(conv(x))
      found.append(x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10))
    return found

  def __call__(self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
    total = jnp.zeros(len(a))
    for x, y, weight in zip(self.features(a), self.features(b), self.weights, strict=True):
      places = jnp.square(x - y) * layers.per_channel(weight[...], x)
      total += places.sum(-1).mean((1, 2))
    return total
