"""The Resampler of DynamiCrafter: CLIP's tokens of one image become a few tokens for each frame.

Learned queries, `queries` of them for each of `frames` frames, attend several times to the
image's tokens and to themselves (a Perceiver).
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fbjax.models import attention, layers


class Attention(nnx.Module):
  """Queries attend to the image's tokens and to themselves; each side has its LayerNorm."""

  def __init__(self, c: int, *, heads: int, head_dim: int, dtype: Any, rngs: layers.Keys):
    kwargs = {"bias": False, "dtype": dtype, "rngs": rngs}
    inner = heads * head_dim
    self.image_norm = layers.layer_norm(c, rngs=rngs)
    self.query_norm = layers.layer_norm(c, rngs=rngs)
    self.q = layers.linear(c, inner, **kwargs)
    self.kv = layers.linear(c, 2 * inner, **kwargs)
    self.out = layers.linear(inner, c, **kwargs)
    self.heads = heads

  def __call__(
    self, x: Float[Array, "b n c"], image: Float[Array, "b m c"]
  ) -> Float[Array, "b n c"]:
    x = self.query_norm(x)
    q = self.q(x)
    k, v = jnp.split(self.kv(jnp.concatenate([self.image_norm(image), x], 1)), 2, axis=-1)
    q, k, v = (layers.split_heads(y, self.heads) for y in (q, k, v))
    return self.out(layers.merge_heads(attention.attention(q, k, v)))


class FeedForward(nnx.Module):
  """LayerNorm, Linear, exact GELU, Linear."""

  def __init__(self, c: int, *, mult: int, dtype: Any, rngs: layers.Keys):
    kwargs = {"bias": False, "dtype": dtype, "rngs": rngs}
    self.norm = layers.layer_norm(c, rngs=rngs)
    self.up = layers.linear(c, mult * c, **kwargs)
    self.down = layers.linear(mult * c, c, **kwargs)

  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    h = self.up(self.norm(x)).astype(jnp.float32)
    return self.down(nnx.gelu(h, approximate=False))


class Layer(nnx.Module):
  """Attention, then feed-forward, each added to its input."""

  def __init__(
    self, c: int, *, heads: int, head_dim: int, mult: int, dtype: Any, rngs: layers.Keys
  ):
    self.attn = Attention(c, heads=heads, head_dim=head_dim, dtype=dtype, rngs=rngs)
    self.ff = FeedForward(c, mult=mult, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b n c"], image: Float[Array, "b m c"]
  ) -> Float[Array, "b n c"]:
    x = x + self.attn(x, image)
    return x + self.ff(x)


class Resampler(nnx.Module):
  """Linear on the image's tokens; `depth` layers on the queries; Linear; LayerNorm.

  Args:
    c_in: channels of the image's tokens.
    c_out: channels of the output, the context of the UNet.
    width: hidden size.
    queries: tokens for each frame.
    frames: frames of a clip.
    mult: width of the feed-forward, in widths.
  """

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    width: int,
    depth: int,
    heads: int,
    head_dim: int,
    queries: int,
    frames: int,
    mult: int = 4,
    dtype: Any = jnp.float32,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    init = nnx.initializers.normal(width**-0.5)
    self.latents = nnx.Param(init(rngs.params(), (1, frames * queries, width)))
    self.proj_in = layers.linear(c_in, width, **kwargs)
    self.layers = nnx.List(
      [Layer(width, heads=heads, head_dim=head_dim, mult=mult, **kwargs) for _ in range(depth)]
    )
    self.proj_out = layers.linear(width, c_out, **kwargs)
    self.norm = layers.layer_norm(c_out, rngs=rngs)
    self.frames = frames

  def __call__(self, image: Float[Array, "b m d"]) -> Float[Array, "b t n c"]:
    b = image.shape[0]
    image = self.proj_in(image)
    x = jnp.broadcast_to(self.latents[...], (b, *self.latents.shape[1:]))
    for layer in self.layers:
      x = layer(x, image)
    x = self.norm(self.proj_out(x))
    return x.reshape(b, self.frames, -1, x.shape[-1])
