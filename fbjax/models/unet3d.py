"""The video UNet of VideoCrafter and DynamiCrafter: text, image and frame stride to video.

A 2-D UNet over frames with three additions that see the whole clip: four temporal convolutions
in each ResBlock, a temporal transformer after each spatial one, and one more of these after the
input convolution. The channels of a conditioning image come concatenated to the noisy ones.

  x  b t h w c    text  b n d, seen by every frame    image  b t m d, m tokens for each frame

`dtype` is that of convolutions and products. The residual stream stays float32: in bfloat16 it
loses more precision than all of them together.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fbjax import errors, partition
from fbjax.models import layers
from fbjax.models import unet3d_transformers as transformers


class TemporalConv(nnx.Module):
  """Convolution over three frames, as one matrix product of the three side by side.

  Faster than conv3d, and on a CPU, by a fifth in the gradient, than three products; by a TPU
  compiler's estimate these two are alike.
  """

  def __init__(self, c: int, *, zero: bool = False, dtype: Any, rngs: layers.Keys):
    init = layers.inits(3 * c, zero, rngs)
    self.kernel = nnx.Param(init["kernel_init"](rngs.params(), (3, c, c)))
    self.bias = nnx.Param(init["bias_init"](rngs.params(), (c,)))
    self.dtype = dtype

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    t, c = x.shape[1], x.shape[-1]
    padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    near = [padded[:, i : i + t] for i in range(3)]
    kernel = self.kernel[...].astype(self.dtype)
    if partition.size("context", "tensor") > 1:  # Axes that are split apart do not become one.
      near = jnp.stack(near, -2)
      y = jnp.einsum("...ic,icd->...d", near, kernel, preferred_element_type=jnp.float32)
    else:
      near = jnp.concatenate(near, -1).reshape(-1, 3 * c)
      y = jnp.matmul(near, kernel.reshape(3 * c, c), preferred_element_type=jnp.float32)
      y = y.reshape(x.shape)
    return (y + layers.per_channel(self.bias[...], y)).astype(self.dtype)


class TemporalConvs(nnx.Module):
  """(GroupNorm over the clip, SiLU, dropout from the second on, TemporalConv) x 4, added to x."""

  def __init__(self, c: int, *, groups: int, dropout: float, dtype: Any, rngs: layers.Keys):
    self.norms = nnx.List([layers.GroupNorm(c, groups=groups) for _ in range(4)])
    self.convs = nnx.List([TemporalConv(c, zero=i == 3, dtype=dtype, rngs=rngs) for i in range(4)])
    self.dropout = dropout

  def __call__(
    self, x: Float[Array, "b t h w c"], keys: Sequence[Key[Array, " b"] | None]
  ) -> Float[Array, "b t h w c"]:
    x = h = partition.across_frames(x)
    for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
      h = nnx.silu(norm(h))
      if i:
        h = layers.dropout(h, self.dropout, keys[i - 1])
      h = conv(h)
    return partition.video(x + h)


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
    rngs: layers.Keys,
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
    keys: Key[Array, " b"] | None,
  ) -> Float[Array, "b t h w c_out"]:
    keys = layers.split(keys, 4)
    h = partition.per_frame(lambda x: self.in_conv(nnx.silu(self.in_norm(x))), x)
    h = h.astype(jnp.float32) + self.emb(nnx.silu(emb))[:, None, None, None]
    h = nnx.silu(partition.per_frame(self.out_norm, h))
    h = layers.dropout(h, self.dropout, keys[0])
    skip = x if self.skip is None else partition.per_frame(self.skip, x).astype(jnp.float32)
    h = partition.per_frame(self.out_conv, h) + skip
    return h if self.temporal is None else self.temporal(h, keys[1:])


class Stage(nnx.Module):
  """What lies between two skip connections: up to a ResBlock, two transformers, a change of size."""

  def __init__(
    self,
    res: ResBlock | None = None,
    spatial: transformers.SpatialTransformer | None = None,
    temporal: transformers.TemporalTransformer | None = None,
    resample: layers.Downsample | layers.Upsample | None = None,
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
    keys: Key[Array, " b"] | None,
  ) -> Float[Array, "b t h2 w2 c2"]:
    x = x if self.res is None else self.res(x, emb, keys)
    x = x if self.spatial is None else self.spatial(x, text, image)
    x = x if self.temporal is None else self.temporal(x)
    return x if self.resample is None else partition.per_frame(self.resample, x)


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
    rngs: layers.Keys,
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

    def spatial(c: int) -> transformers.SpatialTransformer:
      return transformers.SpatialTransformer(
        c,
        context_dim,
        heads=heads(c),
        depth=depth,
        image=image_attention,
        groups=groups,
        **kwargs,
      )

    if beyond := [level for level in attention_levels if level >= len(mult)]:
      raise errors.UserError(
        f"attention_levels names level {beyond[0]}, and mult has {len(mult)}, from 0 up"
      )

    def temporal(c: int, heads: int) -> transformers.TemporalTransformer:
      return transformers.TemporalTransformer(
        c,
        heads=heads,
        head_dim=head_dim,
        depth=depth,
        positions=positions,
        causal=causal,
        groups=groups,
        **kwargs,
      )

    def stage(level: int, c_in: int, c_out: int, resample: layers.Upsample | None = None) -> Stage:
      if level not in attention_levels:
        return Stage(res(c_in, c_out), resample=resample)
      return Stage(res(c_in, c_out), spatial(c_out), temporal(c_out, heads(c_out)), resample)

    self.time = embedding(width, c_emb, rngs=rngs)
    self.stride = embedding(width, c_emb, zero=True, rngs=rngs) if stride_embedding else None
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
        self.down.append(Stage(resample=layers.Downsample(c, **kwargs)))
        skips.append(c)

    self.middle = nnx.List([Stage(res(c, c), spatial(c), temporal(c, heads(c))), Stage(res(c, c))])

    self.up = nnx.List([])
    for level, m in reversed(list(enumerate(mult))):
      for i in range(blocks + 1):
        last = level > 0 and i == blocks
        resample = layers.Upsample(m * width, **kwargs) if last else None
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
    keys: Key[Array, " b"] | None = None,
  ) -> Float[Array, "b t h w c_out"]:
    """The network's prediction in float32; keys, one a clip, turn dropout on."""
    self._check(x, image, stride)
    emb = self.time(time)
    if self.stride is not None:
      emb += self.stride(jnp.full_like(time, self.default_stride) if stride is None else stride)
    text = partition.clips(text.astype(self.dtype))
    image = None if image is None else image.astype(self.dtype)
    # Of the stages, each of which drops out by itself.
    own = iter(layers.split(keys, len(self.down) + len(self.middle) + len(self.up)))
    run = partition.blockwise(Stage.__call__, self.wrap)

    def call(stage: Stage, x: Array) -> Array:
      return run(stage, x, emb, text, image, next(own))

    h = partition.per_frame(partition.layer(self.in_conv), partition.video(x)).astype(jnp.float32)
    if self.in_attention is not None:
      h = partition.blockwise(transformers.TemporalTransformer.__call__)(self.in_attention, h)
    skips = [h]
    for stage in self.down:
      h = call(stage, h)
      skips.append(h)
    for stage in self.middle:
      h = call(stage, h)
    for stage in self.up:
      h = call(stage, jnp.concatenate([h, skips.pop()], -1))
    out = partition.layer(self.out_conv)
    return partition.per_frame(lambda h: out(nnx.silu(self.out_norm(h))), h)

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


def embedding(c: int, c_out: int, *, zero: bool = False, rngs: layers.Keys) -> layers.TimeEmbedding:
  """Embedding of the time or the frame stride; float32, because its error reaches every pixel."""
  up = layers.linear(c, c_out, dtype=jnp.float32, rngs=rngs)
  out = layers.linear(c_out, c_out, zero=zero, dtype=jnp.float32, rngs=rngs)
  return layers.TimeEmbedding(up, out)
