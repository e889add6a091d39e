"""What the networks share: norms, embeddings, PyTorch's initialisation, keys.

Video is `b t h w c`, tokens are `b n c`, and heads `k` of `d` channels lie head by head in `c`.
Parameters are float32. `dtype` is what convolutions and products compute in; norms,
activations, softmax and sinusoids are float32 whatever the dtype.
"""

import math
from collections.abc import Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fbjax import errors, partition

# Uniform numbers that one program draws for many leaves, and the largest leaf that shares them.
POOL = 2**18
SHARES = 2**16


class Keys:
  """A stream of keys that counts in Python, and of uniform numbers that many leaves share.

  Stands in for `nnx.Rngs`, whose counter is an array: under tracing it takes a minute to build
  a thousand layers with it, and a second with this. A draw of its own for every leaf takes XLA
  longer to compile than the network: small leaves are slices of a common one.
  """

  def __init__(self, key: Key[Array, ""]):
    self.key = key
    self.count = 0
    self._pool = None
    self._used = 0

  def __call__(self) -> Key[Array, ""]:
    self.count += 1
    return jax.random.fold_in(self.key, self.count)

  params = __call__

  def uniform(self, shape: Sequence[int]) -> Float[Array, "..."]:
    """Uniform numbers in [-1, 1), float32; no two calls return the same ones."""
    size = math.prod(shape)
    if size > SHARES:
      return jax.random.uniform(self(), shape, minval=-1)
    if self._pool is None or self._used + size > POOL:
      self._pool, self._used = jax.random.uniform(self(), POOL, minval=-1), 0
    self._used += size
    return self._pool[self._used - size : self._used].reshape(shape)


def inits(fan_in: int, zero: bool, rngs: Keys) -> dict[str, jax.nn.initializers.Initializer]:
  """Initialisers of kernel and bias: uniform within 1 / sqrt(fan_in), PyTorch's default, or zeros.

  Numbers come from `rngs`; the keys that Flax passes are ignored.
  """
  bound = 1 / math.sqrt(fan_in)

  def init(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    return (bound * rngs.uniform(shape)).astype(dtype)

  init = nnx.initializers.zeros if zero else init
  return {"kernel_init": init, "bias_init": init}


class Linear(nnx.Linear):
  """Over the last axis, as one matrix product.

  With the other axes left apart the kernel's gradient sums over several, four times slower on a CPU.
  """

  def __call__(self, x: Float[Array, "*n c_in"]) -> Float[Array, "*n c_out"]:
    if partition.size("context") > 1:  # Axes that are split apart do not become one.
      return super().__call__(x)
    return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def linear(
  c_in: int, c_out: int, *, bias: bool = True, zero: bool = False, dtype: Any, rngs: Keys
) -> nnx.Linear:
  return Linear(c_in, c_out, use_bias=bias, **inits(c_in, zero, rngs), dtype=dtype, rngs=rngs)


def conv(
  c_in: int,
  c_out: int,
  size: int,
  *,
  stride: int = 1,
  padding: Any = None,
  bias: bool = True,
  zero: bool = False,
  dtype: Any,
  rngs: Keys,
) -> nnx.Conv:
  """A square convolution that pads both sides alike, as torch does; SAME would not at stride 2."""
  return nnx.Conv(
    c_in,
    c_out,
    (size, size),
    strides=stride,
    padding=size // 2 if padding is None else padding,
    use_bias=bias,
    **inits(c_in * size * size, zero, rngs),
    dtype=dtype,
    rngs=rngs,
  )


class Conv3d(nnx.Conv):
  """A cubic convolution over time, height and width, padded as SAME.

  On a CPU the frames that a kernel sees are laid side by side in the channels of one convolution over height
  and width: those are what XLA is fast at there, and a sum over frames would hold an output for each.
  """

  def __init__(
    self,
    c_in: int,
    c_out: int,
    size: int,
    *,
    stride: int = 1,
    bias: bool = True,
    dtype: Any,
    rngs: Keys,
  ):
    super().__init__(
      c_in,
      c_out,
      (size,) * 3,
      strides=stride,
      padding="SAME",
      use_bias=bias,
      **inits(c_in * size**3, False, rngs),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c2"]:
    if self.kernel_size[0] == 1:
      return super().__call__(x)
    return jax.lax.platform_dependent(x, cpu=self.of_frames, default=super().__call__)

  def of_frames(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c2"]:
    """The same, by a convolution over height and width."""
    size, stride = self.kernel_size[0], self.strides
    frames = -(-x.shape[1] // stride)
    more = max((frames - 1) * stride + size - x.shape[1], 0)
    x = jnp.pad(x.astype(self.dtype), ((0, 0), (more // 2, more - more // 2), *((0, 0),) * 3))
    last = (frames - 1) * stride + 1
    seen = jnp.concatenate([x[:, i : i + last : stride] for i in range(size)], -1)
    y = jax.lax.conv_general_dilated(
      seen.reshape(-1, *seen.shape[2:]),
      einops.rearrange(self.kernel[...].astype(self.dtype), "t h w i o -> h w (t i) o"),
      (stride, stride),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y.reshape(-1, frames, *y.shape[1:])
    return y if self.bias is None else y + per_channel(self.bias[...].astype(self.dtype), y)


def layer_norm(c: int, *, epsilon: float = 1e-5, rngs: Keys) -> nnx.LayerNorm:
  dtype = jnp.float32
  return nnx.LayerNorm(c, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


class GroupNorm(nnx.Module):
  """Normalizes groups of channels over every axis between the first and the last.

  The variance is that of the centred values: E[x^2] - E[x]^2 loses it when mean >> deviation.
  """

  def __init__(self, c: int, *, groups: int = 32, epsilon: float = 1e-5):
    if c % groups:
      raise errors.UserError(
        f"{c} channels do not divide into {groups} groups; choose other groups"
      )
    self.scale = nnx.Param(jnp.ones(c))
    self.bias = nnx.Param(jnp.zeros(c))
    self.groups = groups
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
    rows = x.astype(jnp.float32)
    if partition.size("context") == 1:  # Axes that are split apart do not become one.
      rows = rows.reshape(len(x), -1, x.shape[-1])
    # Sums over rows first, over a group's few channels last: on a CPU five times faster than one
    # sum over both axes.
    centred = rows - self._group_mean(rows)
    variance = self._group_mean(jnp.square(centred))
    scale = jax.lax.rsqrt(variance + self.epsilon) * per_channel(self.scale[...], rows)
    y = (centred * scale + per_channel(self.bias[...], rows)).reshape(x.shape)
    return y.astype(x.dtype)

  def _group_mean(self, rows: Float[Array, "b *n c"]) -> Float[Array, "b *ones c"]:
    b, *n, c = rows.shape
    mean = rows.mean(range(1, rows.ndim - 1)).reshape(b, self.groups, -1).mean(2)
    return jnp.repeat(mean, c // self.groups, axis=1).reshape(b, *[1] * len(n), c)


class BatchNorm(nnx.Module):
  """BatchNorm with the stored mean and variance of training (inference only); float32."""

  def __init__(self, c: int, *, epsilon: float):
    self.scale = nnx.Param(jnp.ones(c))
    self.bias = nnx.Param(jnp.zeros(c))
    self.mean = nnx.Param(jnp.zeros(c))
    self.var = nnx.Param(jnp.ones(c))
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
    shift = self.bias[...] - self.mean[...] * scale
    return x.astype(jnp.float32) * per_channel(scale, x) + per_channel(shift, x)


def per_channel(v: Float[Array, " c"], x: Float[Array, "... c"]) -> Float[Array, "... c"]:
  """Gives v the rank of x: implicit promotion of ranks is an error in the tests."""
  return v.reshape((1,) * (x.ndim - 1) + v.shape)


def causal_bias(n: int) -> Float[Array, "1 1 n n"]:
  """0 where a position may look, -inf at what comes after it."""
  return jnp.where(jnp.tril(jnp.ones((n, n), bool)), 0.0, -jnp.inf)[None, None]


def split_heads(x: Float[Array, "b n c"], heads: int) -> Float[Array, "b n k d"]:
  return x.reshape(*x.shape[:2], heads, -1)


def merge_heads(x: Float[Array, "b n k d"]) -> Float[Array, "b n c"]:
  return x.reshape(*x.shape[:2], -1)


def sinusoid(time: Float[Array, " b"], c: int) -> Float[Array, "b c"]:
  """[cos, sin] of time at c/2 frequencies from 1 down to almost 1/10000; float32."""
  if c % 2:
    raise errors.UserError(f"a sinusoidal embedding needs an even number of channels, not {c}")
  half = c // 2
  freq = jnp.exp(-math.log(10_000) / half * jnp.arange(half, dtype=jnp.float32))
  angle = time.astype(jnp.float32)[:, None] * freq[None]
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class TimeEmbedding(nnx.Module):
  """Sinusoid of as many channels as `up` takes, `up`, SiLU, `out`; times may lie between integers."""

  def __init__(self, up: nnx.Linear, out: nnx.Linear):
    self.up = up
    self.out = out

  def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b e"]:
    return self.out(nnx.silu(self.up(sinusoid(time, self.up.in_features))))


class Upsample(nnx.Module):
  """Nearest-neighbour upsampling by 2, then a 3x3 convolution; float32."""

  def __init__(self, c: int, *, dtype: Any, rngs: Keys):
    self.conv = conv(c, c, 3, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h2 w2 c"]:
    x = x.astype(self.conv.dtype)  # before it is four times as large
    return self.conv(einops.repeat(x, "... h w c -> ... (h i) (w j) c", i=2, j=2)).astype(
      jnp.float32
    )


class Downsample(nnx.Module):
  """A 3x3 convolution with stride 2, padded by one on every side unless told otherwise; float32."""

  def __init__(self, c: int, *, padding: Any = None, dtype: Any, rngs: Keys):
    self.conv = conv(c, c, 3, stride=2, padding=padding, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h2 w2 c"]:
    return self.conv(x).astype(jnp.float32)


# Downsampling of the autoencoders pads the right and the lower edge only.
END_PADDING = ((0, 1), (0, 1))


class Level(nnx.Module):
  """Blocks of one resolution, called as block(x, *context), then the resampling, if any."""

  def __init__(self, blocks: Sequence[nnx.Module], resample: nnx.Module | None):
    self.blocks = nnx.List(blocks)
    self.resample = resample

  def __call__(self, x: Float[Array, "*b h w c"], *context: Any) -> Float[Array, "*b2 h2 w2 c2"]:
    for block in self.blocks:
      x = block(x, *context)
    return x if self.resample is None else self.resample(x)


class Geglu(nnx.Module):
  """Linear to value and gate, value * gelu(gate), Linear back."""

  def __init__(self, c: int, *, mult: int = 4, dtype: Any, rngs: Keys):
    self.up = linear(c, 2 * mult * c, dtype=dtype, rngs=rngs)
    self.down = linear(mult * c, c, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    value, gate = (y.astype(jnp.float32) for y in partition.parts(self.up, x, 2))
    return self.down(value * nnx.gelu(gate, approximate=False))


def split(keys: Key[Array, " b"] | None, n: int) -> list[Key[Array, " b"] | None]:
  """Derives n sets of keys, one key per clip in each; of None, n times None."""
  if keys is None:
    return [None] * n
  of_clips = jax.vmap(jax.random.fold_in, (0, None))
  return list(jax.vmap(of_clips, (None, 0))(keys, jnp.arange(n)))


def dropout(
  x: Float[Array, "b *n"], rate: float, keys: Key[Array, " b"] | None
) -> Float[Array, "b *n"]:
  """Zeroes a share of x and scales up the rest; the identity without keys.

  What a clip loses follows from its own key, so that its batch and its place there do not matter.
  """
  if keys is None or rate == 0:
    return x
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
