"""The video UNet of VideoCrafter and DynamiCrafter: text, image and frame stride to video.

A 2-D UNet over frames with three additions that see the whole clip: four temporal convolutions
in each ResBlock, a temporal transformer after each spatial one, and one more of these after the
input convolution. The channels of a conditioning image come concatenated to the noisy ones.

  x  b t h w c    text  b n d, seen by every frame    image  b t m d, m tokens for each frame

`dtype` is what convolutions and products take and give. The stream they add to stays float32:
in bfloat16 it loses more than all of them together.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fbjax import errors
from fbjax.models import layers


class TemporalConv(nnx.Module):
  """Convolution over three frames, as three matrix products: faster than conv3d on a CPU."""

  def __init__(self, c: int, *, zero: bool = False, dtype: Any, rngs: layers.Rngs):
    init = layers.inits(3 * c, zero)
    self.kernel = nnx.Param(init["kernel_init"](rngs.params(), (3, c, c)))
    self.bias = nnx.Param(init["bias_init"](rngs.params(), (c,)))
    self.dtype = dtype

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    t = x.shape[1]
    padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    kernel = self.kernel[...].astype(self.dtype)
    y = sum(product(padded[:, i : i + t], kernel[i]) for i in range(3))
    return (y + layers.per_channel(self.bias[...], y)).astype(self.dtype)


class TemporalConvs(nnx.Module):
  """(GroupNorm over the clip, SiLU, dropout from the second on, TemporalConv) x 4, added to x."""

  def __init__(self, c: int, *, groups: int, dropout: float, dtype: Any, rngs: layers.Rngs):
    self.norms = nnx.List([layers.GroupNorm(c, groups=groups) for _ in range(4)])
    self.convs = nnx.List([TemporalConv(c, zero=i == 3, dtype=dtype, rngs=rngs) for i in range(4)])
    self.dropout = dropout

  def __call__(
    self, x: Float[Array, "b t h w c"], key: Key[Array, ""] | None
  ) -> Float[Array, "b t h w c"]:
    h = x
    for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
      h = nnx.silu(norm(h))
      if i and key is not None:
        h = layers.dropout(h, self.dropout, jax.random.fold_in(key, i))
      h = conv(h)
    return x + h


class ResBlock(nnx.Module):
  """(GroupNorm, SiLU, Conv) twice with the embedding added in between, then temporal convs."""

  def __init__(
    self,
    c_in: int,
    c_out: int,
    c_emb: int,
    *,
    temporal: bool,
    groups: int,
    dropout: float,
    dtype: Any,
    rngs: layers.Rngs,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.in_norm = layers.GroupNorm(c_in, groups=groups)
    self.in_conv = layers.conv(c_in, c_out, 3, **kwargs)
    self.emb = layers.linear(c_emb, c_out, dtype=jnp.float32, rngs=rngs)
    self.out_norm = layers.GroupNorm(c_out, groups=groups)
    self.out_conv = layers.conv(c_out, c_out, 3, zero=True, **kwargs)
    self.skip = layers.conv(c_in, c_out, 1, **kwargs) if c_in != c_out else None
    convs = functools.partial(TemporalConvs, groups=groups, dropout=dropout, **kwargs)
    self.temporal = convs(c_out) if temporal else None
    self.dropout = dropout

  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    emb: Float[Array, "b e"],
    key: Key[Array, ""] | None,
  ) -> Float[Array, "b t h w c_out"]:
    h = self.in_conv(nnx.silu(per_frame(self.in_norm, x)))
    h = h.astype(jnp.float32) + self.emb(nnx.silu(emb))[:, None, None, None]
    h = nnx.silu(per_frame(self.out_norm, h))
    h = layers.dropout(h, self.dropout, key)
    h = self.out_conv(h) + (x if self.skip is None else self.skip(x).astype(jnp.float32))
    if self.temporal is None:
      return h
    return self.temporal(h, None if key is None else jax.random.fold_in(key, 0))


class SelfAttention(nnx.Module):
  """Attention of tokens to each other, optionally causal, optionally with relative positions.

  `positions` is the largest distance told apart. Its two tables are shared by the heads: the
  query meets one in the logits, and the weights gather the other into the output.
  """

  def __init__(
    self,
    c: int,
    *,
    heads: int,
    positions: int = 0,
    causal: bool = False,
    dtype: Any,
    rngs: layers.Rngs,
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
      y = layers.attention(q, k, v, bias=bias)
    else:
      y = relative_attention(q, k, v, self.key_table[...], self.value_table[...], bias)
    return self.out(layers.merge_heads(y))


class CrossAttention(nnx.Module):
  """Attention of one clip's tokens to its text, plus (tanh(alpha) + 1) that to each frame's image.

  Both share the query and the output projection.
  """

  def __init__(
    self, c: int, c_context: int, *, heads: int, image: bool, dtype: Any, rngs: layers.Rngs
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
    clips = q.reshape(text.shape[0], -1, q.shape[-1])
    y = layers.attention(heads(clips), heads(self.k(text)), heads(self.v(text)))
    y = y.reshape(*q.shape[:2], self.heads, -1)
    if image is not None:
      seen = layers.attention(heads(q), heads(self.image_k(image)), heads(self.image_v(image)))
      y = y + seen * (jnp.tanh(self.alpha[...]) + 1).astype(y.dtype)
    return self.out(layers.merge_heads(y))


class TransformerBlock(nnx.Module):
  """LayerNorm and attention, twice, then LayerNorm and GEGLU, each added to its input."""

  def __init__(
    self, c: int, attn1: nnx.Module, attn2: nnx.Module, *, dtype: Any, rngs: layers.Rngs
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
    rngs: layers.Rngs,
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
    tokens = einops.rearrange(per_frame(self.norm, x), "b t h w c -> (b t) (h w) c")
    tokens = self.proj_in(tokens).astype(jnp.float32)
    image = None if image is None else einops.rearrange(image, "b t m d -> (b t) m d")
    for block in self.blocks:
      tokens = block(tokens, text, image)
    return x + self.proj_out(tokens).reshape(x.shape)


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
    rngs: layers.Rngs,
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
    b, _, h, w, _ = x.shape
    tokens = einops.rearrange(self.norm(x), "b t h w c -> (b h w) t c")
    tokens = self.proj_in(tokens).astype(jnp.float32)
    for block in self.blocks:
      tokens = block(tokens)
    tokens = self.proj_out(tokens)
    return x + einops.rearrange(tokens, "(b h w) t c -> b t h w c", b=b, h=h, w=w)


class Upsample(nnx.Module):
  """Every pixel doubled in both directions, then a 3x3 convolution."""

  def __init__(self, c: int, *, dtype: Any, rngs: layers.Rngs):
    self.conv = layers.conv(c, c, 3, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c"]:
    return self.conv(einops.repeat(x, "b t h w c -> b t (h i) (w j) c", i=2, j=2)).astype(
      jnp.float32
    )


class Downsample(nnx.Module):
  """A 3x3 convolution with stride 2, padded by one on every side."""

  def __init__(self, c: int, *, dtype: Any, rngs: layers.Rngs):
    self.conv = layers.conv(c, c, 3, stride=2, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c"]:
    return self.conv(x).astype(jnp.float32)


class Stage(nnx.Module):
  """What lies between two skip connections: up to a ResBlock, two transformers, a change of size."""

  def __init__(
    self,
    res: ResBlock | None = None,
    spatial: SpatialTransformer | None = None,
    temporal: TemporalTransformer | None = None,
    resample: Downsample | Upsample | None = None,
  ):
    self.res = res
    self.spatial = spatial
    self.temporal = temporal
    self.resample = resample

  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    emb: Float[Array, "b e"],
    text: Float[Array, "b l d"],
    image: Float[Array, "b t m d"] | None,
    key: Key[Array, ""] | None,
  ) -> Float[Array, "b t h2 w2 c2"]:
    x = x if self.res is None else self.res(x, emb, key)
    x = x if self.spatial is None else self.spatial(x, text, image)
    x = x if self.temporal is None else self.temporal(x)
    return x if self.resample is None else self.resample(x)


class Embedding(nnx.Module):
  """Sinusoid, Linear, SiLU, Linear; in float32, for every pixel meets its error."""

  def __init__(self, c: int, c_out: int, *, zero: bool = False, rngs: layers.Rngs):
    self.up = layers.linear(c, c_out, dtype=jnp.float32, rngs=rngs)
    self.out = layers.linear(c_out, c_out, zero=zero, dtype=jnp.float32, rngs=rngs)
    self.c = c

  def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b e"]:
    return self.out(nnx.silu(self.up(layers.sinusoid(time, self.c))))


class UNet3D(nnx.Module):
  """Input convolution and temporal attention; stages down, two in the middle, stages up; head.

  Each stage up takes the output of its mirror image going down as additional channels.

  Args:
    c_in: channels of x, conditioning channels included.
    width: channels of the first level; `mult` multiplies it level by level.
    blocks: ResBlocks of a level going down; going up there is one more.
    attention_levels: levels with transformers; the middle always has them.
    depth: transformer blocks of a transformer.
    context_dim: channels of text and image tokens.
    image_attention: each frame attends to its image tokens beside the text.
    stride_embedding: the frame stride is embedded like the time and added to it.
    default_stride: the stride of a call that names none.
    temporal_conv: four convolutions along time in each ResBlock.
    init_attention: a temporal transformer with 8 heads after the input convolution.
    positions: largest distance of the relative positions in temporal attention; 0 for none.
    causal: frames attend to no later frame.
    wrap: makes of f(stage, *args) what is called instead, for example `jax.checkpoint`.
  """

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    width: int,
    mult: Sequence[int],
    blocks: int,
    attention_levels: Sequence[int],
    head_dim: int,
    context_dim: int,
    depth: int = 1,
    image_attention: bool = False,
    stride_embedding: bool = True,
    default_stride: int = 3,
    temporal_conv: bool = True,
    init_attention: bool = True,
    positions: int = 0,
    causal: bool = False,
    dropout: float = 0.1,
    groups: int = 32,
    dtype: Any = jnp.float32,
    wrap: Callable[[Callable], Callable] | None = None,
    rngs: layers.Rngs,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    c_emb = 4 * width

    def res(c_in: int, c_out: int) -> ResBlock:
      return ResBlock(
        c_in, c_out, c_emb, temporal=temporal_conv, groups=groups, dropout=dropout, **kwargs
      )

    def heads(c: int) -> int:
      if c % head_dim:
        raise errors.UserError(
          f"{c} channels do not divide into heads of {head_dim}; change head_dim"
        )
      return c // head_dim

    def spatial(c: int) -> SpatialTransformer:
      return SpatialTransformer(
        c,
        context_dim,
        heads=heads(c),
        depth=depth,
        image=image_attention,
        groups=groups,
        **kwargs,
      )

    def temporal(c: int, heads: int) -> TemporalTransformer:
      return TemporalTransformer(
        c,
        heads=heads,
        head_dim=head_dim,
        depth=depth,
        positions=positions,
        causal=causal,
        groups=groups,
        **kwargs,
      )

    def stage(level: int, c_in: int, c_out: int, resample: Upsample | None = None) -> Stage:
      if level not in attention_levels:
        return Stage(res(c_in, c_out), resample=resample)
      return Stage(res(c_in, c_out), spatial(c_out), temporal(c_out, heads(c_out)), resample)

    self.time = Embedding(width, c_emb, rngs=rngs)
    self.stride = Embedding(width, c_emb, zero=True, rngs=rngs) if stride_embedding else None
    self.in_conv = layers.conv(c_in, width, 3, **kwargs)
    self.in_attention = temporal(width, 8) if init_attention else None

    self.down = nnx.List([])
    c, skips = width, [width]
    for level, m in enumerate(mult):
      for _ in range(blocks):
        self.down.append(stage(level, c, m * width))
        c = m * width
        skips.append(c)
      if level < len(mult) - 1:
        self.down.append(Stage(resample=Downsample(c, **kwargs)))
        skips.append(c)

    self.middle = nnx.List([Stage(res(c, c), spatial(c), temporal(c, heads(c))), Stage(res(c, c))])

    self.up = nnx.List([])
    for level, m in reversed(list(enumerate(mult))):
      for i in range(blocks + 1):
        last = level > 0 and i == blocks
        resample = Upsample(m * width, **kwargs) if last else None
        self.up.append(stage(level, c + skips.pop(), m * width, resample))
        c = m * width

    self.out_norm = layers.GroupNorm(c, groups=groups)
    self.out_conv = layers.conv(c, c_out, 3, zero=True, dtype=jnp.float32, rngs=rngs)
    self.levels = len(mult)
    self.image_attention = image_attention
    self.default_stride = default_stride
    self.dtype = dtype
    self.wrap = wrap

  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    time: Float[Array, " b"],
    text: Float[Array, "b n d"],
    image: Float[Array, "b t m d"] | None = None,
    stride: Float[Array, " b"] | None = None,
    key: Key[Array, ""] | None = None,
  ) -> Float[Array, "b t h w c_out"]:
    """The network's prediction in float32; a key turns dropout on."""
    self._check(x, image, stride)
    emb = self.time(time)
    if self.stride is not None:
      emb += self.stride(jnp.full_like(time, self.default_stride) if stride is None else stride)
    text = text.astype(self.dtype)
    image = None if image is None else image.astype(self.dtype)
    keys = None if key is None else layers.Keys(key)
    run = Stage.__call__ if self.wrap is None else self.wrap(Stage.__call__)

    def call(stage: Stage, x: Array) -> Array:
      return run(stage, x, emb, text, image, None if keys is None else keys())

    h = self.in_conv(x).astype(jnp.float32)
    if self.in_attention is not None:
      h = self.in_attention(h)
    skips = [h]
    for stage in self.down:
      h = call(stage, h)
      skips.append(h)
    for stage in self.middle:
      h = call(stage, h)
    for stage in self.up:
      h = call(stage, jnp.concatenate([h, skips.pop()], -1))
    return self.out_conv(nnx.silu(per_frame(self.out_norm, h)))

  def _check(self, x: Array, image: Array | None, stride: Array | None) -> None:
    factor = 2 ** (self.levels - 1)
    h, w = x.shape[2:4]
    if h % factor or w % factor:
      raise errors.UserError(f"the UNet's input is {h} x {w}: both must divide by {factor}")
    if self.image_attention != (image is not None):
      has, fix = ("attends to", "pass") if self.image_attention else ("knows no", "leave out")
      raise errors.UserError(f"this UNet {has} image tokens: {fix} `image`")
    if stride is not None and self.stride is None:
      raise errors.UserError("this UNet has no stride embedding: leave out `stride`")


def per_frame(norm: layers.GroupNorm, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
  return norm(x.reshape(-1, *x.shape[2:])).reshape(x.shape)


def relative_attention(
  q: Float[Array, "b n k d"],
  k: Float[Array, "b n k d"],
  v: Float[Array, "b n k d"],
  key_table: Float[Array, "p d"],
  value_table: Float[Array, "p d"],
  bias: Float[Array, "1 1 n n"] | None,
) -> Float[Array, "b n k d"]:
  """Attention along time in which query and output also meet a vector for the distance j - i."""
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
