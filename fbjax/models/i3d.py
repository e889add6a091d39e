"""I3D, the network whose features FVD compares: Inception blocks of 3D convolutions (arXiv:1705.07750).

  video [-1, 1] "b t 224 224 3" -> pooled features "b n 1024", logits "b n classes"

16 frames give n = 1 position in time; every 8 more give another. Padding is TensorFlow's SAME.
BatchNorm uses the statistics of training, which are weights here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fbjax.models import layers

WIDTH = 1024  # of the features


class Inception(NamedTuple):
  """Channels of the four branches of a block: 1x1x1, twice 1x1x1 and 3x3x3, pooling and 1x1x1."""

  b0: int
  b1a: int
  b1b: int
  b2a: int
  b2b: int
  b3b: int

  @property
  def width(self) -> int:
    return self.b0 + self.b1b + self.b2b + self.b3b


BLOCKS = {
  "3b": Inception(64, 96, 128, 16, 32, 32),
  "3c": Inception(128, 128, 192, 32, 96, 64),
  "4b": Inception(192, 96, 208, 16, 48, 64),
  "4c": Inception(160, 112, 224, 24, 64, 64),
  "4d": Inception(128, 128, 256, 24, 64, 64),
  "4e": Inception(112, 144, 288, 32, 64, 64),
  "4f": Inception(256, 160, 320, 32, 128, 128),
  "5b": Inception(256, 160, 320, 32, 128, 128),
  "5c": Inception(384, 192, 384, 48, 128, 128),
}
# Window and stride of the pooling in front of some blocks.
POOLED = {
  "3b": ((1, 3, 3), (1, 2, 2)),
  "4b": ((3, 3, 3), (2, 2, 2)),
  "5b": ((2, 2, 2), (2, 2, 2)),
}


class Unit(nnx.Module):
  """Convolution, norm, ReLU."""

  def __init__(
    self,
    c_in: int,
    c_out: int,
    size: int,
    *,
    stride: int = 1,
    epsilon: float,
    dtype: Any,
    rngs: layers.Keys,
  ):
    self.conv = layers.Conv3d(c_in, c_out, size, stride=stride, bias=False, dtype=dtype, rngs=rngs)
    self.norm = layers.BatchNorm(c_out, epsilon=epsilon)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c2"]:
    return nnx.relu(self.norm(self.conv(x)))


def max_pool(
  x: Float[Array, "b t h w c"], window: Sequence[int], strides: Sequence[int]
) -> Float[Array, "b t2 h2 w2 c"]:
  """Max pooling with SAME padding; windows over 3 frames are pooled along time, then in space.

  On a CPU this is up to six times faster than both at once, where windows overlap.
  """
  if window[0] == 3:
    x = nnx.max_pool(x, (3, 1, 1), (strides[0], 1, 1), "SAME")
    window, strides = (1, *window[1:]), (1, *strides[1:])
  return nnx.max_pool(x, tuple(window), tuple(strides), "SAME")


class Block(nnx.Module):
  """Four branches side by side."""

  def __init__(self, c: int, widths: Inception, **options: Any):
    self.b0 = Unit(c, widths.b0, 1, **options)
    self.b1a = Unit(c, widths.b1a, 1, **options)
    self.b1b = Unit(widths.b1a, widths.b1b, 3, **options)
    self.b2a = Unit(c, widths.b2a, 1, **options)
    self.b2b = Unit(widths.b2a, widths.b2b, 3, **options)
    self.b3b = Unit(c, widths.b3b, 1, **options)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c2"]:
    pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
    branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)]
    return jnp.concatenate(branches, axis=-1)


class I3D(nnx.Module):
  """The I3D network: returns pooled features and logits.

  Args:
    classes: number of logits.
    epsilon: of the norms, 1e-3 as trained; the copy that VideoGPT's FVD is computed with has 1e-5.
    dtype: of the convolutions.
    rngs: of the initial weights.
  """

  def __init__(
    self,
    classes: int = 400,
    *,
    epsilon: float = 1e-3,
    dtype: Any = jnp.float32,
    rngs: layers.Keys,
  ):
    options = {"epsilon": epsilon, "dtype": dtype, "rngs": rngs}
    self.conv1a = Unit(3, 64, 7, stride=2, **options)
    self.conv2b = Unit(64, 64, 1, **options)
    self.conv2c = Unit(64, 192, 3, **options)
    c, blocks = 192, []
    for widths in BLOCKS.values():
      blocks.append(Block(c, widths, **options))
      c = widths.width
    self.blocks = nnx.List(blocks)
    self.logits = layers.linear(WIDTH, classes, dtype=jnp.float32, rngs=rngs)

  def __call__(
    self, video: Float[Array, "b t h w 3"]
  ) -> tuple[Float[Array, "b n 1024"], Float[Array, "b n classes"]]:
    # Behind a ReLU, padding by zeros and by nothing at all have the same maximum.
    x = max_pool(self.conv1a(video), (1, 3, 3), (1, 2, 2))
    x = self.conv2c(self.conv2b(x))
    for name, block in zip(BLOCKS, self.blocks, strict=True):
      if name in POOLED:
        x = max_pool(x, *POOLED[name])
      x = block(x)
    features = nnx.avg_pool(x, (2, 7, 7), (1, 1, 1), "VALID")[:, :, 0, 0]
    return features, self.logits(features)
