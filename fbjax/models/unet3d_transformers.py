"""The transformers of the video UNet: within each frame, and along time at each place.

x  b t h w c    text  b n d, seen by every frame    image  b t m d, m tokens for each frame
"""

import functools
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fbjax import partition
from fbjax.models import attention, layers


class SelfAttention(nnx.Module):
  """Self-attention, optionally causal, optionally with relative positions (arXiv:1803.02155).

  Distances are clipped to `positions`; 0 is for none. The tables of keys and values are shared by
  the heads, see `relative_attention`.
  """

  def __init__(
    self,
    c: int,
    *,
    heads: int,
    positions: int = 0,
    causal: bool = False,
    dtype: Any,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.q = layers.linear(c, c, bias=False, **kwargs)
    self.k = layers.linear(c, c, bias=False, **kwargs)
    self.v = layers.linear(c, c, bias=False, **kwargs)
    self.out = layers.linear(c, c, **kwargs)

    def distances() -> nnx.Param | None:
      shape = (2 * positions + 1, c // heads)
      init = nnx.initializers.xavier_uniform()
      return nnx.Param(init(rngs.params(), shape)) if positions else None

    self.key_table = distances()
    self.value_table = distances()
    self.heads = heads
    self.causal = causal

  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    q, k, v = (layers.split_heads(f(x), self.heads) for f in (self.q, self.k, self.v))
    bias = layers.causal_bias(x.shape[1]) if self.causal else None
    if self.key_table is None:
      y = attention.attention(q, k, v, bias=bias, spread=partition.OF_FRAMES)
    else:
      y = relative_attention(q, k, v, self.key_table[...], self.value_table[...], bias)
    return self.out(layers.merge_heads(y))


class CrossAttention(nnx.Module):
  """Attention of one clip's tokens to its text, plus (tanh(alpha) + 1) that to each frame's image.

  Both share the query and the output projection.
  """

  def __init__(
    self, c: int, c_context: int, *, heads: int, image: bool, dtype: Any, rngs: layers.Keys
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.q = layers.linear(c, c, bias=False, **kwargs)
    self.k = layers.linear(c_context, c, bias=False, **kwargs)
    self.v = layers.linear(c_context, c, bias=False, **kwargs)
    self.out = layers.linear(c, c, **kwargs)
    self.image_k = layers.linear(c_context, c, bias=False, **kwargs) if image else None
    self.image_v = layers.linear(c_context, c, bias=False, **kwargs) if image else None
    self.alpha = nnx.Param(jnp.zeros(())) if image else None
    self.heads = heads

  def __call__(
    self,
    x: Float[Array, "bt n c"],
    text: Float[Array, "b l d"],
    image: Float[Array, "bt m d"] | None,
  ) -> Float[Array, "bt n c"]:
    heads = functools.partial(layers.split_heads, heads=self.heads)
    q = self.q(x)
    # All frames of a clip meet the same text: one long query instead of repeated keys.
    frames = partition.parted(q, text.shape[0])
    clips = frames.reshape(text.shape[0], -1, q.shape[-1])
    k, v = heads(self.k(text)), heads(self.v(text))
    y = attention.attention(heads(clips), k, v, spread=partition.OF_CLIPS)
    y = partition.merged(y.reshape(*frames.shape[:3], self.heads, -1))
    if image is not None:
      k, v = heads(self.image_k(image)), heads(self.image_v(image))
      seen = attention.attention(heads(q), k, v, spread=partition.OF_FRAMES)
      y = y + seen * (jnp.tanh(self.alpha[...]) + 1).astype(y.dtype)
    return self.out(layers.merge_heads(y))


class TransformerBlock(nnx.Module):
  """LayerNorm and attention, twice, then LayerNorm and GEGLU, each added to its input."""

  def __init__(
    self, c: int, attn1: nnx.Module, attn2: nnx.Module, *, dtype: Any, rngs: layers.Keys
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.norm1 = layers.layer_norm(c, rngs=rngs)
    self.attn1 = attn1
    self.norm2 = layers.layer_norm(c, rngs=rngs)
    self.attn2 = attn2
    self.norm3 = layers.layer_norm(c, rngs=rngs)
    self.ff = layers.Geglu(c, **kwargs)

  def __call__(
    self, x: Float[Array, "b n c"], *context: Float[Array, "..."] | None
  ) -> Float[Array, "b n c"]:
    x = x + self.attn1(self.norm1(x))
    x = x + self.attn2(self.norm2(x), *context)
    return x + self.ff(self.norm3(x))


class SpatialTransformer(nnx.Module):
  """Within each frame: GroupNorm, Linear, blocks of self- and cross-attention, Linear, added."""

  def __init__(
    self,
    c: int,
    c_context: int,
    *,
    heads: int,
    depth: int,
    image: bool,
    groups: int,
    dtype: Any,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.norm = layers.GroupNorm(c, groups=groups, epsilon=1e-6)
    self.proj_in = layers.linear(c, c, **kwargs)
    self.blocks = nnx.List([])
    for _ in range(depth):
      attn1 = SelfAttention(c, heads=heads, **kwargs)
      attn2 = CrossAttention(c, c_context, heads=heads, image=image, **kwargs)
      self.blocks.append(TransformerBlock(c, attn1, attn2, **kwargs))
    self.proj_out = layers.linear(c, c, zero=True, **kwargs)

  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    text: Float[Array, "b l d"],
    image: Float[Array, "b t m d"] | None,
  ) -> Float[Array, "b t h w c"]:
    frames = partition.merged(x)
    tokens = einops.rearrange(self.norm(frames), "n h w c -> n (h w) c")
    tokens = self.proj_in(tokens).astype(jnp.float32)
    image = None if image is None else partition.merged(image)
    for block in self.blocks:
      tokens = block(tokens, text, image)
    return x + partition.parted(self.proj_out(tokens).reshape(frames.shape), len(x))


class TemporalTransformer(nnx.Module):
  """Along time at each place: GroupNorm over the clip, Linear, blocks of attention, Linear, added."""

  def __init__(
    self,
    c: int,
    *,
    heads: int,
    head_dim: int,
    depth: int,
    positions: int,
    causal: bool,
    groups: int,
    dtype: Any,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    c_inner = heads * head_dim
    self.norm = layers.GroupNorm(c, groups=groups, epsilon=1e-6)
    self.proj_in = layers.linear(c, c_inner, **kwargs)
    self.blocks = nnx.List([])
    for _ in range(depth):
      attn1, attn2 = (
        SelfAttention(c_inner, heads=heads, positions=positions, causal=causal, **kwargs)
        for _ in range(2)
      )
      self.blocks.append(TransformerBlock(c_inner, attn1, attn2, **kwargs))
    self.proj_out = layers.linear(c_inner, c, zero=True, **kwargs)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    x = partition.across_frames(x)
    rows = partition.merged(einops.rearrange(self.norm(x), "b t h w c -> b h w t c"))
    tokens = rows.reshape(-1, *rows.shape[2:])
    tokens = self.proj_in(tokens).astype(jnp.float32)
    for block in self.blocks:
      tokens = block(tokens)
    rows = self.proj_out(tokens).reshape(rows.shape)
    return partition.video(
      x + einops.rearrange(partition.parted(rows, len(x)), "b h w t c -> b t h w c")
    )


def relative_attention(
  q: Float[Array, "b n k d"],
  k: Float[Array, "b n k d"],
  v: Float[Array, "b n k d"],
  key_table: Float[Array, "p d"],
  value_table: Float[Array, "p d"],
  bias: Float[Array, "1 1 n n"] | None,
) -> Float[Array, "b n k d"]:
  """Self-attention with relative positions (arXiv:1803.02155, eq. 3 and 4).

  The vector of the clipped distance j - i in `key_table` is added to key j for query i, and that in
  `value_table` to value j.
  """
  n, far = q.shape[1], key_table.shape[0] // 2
  place = jnp.arange(n)
  index = jnp.clip(place[None] - place[:, None], -far, far) + far
  logits = jnp.einsum("bikd,bjkd->bkij", q, k, preferred_element_type=jnp.float32)
  near = key_table[index].astype(q.dtype)
  logits += jnp.einsum("bikd,ijd->bkij", q, near, preferred_element_type=jnp.float32)
  logits *= q.shape[-1] ** -0.5
  weights = jax.nn.softmax(logits if bias is None else logits + bias).astype(v.dtype)
  out = jnp.einsum("bkij,bjkd->bikd", weights, v)
  return out + jnp.einsum("bkij,ijd->bikd", weights, value_table[index].astype(v.dtype))
