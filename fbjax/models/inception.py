"""Inception-v3 of FID: TensorFlow's network of 2015, with which FID was defined.

  image [-1, 1] "b 299 299 3" -> pooled features "b 2048" (arXiv:1512.00567, arXiv:1706.08500)

It differs from the usual Inception-v3: average pooling does not count the padding, and the last
block has max pooling in its place.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fbjax.models import layers

WIDTH = 2048  # of the features
LEAST = 75  # pixels a side
EPSILON = 1e-3  # of the norms


class Conv(NamedTuple):
  """A convolution: channels, kernel, stride, whether it keeps the size."""

  width: int
  size: tuple[int, int] = (1, 1)
  stride: int = 1
  same: bool = True


class Fork(NamedTuple):
  """1x3 and 3x1 side by side at the end of a branch."""

  width: int

  @property
  def sides(self) -> tuple[Conv, Conv]:
    return Conv(self.width, (1, 3)), Conv(self.width, (3, 1))


class Mixed(NamedTuple):
  """A block: chains of convolutions, and a pooled branch.

  pooled: channels of the 1x1 convolution behind the pooling; 0 for max pooling at stride 2 alone.
  pool: "mean" or "max".
  """

  branches: tuple[tuple[Conv | Fork, ...], ...]
  pooled: int = 0
  pool: str = "mean"


def _fine(pooled: int) -> Mixed:
  three = Conv(96, (3, 3))
  return Mixed(
    ((Conv(64),), (Conv(48), Conv(64, (5, 5))), (Conv(64), three, three)),
    pooled,
  )


def _middle(c: int) -> Mixed:
  row, column = (1, 7), (7, 1)
  once = (Conv(c), Conv(c, row), Conv(192, column))
  twice = (Conv(c), Conv(c, column), Conv(c, row), Conv(c, column), Conv(192, row))
  return Mixed(((Conv(192),), once, twice), 192)


def _coarse(pool: str) -> Mixed:
  return Mixed(
    ((Conv(320),), (Conv(384), Fork(384)), (Conv(448), Conv(384, (3, 3)), Fork(384))),
    192,
    pool,
  )


def _half(width: int) -> Conv:
  return Conv(width, (3, 3), stride=2, same=False)


STEM = (
  (_half(32), Conv(32, (3, 3), same=False), Conv(64, (3, 3))),
  (Conv(80), Conv(192, (3, 3), same=False)),
)
BLOCKS = {
  "5b": _fine(32),
  "5c": _fine(64),
  "5d": _fine(64),
  "6a": Mixed(((_half(384),), (Conv(64), Conv(96, (3, 3)), _half(96)))),
  "6b": _middle(128),
  "6c": _middle(160),
  "6d": _middle(160),
  "6e": _middle(192),
  "7a": Mixed(
    (
      (Conv(192), _half(320)),
      (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), _half(192)),
    )
  ),
  "7b": _coarse("mean"),
  "7c": _coarse("max"),
}


class Unit(nnx.Module):
  """Convolution, norm, ReLU."""

  def __init__(self, c: int, conv: Conv, *, dtype: Any, rngs: layers.Keys):
    h, w = conv.size
    self.conv = nnx.Conv(
      c,
      conv.width,
      conv.size,
      strides=conv.stride,
      padding="SAME" if conv.same else "VALID",
      use_bias=False,
      **layers.inits(c * h * w, False, rngs),
      dtype=dtype,
      rngs=rngs,
    )
    self.norm = layers.BatchNorm(conv.width, epsilon=EPSILON)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    return nnx.relu(self.norm(self.conv(x)))


class Block(nnx.Module):
  """Branches side by side, the last of them behind a pooling."""

  def __init__(self, c: int, widths: Mixed, **options: Any):
    self.pool, self.width, branches = widths.pool, 0, []
    for chain in widths.branches:
      units, last = [], c
      for step in chain:
        sides = step.sides if isinstance(step, Fork) else (step,)
        units += [Unit(last, side, **options) for side in sides]
        last = step.width
      branches.append(nnx.List(units))
      self.width += sum(side.width for side in sides)
    self.branches = nnx.List(branches)
    self.forks = tuple(isinstance(chain[-1], Fork) for chain in widths.branches)
    self.pooled = Unit(c, Conv(widths.pooled), **options) if widths.pooled else None
    self.width += widths.pooled or c

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
    out = []
    for units, fork in zip(self.branches, self.forks, strict=True):
      units, sides = (units[:-2], units[-2:]) if fork else (units[:-1], units[-1:])
      y = x
      for unit in units:
        y = unit(y)
      out += [side(y) for side in sides]
    if self.pooled is None:
      out.append(_halved(x))
    elif self.pool == "max":
      out.append(self.pooled(nnx.max_pool(x, (3, 3), (1, 1), "SAME")))
    else:
      mean = nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
      out.append(self.pooled(mean))
    return jnp.concatenate(out, axis=-1)


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  return nnx.max_pool(x, (3, 3), (2, 2), "VALID")


class Inception(nnx.Module):
  """The feature network. Images may be of any size from `LEAST`; FID's are 299 x 299 pixels."""

  def __init__(self, *, dtype: Any = jnp.float32, rngs: layers.Keys):
    options, c = {"dtype": dtype, "rngs": rngs}, 3
    stem, blocks = [], []
    for group in STEM:
      units = []
      for conv in group:
        units.append(Unit(c, conv, **options))
        c = conv.width
      stem.append(nnx.List(units))
    for widths in BLOCKS.values():
      blocks.append(Block(c, widths, **options))
      c = blocks[-1].width
    self.stem, self.blocks = nnx.List(stem), nnx.List(blocks)

  def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
    x = image
    for group in self.stem:
      for unit in group:
        x = unit(x)
      x = _halved(x)
    for block in self.blocks:
      x = block(x)
    return x.mean((1, 2))
