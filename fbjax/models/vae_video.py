"""The causal video autoencoder of CogVideoX (arXiv:2408.06072).

  encode: [-1, 1] -> mean and log variance of a latent, 8 times smaller each way, 4 times in time
  decode: latent -> about [-1, 1], unclipped

The first frame has a latent of its own, so 4k + 1 frames have k + 1 latents. Both ways go through
time in chunks, and each convolution hands its last two input frames on to the next chunk, so what
a chunk needs does not grow with the video. GroupNorm has the statistics of one chunk: chunks are
part of the function that was trained, and only between them is it causal. Tiles change the result
as well.

Latents are those of the network, unscaled. Diffusion models see them multiplied by 1.15258426.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fbjax import errors, partition
from fbjax.models import layers, vae_image

CHUNK_FRAMES = 8
CHUNK_LATENTS = 2
SQUEEZED_LEVELS = 2  # how many of the resamplings halve or double time as well
OVERLAP = (1 / 6, 1 / 5)  # of a tile with the next, in height and width


class Past:
  """Cache of the last two input frames of every causal convolution, in the order of their calls.

  `frames` is the `after` of the chunk before; None for the first chunk, which is padded with its
  first frame.
  """

  def __init__(self, frames: Sequence[Float[Array, "b 2 h w c"]] | None = None):
    self.before = None if frames is None else iter(frames)
    self.after: list[Array] = []

  def extend(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h w c"]:
    """Prepends the two frames before x, and caches its last two."""
    before = jnp.repeat(x[:, :1], 2, axis=1) if self.before is None else next(self.before)
    x = jnp.concatenate([before, x], 1)
    self.after.append(x[:, -2:])
    return x


class CausalConv(nnx.Module):
  """A 3x3x3 convolution whose outputs depend on their own frame and the two before."""

  def __init__(self, c_in: int, c_out: int, *, dtype: Any, rngs: layers.Keys):
    # One conv3d needs no memory beside its output; three shifted conv2d are 1.3 times faster on a
    # CPU and hold up to three outputs.
    self.conv = nnx.Conv(
      c_in,
      c_out,
      (3, 3, 3),
      padding=((0, 0), (1, 1), (1, 1)),
      **layers.inits(27 * c_in, False, rngs),
      dtype=dtype,
      rngs=rngs,
    )
    self.dtype = dtype

  def __call__(self, x: Float[Array, "b t h w c"], past: Past) -> Float[Array, "b t h w c_out"]:
    return self.conv(past.extend(x.astype(self.dtype))).astype(jnp.float32)


class Norm(nnx.Module):
  """GroupNorm; in the decoder the latent, spread over its pixels, scales and shifts the result."""

  def __init__(self, c: int, c_latent: int | None, *, groups: int, rngs: layers.Keys):
    kwargs = {"dtype": jnp.float32, "rngs": rngs}
    self.norm = layers.GroupNorm(c, groups=groups, epsilon=1e-6)
    self.scale = layers.linear(c_latent, c, **kwargs) if c_latent else None
    self.shift = layers.linear(c_latent, c, **kwargs) if c_latent else None

  def __call__(
    self, x: Float[Array, "b t h w c"], z: Float[Array, "b tz hz wz cz"] | None
  ) -> Float[Array, "b t h w c"]:
    y = self.norm(x)
    if z is None:
      return y
    return y * _spread(self.scale(z), x.shape) + _spread(self.shift(z), x.shape)


class ResBlock(nnx.Module):
  """(Norm, SiLU, CausalConv) twice, added to the input."""

  def __init__(
    self,
    c_in: int,
    c_out: int,
    c_latent: int | None,
    *,
    groups: int,
    dtype: Any,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.norm1 = Norm(c_in, c_latent, groups=groups, rngs=rngs)
    self.conv1 = CausalConv(c_in, c_out, **kwargs)
    self.norm2 = Norm(c_out, c_latent, groups=groups, rngs=rngs)
    self.conv2 = CausalConv(c_out, c_out, **kwargs)
    self.skip = layers.linear(c_in, c_out, **kwargs) if c_in != c_out else None

  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    z: Float[Array, "b tz hz wz cz"] | None,
    past: Past,
  ) -> Float[Array, "b t h w c_out"]:
    h = self.conv1(nnx.silu(self.norm1(x, z)), past)
    h = self.conv2(nnx.silu(self.norm2(h, z)), past)
    return h + (x if self.skip is None else self.skip(x).astype(jnp.float32))


class Downsample(layers.Downsample):
  """Pairs of frames averaged if `time`; then every frame halved, padded right and below."""

  def __init__(self, c: int, *, time: bool, dtype: Any, rngs: layers.Keys):
    super().__init__(c, padding=layers.END_PADDING, dtype=dtype, rngs=rngs)
    self.time = time

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c"]:
    if self.time:
      x = _but_first(lambda x: einops.reduce(x, "b (t i) h w c -> b t h w c", "mean", i=2), x)
    return super().__call__(x)


class Upsample(layers.Upsample):
  """Every frame doubled if `time`, then in height and width."""

  def __init__(self, c: int, *, time: bool, dtype: Any, rngs: layers.Keys):
    super().__init__(c, dtype=dtype, rngs=rngs)
    self.time = time

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c"]:
    if self.time:
      x = _but_first(lambda x: jnp.repeat(x, 2, axis=1), x.astype(self.conv.dtype))
    return super().__call__(x)


class Encoder(nnx.Module):
  """CausalConv, levels down, two ResBlocks in the middle, Norm, SiLU, CausalConv."""

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    widths: Sequence[int],
    blocks: int,
    groups: int,
    dtype: Any,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    c, last = widths[0], len(widths) - 1
    self.in_conv = CausalConv(c_in, c, **kwargs)
    self.levels = nnx.List([])
    for level, width in enumerate(widths):
      row = []
      for _ in range(blocks):
        row.append(ResBlock(c, width, None, groups=groups, **kwargs))
        c = width
      down = Downsample(c, time=level < SQUEEZED_LEVELS, **kwargs) if level < last else None
      self.levels.append(layers.Level(row, down))
    self.middle = layers.Level(
      [ResBlock(c, c, None, groups=groups, **kwargs) for _ in range(2)], None
    )
    self.out_norm = Norm(c, None, groups=groups, rngs=rngs)
    self.out_conv = CausalConv(c, c_out, dtype=jnp.float32, rngs=rngs)

  def __call__(self, x: Float[Array, "b t h w c"], past: Past) -> Float[Array, "b tz hz wz c2"]:
    h = self.in_conv(x, past)
    for level in (*self.levels, self.middle):
      h = level(h, None, past)
    return self.out_conv(nnx.silu(self.out_norm(h, None)), past)


class Decoder(nnx.Module):
  """CausalConv, two ResBlocks in the middle, levels up, Norm, SiLU, CausalConv.

  A level has one ResBlock more than going down. Every norm is conditioned on the latent.
  """

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    widths: Sequence[int],
    blocks: int,
    groups: int,
    dtype: Any,
    rngs: layers.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    c, last = widths[-1], len(widths) - 1
    self.in_conv = CausalConv(c_in, c, **kwargs)
    self.middle = layers.Level(
      [ResBlock(c, c, c_in, groups=groups, **kwargs) for _ in range(2)], None
    )
    self.levels = nnx.List([])
    for level, width in enumerate(reversed(widths)):
      row = []
      for _ in range(blocks + 1):
        row.append(ResBlock(c, width, c_in, groups=groups, **kwargs))
        c = width
      up = Upsample(c, time=level < SQUEEZED_LEVELS, **kwargs) if level < last else None
      self.levels.append(layers.Level(row, up))
    self.out_norm = Norm(c, c_in, groups=groups, rngs=rngs)
    self.out_conv = CausalConv(c, c_out, dtype=jnp.float32, rngs=rngs)

  def __call__(self, z: Float[Array, "b tz hz wz c"], past: Past) -> Float[Array, "b t h w c2"]:
    h = self.in_conv(z, past)
    for level in (self.middle, *self.levels):
      h = level(h, z, past)
    return self.out_conv(nnx.silu(self.out_norm(h, z)), past)


class CausalAutoencoder(nnx.Module):
  """Encoder to a Gaussian, decoder from a sample of it.

  Args:
    c_in: channels of the video.
    c_latent: channels of the latent.
    widths: channels level by level, the finest first; at least three levels.
    blocks: ResBlocks of a level going down.
    tile: height and width in pixels of what is coded at once if `tiled`.
  """

  def __init__(
    self,
    c_in: int,
    c_latent: int,
    *,
    widths: Sequence[int],
    blocks: int,
    groups: int = 32,
    tile: tuple[int, int] = (240, 360),
    dtype: Any = jnp.float32,
    rngs: layers.Keys,
  ):
    if len(widths) <= SQUEEZED_LEVELS:
      raise errors.UserError(
        f"widths {tuple(widths)} must have at least {SQUEEZED_LEVELS + 1} levels"
      )
    sizes = {"widths": widths, "blocks": blocks, "groups": groups}
    self.encoder = Encoder(c_in, 2 * c_latent, **sizes, dtype=dtype, rngs=rngs)
    self.decoder = Decoder(c_latent, c_in, **sizes, dtype=dtype, rngs=rngs)
    self.factor = 2 ** (len(widths) - 1)
    self.tile = tuple(tile)
    self.latent_tile = tuple(side // self.factor for side in tile)

  def encode(
    self, video: Float[Array, "b t h w c"], *, chunked: bool = True, tiled: bool = False
  ) -> vae_image.Gaussian:
    """Distribution of the latent; 8 frames at a time, the first chunk with what is left over.

    With `chunked=False` all frames are one chunk. With `tiled`, frames larger than `tile` are
    encoded in overlapping tiles, which changes the result.
    """
    h, w = video.shape[2:4]
    if h % self.factor or w % self.factor:
      raise errors.UserError(
        f"the autoencoder's input is {h} x {w}: both must divide by {self.factor}"
      )

    encoder = partition.whole(self.encoder)  # once, for all chunks and tiles
    video = partition.apart(video)

    def whole(video: Array) -> Array:
      return _by_chunks(encoder, video, CHUNK_FRAMES if chunked else video.shape[1])

    moments = _by_tiles(whole, video, self.tile, self.latent_tile) if tiled else whole(video)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return vae_image.Gaussian(mean, jnp.clip(logvar, -30, 20))

  def decode(
    self, z: Float[Array, "b tz hz wz c"], *, chunked: bool = True, tiled: bool = False
  ) -> Float[Array, "b t h w c2"]:
    """The video of a latent; 2 latents at a time, in the first chunk 3 if their number is odd.

    An odd number k + 1 gives 4k + 1 frames. An even one gives four frames for each latent, the
    first too, as published: the network takes a chunk for a beginning by its odd length.
    """

    decoder = partition.whole(self.decoder)
    z = partition.apart(z)

    def whole(z: Array) -> Array:
      return _by_chunks(decoder, z, CHUNK_LATENTS if chunked else z.shape[1])

    return _by_tiles(whole, z, self.latent_tile, self.tile) if tiled else whole(z)


def check_tile(tile: Sequence[int], factor: int) -> None:
  """Raises a UserError unless tile strides and kept outputs match, `factor` pixels to a latent."""
  tile = tuple(tile)
  latent = tuple(side // factor for side in tile)
  to_latents, to_pixels = _axes(tile, latent), _axes(latent, tile)
  fits = all(
    pixels.step == factor * pixels.keep and latents.keep == factor * latents.step
    for pixels, latents in zip(to_latents, to_pixels, strict=True)
  )
  if not fits or min(latent) < 1:
    parts = [round(1 / overlap) * factor for overlap in OVERLAP]
    raise errors.UserError(
      f"config.system.codec.tile is {'x'.join(map(str, tile))} pixels; its height must be a multiple "
      f"of {parts[0]} and its width of {parts[1]}, so that overlapping tiles meet between latents"
    )


def _but_first(f: Callable[[Array], Array], x: Float[Array, "b t h w c"]) -> Array:
  """f over time; of an odd number of frames the first stays as it is."""
  if x.shape[1] % 2 == 0:
    return f(x)
  return jnp.concatenate([x[:, :1], f(x[:, 1:])], 1) if x.shape[1] > 1 else x


def _spread(v: Float[Array, "b tz hz wz c"], shape: tuple[int, ...]) -> Float[Array, "b t h w c"]:
  """Each value repeated over its pixels and frames; the first of an odd number has one frame."""
  (t, h, w), (tz, hz, wz) = shape[1:4], v.shape[1:4]
  first = tz % 2
  # Time first, while the arrays are small: it concatenates, which would keep all pixels in memory.
  v = _but_first(lambda v: jnp.repeat(v, (t - first) // (tz - first), axis=1), v)
  return einops.repeat(v, "b t h w c -> b t (h i) (w j) c", i=h // hz, j=w // wz)


def _by_chunks(
  network: Callable[[Array, Past], Array], x: Float[Array, "b t h w c"], size: int
) -> Float[Array, "b t2 h2 w2 c2"]:
  """A chunk with the remainder of t over `size`, then a loop over the others."""
  count = max(x.shape[1] // size, 1) - 1
  first = x.shape[1] - count * size
  past = Past()
  y = network(x[:, :first], past)
  if not count:
    return y

  def step(frames: tuple[Array, ...], start: Array) -> tuple[tuple[Array, ...], Array]:
    past = Past(frames)
    y = network(jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), past)
    return tuple(past.after), y

  starts = first + size * jnp.arange(count)
  _, rest = jax.lax.scan(step, tuple(past.after), starts)
  return jnp.concatenate([y, einops.rearrange(rest, "n b t h w c -> b (n t) h w c")], 1)


class _Axis(NamedTuple):
  """How one side is cut: tiles of `size` every `step`, of whose output `keep` stays.

  The first `blend` of an output fade in over the last of the one before.
  """

  size: int
  step: int
  blend: int
  keep: int


def _axes(tile: tuple[int, ...], out_tile: tuple[int, ...]) -> list[_Axis]:
  axes = []
  for size, out, overlap in zip(tile, out_tile, OVERLAP, strict=True):
    blend = int(out * overlap)
    axes.append(_Axis(size, int(size * (1 - overlap)), blend, out - blend))
  return axes


def _by_tiles(
  f: Callable[[Array], Array],
  x: Float[Array, "b t h w c"],
  tile: tuple[int, ...],
  out_tile: tuple[int, ...],
) -> Float[Array, "b t2 h2 w2 c2"]:
  """f of overlapping tiles, blended; f of x itself where that is no larger than a tile."""
  b, t, height, width, c = x.shape
  if height <= tile[0] and width <= tile[1]:
    return f(x)
  down, across = _axes(tile, out_tile)
  # Tiles of equal shape take turns in one loop: compiled once, and one at a time in memory.
  groups = collections.defaultdict(list)
  for i, top in enumerate(range(0, height, down.step)):
    for j, left in enumerate(range(0, width, across.step)):
      shape = min(down.size, height - top), min(across.size, width - left)
      groups[shape].append((i, j, top, left))
  tiles = {}
  for (h, w), places in groups.items():
    corners = jnp.asarray([place[2:] for place in places])
    ys = jax.lax.map(
      lambda at, h=h, w=w: f(jax.lax.dynamic_slice(x, (0, 0, at[0], at[1], 0), (b, t, h, w, c))),
      corners,
    )
    tiles |= {place[:2]: y for place, y in zip(places, ys, strict=True)}

  rows = []
  for i in range(1 + max(i for i, _ in tiles)):
    row = []
    for j in range(1 + max(j for _, j in tiles)):
      # Neighbours are taken as blended already, which matters where four tiles meet.
      if i:
        tiles[i, j] = _blend(tiles[i - 1, j], tiles[i, j], down.blend, axis=2)
      if j:
        tiles[i, j] = _blend(tiles[i, j - 1], tiles[i, j], across.blend, axis=3)
      row.append(tiles[i, j][:, :, : down.keep, : across.keep])
    rows.append(jnp.concatenate(row, 3))
  return jnp.concatenate(rows, 2)


def _blend(
  before: Float[Array, "b t h1 w1 c"], after: Float[Array, "b t h2 w2 c"], extent: int, axis: int
) -> Float[Array, "b t h2 w2 c"]:
  """`after`, whose beginning fades in over the end of `before`."""
  length, extent = before.shape[axis], min(before.shape[axis], after.shape[axis], extent)
  shape = [extent if i == axis else 1 for i in range(after.ndim)]
  weight = jnp.asarray(np.arange(extent) / extent, jnp.float32).reshape(shape)
  end = jax.lax.slice_in_dim(before, length - extent, length, axis=axis)
  start, rest = jnp.split(after, [extent], axis=axis)
  return jnp.concatenate([end * (1 - weight) + start * weight, rest], axis)
