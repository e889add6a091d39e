"""CogVideoX: one transformer over the tokens of text and video.

  tokens  those of the text, then the patches of the video: frame by frame, row by row
  block   norm, attention of all tokens to all, norm, MLP; both are added through gates

Text and video share the weights of a block. Only the shift and scale after its norms and the
gates, which depend on the time, are separate for each ("expert adaptive LayerNorm").
The 2B model adds sinusoidal positions to the patches, the 5B model has rotary embeddings (RoPE).

`dtype` is that of matrix products. The residual stream, norms and gates stay float32.
"""

from collections.abc import Callable
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from fbjax import errors, partition
from fbjax.models import attention, layers

Positions = Literal["sincos", "rotary", "rotary_index"]
Rotation = tuple[Float[Array, "n f"], Float[Array, "n f"]]


class ExpertNorm(nnx.Module):
  """Adaptive LayerNorm: returns the modulated tokens, and the gate of the branch that reads them.

  Shift, scale and gate are linear in the time embedding; video and text tokens each have their own.
  """

  def __init__(self, c: int, c_emb: int, *, rngs: layers.Keys):
    self.norm = layers.layer_norm(c, rngs=rngs)
    # Zero: a fresh block is the identity.
    self.emb = layers.linear(c_emb, 6 * c, zero=True, dtype=jnp.float32, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b n c"], emb: Float[Array, "b e"], is_text: Bool[Array, " n"]
  ) -> tuple[Float[Array, "b n c"], Float[Array, "b n c"]]:
    video, text = jnp.split(self.emb(emb)[:, None], 2, axis=-1)
    both = jnp.where(is_text[None, :, None], text, video)
    shift, scale, gate = jnp.split(both, 3, axis=-1)
    return self.norm(x) * (1 + scale) + shift, gate


class Attention(nnx.Module):
  """Self-attention with LayerNorm of queries and keys per head, then rotary embeddings, if any."""

  def __init__(self, c: int, *, heads: int, dtype: Any, rngs: layers.Keys):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.q = layers.linear(c, c, **kwargs)
    self.k = layers.linear(c, c, **kwargs)
    self.v = layers.linear(c, c, **kwargs)
    self.q_norm = layers.layer_norm(c // heads, epsilon=1e-6, rngs=rngs)
    self.k_norm = layers.layer_norm(c // heads, epsilon=1e-6, rngs=rngs)
    self.out = layers.linear(c, c, **kwargs)
    self.heads = heads

  def __call__(self, x: Float[Array, "b n c"], rotation: Rotation | None) -> Float[Array, "b n c"]:
    q, k, v = (layers.split_heads(f(x), self.heads) for f in (self.q, self.k, self.v))
    q, k = self.q_norm(q), self.k_norm(k)
    if rotation is not None:
      q, k = rotate(q, *rotation), rotate(k, *rotation)
    y = attention.attention(q.astype(v.dtype), k.astype(v.dtype), v, spread=partition.OF_CLIPS)
    return self.out(layers.merge_heads(y))


class Block(nnx.Module):
  """x + gate attention(norm(x)), then x + gate mlp(norm(x))."""

  def __init__(self, c: int, c_emb: int, *, heads: int, dtype: Any, rngs: layers.Keys):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.norm1 = ExpertNorm(c, c_emb, rngs=rngs)
    self.attn = Attention(c, heads=heads, **kwargs)
    self.norm2 = ExpertNorm(c, c_emb, rngs=rngs)
    self.up = layers.linear(c, 4 * c, **kwargs)
    self.down = layers.linear(4 * c, c, **kwargs)

  def __call__(
    self,
    x: Float[Array, "b n c"],
    emb: Float[Array, "b e"],
    is_text: Bool[Array, " n"],
    rotation: Rotation | None,
  ) -> Float[Array, "b n c"]:
    h, gate = self.norm1(x, emb, is_text)
    x = x + gate * self.attn(h, rotation)
    h, gate = self.norm2(x, emb, is_text)
    h = nnx.gelu(self.up(h).astype(jnp.float32), approximate=True)
    return x + gate * self.down(h)


class CogVideoX(nnx.Module):
  """Patches and text to tokens, positions, equal blocks, LayerNorm twice, tokens to patches.

  The width is heads * head_dim. Text tokens have no positions: T5 has given them some.

  Args:
    c_in: channels of x, conditioning channels included.
    text_dim: channels of the text.
    time_dim: channels of the time embedding.
    patch: pixels of a patch, in height and in width.
    patch_time: frames of a patch; 2 in version 1.5.
    positions: "sincos" is added to the patches (2B); "rotary" are rotary embeddings of positions on
      the grid of `base`, into which rows and columns are fitted (5B); "rotary_index" those of the
      indices themselves (1.5).
    base: rows and columns of patches that "rotary" was trained on.
    scale_space, scale_time: what "sincos" divides indices by.
    wrap: makes of f(block, *args) what is called instead, for example `jax.checkpoint`.
  """

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    depth: int,
    heads: int,
    head_dim: int,
    text_dim: int,
    time_dim: int,
    patch: int = 2,
    patch_time: int = 1,
    positions: Positions = "sincos",
    base: tuple[int, int] = (30, 45),
    scale_space: float = 1.875,
    scale_time: float = 1.0,
    dtype: Any = jnp.float32,
    wrap: Callable[[Callable], Callable] | None = None,
    rngs: layers.Keys,
  ):
    c = heads * head_dim
    name, size = ("a width", c) if positions == "sincos" else ("a head_dim", head_dim)
    if size % 16:
      raise errors.UserError(f"{positions} positions need {name} that divides by 16, not {size}")

    def block(key: Array) -> Block:
      return Block(c, time_dim, heads=heads, dtype=dtype, rngs=layers.Keys(key))

    volume = patch_time * patch * patch
    self.patches = layers.linear(c_in * volume, c, dtype=dtype, rngs=rngs)
    self.text = layers.linear(text_dim, c, dtype=dtype, rngs=rngs)
    # In float32, for every token meets its error.
    up = layers.linear(c, time_dim, dtype=jnp.float32, rngs=rngs)
    out = layers.linear(time_dim, time_dim, dtype=jnp.float32, rngs=rngs)
    self.time = layers.TimeEmbedding(up, out)
    self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), depth))
    self.norm = layers.layer_norm(c, rngs=rngs)
    self.out_norm = layers.layer_norm(c, rngs=rngs)
    kwargs = {"zero": True, "dtype": jnp.float32, "rngs": rngs}
    self.out_emb = layers.linear(time_dim, 2 * c, **kwargs)
    self.out = layers.linear(c, c_out * volume, **kwargs)
    self.head_dim = head_dim
    self.patch = patch
    self.patch_time = patch_time
    self.positions = positions
    self.base = base
    self.scale_space = scale_space
    self.scale_time = scale_time
    self.wrap = wrap

  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    time: Float[Array, " b"],
    text: Float[Array, "b n d"],
  ) -> Float[Array, "b t h w c_out"]:
    """The network's prediction in float32. Times may lie between two steps."""
    sizes = {"i": self.patch_time, "j": self.patch, "k": self.patch}
    t, h, w = (n // size for n, size in zip(x.shape[1:4], sizes.values(), strict=True))
    if x.shape[1:4] != (t * self.patch_time, h * self.patch, w * self.patch):
      got, patches = (" x ".join(map(str, n)) for n in (x.shape[1:4], sizes.values()))
      raise errors.UserError(
        f"latents of {got} do not divide into patches of {patches}: change either"
      )

    emb = nnx.silu(self.time(time))
    text = partition.layer(self.text)(text).astype(jnp.float32)
    # Channels before the places in a patch, as in the files: channels may then be appended.
    x = einops.rearrange(x, "b (t i) (h j) (w k) c -> b (t h w) (c i j k)", **sizes)
    x = partition.layer(self.patches)(partition.video(x)).astype(jnp.float32)
    rotation = None
    if self.positions == "sincos":
      x = x + sincos(t, h, w, x.shape[-1], space=self.scale_space, time=self.scale_time)[None]
    else:
      frames, rows, columns = (np.arange(n, dtype=np.float64) for n in (t, h, w))
      if self.positions == "rotary":
        rows, columns = fit(h, w, self.base)
      angles = rotary(frames, rows, columns, self.head_dim)
      angles = jnp.pad(angles, ((text.shape[1], 0), (0, 0)))
      rotation = (jnp.cos(angles), jnp.sin(angles))

    n = text.shape[1]
    x = jnp.concatenate([text, x], 1)
    is_text = jnp.arange(x.shape[1]) < n
    run = partition.blockwise(Block.__call__, self.wrap)
    x, _ = jax.lax.scan(lambda x, b: (run(b, x, emb, is_text, rotation), None), x, self.blocks)

    shift, scale = jnp.split(self.out_emb(emb)[:, None], 2, axis=-1)
    x = partition.layer(self.out)(self.out_norm(self.norm(x[:, n:])) * (1 + scale) + shift)
    pattern = "b (t h w) (c i j k) -> b (t i) (h j) (w k) c"
    return einops.rearrange(x, pattern, t=t, h=h, w=w, **sizes)


def sincos(t: int, h: int, w: int, c: int, *, space: float, time: float) -> Float[Array, "n c"]:
  """[sin, cos] of a token's frame, column and row, in this order: 1/4, 3/8 and 3/8 of the channels."""

  def waves(place: np.ndarray, c: int) -> np.ndarray:
    angle = _angles(place, c)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)

  frames = waves(np.arange(t) / time, c // 4)
  rows, columns = (waves(np.arange(n) / space, 3 * c // 8) for n in (h, w))
  frames, rows, columns = _on_grid(frames, rows, columns)
  return jnp.concatenate([frames, columns, rows], -1)


def rotary(
  frames: Float[np.ndarray, " t"],
  rows: Float[np.ndarray, " h"],
  columns: Float[np.ndarray, " w"],
  head_dim: int,
) -> Float[Array, "n f"]:
  """Angles of the rotary embeddings: 1/4 of the channels by frame, 3/8 by row, 3/8 by column."""
  space = 3 * head_dim // 8
  tables = _angles(frames, head_dim // 4), _angles(rows, space), _angles(columns, space)
  return jnp.concatenate(_on_grid(*tables), -1)


def rotate(
  x: Float[Array, "b n k d"], cos: Float[Array, "n f"], sin: Float[Array, "n f"]
) -> Float[Array, "b n k d"]:
  """Applies rotary embeddings: rotates the pairs of neighbouring channels of every head."""
  even, odd = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, 2), -1, 0)
  cos, sin = cos[None, :, None], sin[None, :, None]
  return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)


def fit(
  h: int, w: int, base: tuple[int, int]
) -> tuple[Float[np.ndarray, " h"], Float[np.ndarray, " w"]]:
  """Positions of h rows and w columns, scaled to fit into a grid of `base` and centred in it."""
  if h / w > base[0] / base[1]:
    size = base[0], round(base[0] / h * w)
  else:
    size = round(base[1] / w * h), base[1]

  def places(n: int, size: int, whole: int) -> np.ndarray:
    start = round((whole - size) / 2)
    # Scaling the end and not the length shrinks what does not start at 0. It is published so.
    return np.linspace(start, (start + size) * (n - 1) / n, n)

  return places(h, size[0], base[0]), places(w, size[1], base[1])


def _angles(place: np.ndarray, c: int) -> np.ndarray:
  """place times c/2 frequencies from 1 down to almost 1/10000, in float64."""
  return place[:, None] * 10_000.0 ** (-np.arange(c // 2) / (c // 2))


def _on_grid(frames: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[Array]:
  """Tables of one axis each, repeated for all tokens here and not on the host: those are large."""
  frames, rows, columns = (jnp.asarray(x, jnp.float32) for x in (frames, rows, columns))
  t, h, w = len(frames), len(rows), len(columns)
  return [
    einops.repeat(frames, "t c -> (t h w) c", h=h, w=w),
    einops.repeat(rows, "h c -> (t h w) c", t=t, w=w),
    einops.repeat(columns, "w c -> (t h w) c", t=t, h=h),
  ]
