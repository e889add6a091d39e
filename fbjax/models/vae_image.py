"""The image autoencoder of Stable Diffusion, applied to the frames of a video one by one.

  encode: [-1, 1] -> mean and log variance of a latent, 2^(levels - 1) times smaller each way
  decode: latent -> [-1, 1], unclipped

Latents are those of the network, unscaled. Diffusion models see them multiplied by 0.18215.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fbjax import errors, partition
from fbjax.models import attention, layers


class Gaussian(NamedTuple):
  """A latent's distribution; the mode is `mean`."""

  mean: Float[Array, "*b c"]
  logvar: Float[Array, "*b c"]

  def sample(self, noise: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    return self.mean + jnp.exp(0.5 * self.logvar) * noise


class ResBlock(nnx.Module):
  """(GroupNorm, SiLU, Conv) twice, added to the input."""

  def __init__(self, c_in: int, c_out: int, *, groups: int, dtype: Any, rngs: layers.Keys):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.norm1 = layers.GroupNorm(c_in, groups=groups, epsilon=1e-6)
    self.conv1 = layers.conv(c_in, c_out, 3, **kwargs)
    self.norm2 = layers.GroupNorm(c_out, groups=groups, epsilon=1e-6)
    self.conv2 = layers.conv(c_out, c_out, 3, **kwargs)
    self.skip = layers.conv(c_in, c_out, 1, **kwargs) if c_in != c_out else None

  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c_out"]:
    h = self.conv1(nnx.silu(self.norm1(x)))
    h = self.conv2(nnx.silu(self.norm2(h)))
    return h + (x if self.skip is None else self.skip(x).astype(jnp.float32))


class Attention(nnx.Module):
  """GroupNorm, self-attention of all pixels with one head, Linear, added to the input."""

  def __init__(self, c: int, *, groups: int, dtype: Any, rngs: layers.Keys):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.norm = layers.GroupNorm(c, groups=groups, epsilon=1e-6)
    self.q = layers.linear(c, c, **kwargs)
    self.k = layers.linear(c, c, **kwargs)
    self.v = layers.linear(c, c, **kwargs)
    self.out = layers.linear(c, c, **kwargs)

  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    tokens = einops.rearrange(self.norm(x), "n h w c -> n (h w) c")
    q, k, v = (layers.split_heads(f(tokens), 1) for f in (self.q, self.k, self.v))
    y = self.out(layers.merge_heads(attention.attention(q, k, v)))
    return x + y.reshape(x.shape)


class Middle(nnx.Module):
  """ResBlock, attention, ResBlock."""

  def __init__(self, c: int, *, groups: int, dtype: Any, rngs: layers.Keys):
    kwargs = {"groups": groups, "dtype": dtype, "rngs": rngs}
    self.block1 = ResBlock(c, c, **kwargs)
    self.attn = Attention(c, **kwargs)
    self.block2 = ResBlock(c, c, **kwargs)

  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    return self.block2(self.attn(self.block1(x)))


class Encoder(nnx.Module):
  """Conv, levels down, middle, GroupNorm, SiLU, Conv."""

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    width: int,
    mult: Sequence[int],
    blocks: int,
    groups: int,
    dtype: Any,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.in_conv = layers.conv(c_in, width, 3, **kwargs)
    self.levels = nnx.List([])
    c = width
    for level, m in enumerate(mult):
      row = []
      for _ in range(blocks):
        row.append(ResBlock(c, m * width, groups=groups, **kwargs))
        c = m * width
      last = level == len(mult) - 1
      self.levels.append(
        layers.Level(
          row, None if last else layers.Downsample(c, padding=layers.END_PADDING, **kwargs)
        )
      )
    self.middle = Middle(c, groups=groups, **kwargs)
    self.out_norm = layers.GroupNorm(c, groups=groups, epsilon=1e-6)
    self.out_conv = layers.conv(c, c_out, 3, **kwargs)

  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n hz wz c2"]:
    h = self.in_conv(x).astype(jnp.float32)
    for level in self.levels:
      h = level(h)
    return self.out_conv(nnx.silu(self.out_norm(self.middle(h))))


class Decoder(nnx.Module):
  """Conv, middle, levels up with one ResBlock more than going down, GroupNorm, SiLU, Conv."""

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    width: int,
    mult: Sequence[int],
    blocks: int,
    groups: int,
    dtype: Any,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    c = mult[-1] * width
    self.in_conv = layers.conv(c_in, c, 3, **kwargs)
    self.middle = Middle(c, groups=groups, **kwargs)
    self.levels = nnx.List([])
    for level, m in reversed(list(enumerate(mult))):
      row = []
      for _ in range(blocks + 1):
        row.append(ResBlock(c, m * width, groups=groups, **kwargs))
        c = m * width
      self.levels.append(layers.Level(row, layers.Upsample(c, **kwargs) if level else None))
    self.out_norm = layers.GroupNorm(c, groups=groups, epsilon=1e-6)
    self.out_conv = layers.conv(c, c_out, 3, dtype=jnp.float32, rngs=rngs)

  def __call__(self, z: Float[Array, "n hz wz c"]) -> Float[Array, "n h w c2"]:
    h = self.middle(self.in_conv(z).astype(jnp.float32))
    for level in self.levels:
      h = level(h)
    return self.out_conv(nnx.silu(self.out_norm(h)))


class AutoencoderKL(nnx.Module):
  """Encoder to a Gaussian, decoder from a sample of it.

  Args:
    c_in: channels of the video.
    c_latent: channels of the latent.
    width: channels of the first level; `mult` multiplies it level by level.
    blocks: ResBlocks of a level going down.
  """

  def __init__(
    self,
    c_in: int,
    c_latent: int,
    *,
    width: int,
    mult: Sequence[int],
    blocks: int,
    groups: int = 32,
    dtype: Any = jnp.float32,
    rngs: layers.Keys,
  ):
    sizes = {"width": width, "mult": mult, "blocks": blocks, "groups": groups}
    self.encoder = Encoder(c_in, 2 * c_latent, **sizes, dtype=dtype, rngs=rngs)
    self.decoder = Decoder(c_latent, c_in, **sizes, dtype=dtype, rngs=rngs)
    self.moments = layers.linear(2 * c_latent, 2 * c_latent, dtype=jnp.float32, rngs=rngs)
    self.latent = layers.linear(c_latent, c_latent, dtype=jnp.float32, rngs=rngs)
    self.factor = 2 ** (len(mult) - 1)

  def encode(self, video: Float[Array, "b t h w c"], *, at_once: int | None = None) -> Gaussian:
    """Distribution of the latent of each frame.

    Encodes `at_once` frames of a clip at a time, to bound the memory; None is all.
    """
    h, w = video.shape[2:4]
    if h % self.factor or w % self.factor:
      raise errors.UserError(
        f"the autoencoder's input is {h} x {w}: both must divide by {self.factor}"
      )
    encoder = partition.whole(self.encoder)  # once, for all frames
    moments = _frames(lambda x: self.moments(encoder(x)), video, at_once)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return Gaussian(mean, jnp.clip(logvar, -30, 20))

  def decode(
    self, z: Float[Array, "b t hz wz c"], *, at_once: int | None = None
  ) -> Float[Array, "b t h w c2"]:
    """The video of a latent, about [-1, 1]; `at_once` is as in `encode`."""
    decoder = partition.whole(self.decoder)
    return _frames(lambda x: decoder(self.latent(x)), z, at_once)


def _frames(
  f: Callable[[Array], Array], video: Float[Array, "b t h w c"], at_once: int | None
) -> Float[Array, "b t h2 w2 c2"]:
  """f of the frames, some of each clip at a time: slices of time, so each device keeps its own clips."""
  b, t = video.shape[:2]
  at_once = min(at_once or t, t)

  def some(frames: Float[Array, "b k h w c"]) -> Float[Array, "b k h2 w2 c2"]:
    # Clips before frames: the other way round the frames of a device would be of all clips.
    return partition.frames_apart(f, frames)

  rest = t % at_once
  parts = video[:, : t - rest].reshape(b, -1, at_once, *video.shape[2:]).swapaxes(0, 1)
  if len(parts) == 1:
    made = [some(parts[0])]
  else:
    y = jax.lax.map(some, parts)
    made = [y.swapaxes(0, 1).reshape(b, -1, *y.shape[3:])]
  if rest:
    made.append(some(video[:, t - rest :]))
  return jnp.concatenate(made, axis=1)
