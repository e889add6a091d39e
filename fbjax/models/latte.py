"""Latte: a transformer over the patches of all frames, within frames and across them in turn.

  patches, + places -> (spatial block, temporal block) x depth / 2 -> head -> pixels of the patches

  x       b t h w c
  frame   b h w c, the conditioning image: one more frame in front of x, dropped from the output
  coarse  b t h w c, a guess at the video: more channels of x, and those of `frame` are `frame`

Time, class and text become one vector that gives every block its shifts, scales and gates. Gates start
at zero, so a new network is the identity up to its head, and the head starts at zero.
`NeuralPrior` is the same network without time: one image in every frame -> a coarse video.

`dtype` is that of matrix products. The residual stream, its norms and their modulation (shifts,
scales, gates) are float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fbjax import errors, partition
from fbjax.models import attention, layers

TIME_CHANNELS = 256

normal = functools.partial(layers.Linear, kernel_init=nnx.initializers.normal(0.02))
xavier = functools.partial(layers.Linear, kernel_init=nnx.initializers.xavier_uniform())
zero = functools.partial(layers.Linear, kernel_init=nnx.initializers.zeros)
labels = functools.partial(nnx.Embed, embedding_init=nnx.initializers.normal(0.02))


class Positions(nnx.Module):
  """Sin-cos tables of places and frames, added to the tokens.

  They are kept with the weights, because a network that was fine-tuned with one more frame than it
  was trained with has a table of its own, but no gradient reaches them and weight decay must leave
  them alone. Past its end a table is extrapolated at its frequencies.
  """

  def __init__(self, side: int, frames: int, c: int):
    self.space = nnx.Param(jnp.asarray(place_table(side, c)))
    self.time = nnx.Param(jnp.asarray(line_table(frames, c)))

  def of_places(self, rows: int, columns: int) -> Float[Array, "n c"]:
    table = self.space[...]
    if max(rows, columns) > len(table):
      of_column, of_row = jnp.split(table, 2, axis=-1)
      table = on_grid(lengthened(of_row[:, 0], rows), lengthened(of_column[0], columns))
    table = table[:rows, :columns]
    return jax.lax.stop_gradient(table.reshape(rows * columns, -1))

  def of_frames(self, t: int) -> Float[Array, "t c"]:
    return jax.lax.stop_gradient(lengthened(self.time[...], t)[:t])


def frequencies(c: int) -> Float[np.ndarray, " f"]:
  """The c/2 frequencies of sinusoidal positions, from 1 down to almost 1/10000."""
  return 10_000.0 ** (-np.arange(c // 2) / (c // 2))


def line_table(n: int, c: int) -> Float[np.ndarray, "n c"]:
  """[sin, cos] of 0, 1, ..., n - 1 at all frequencies."""
  angle = np.outer(np.arange(n), frequencies(c))
  return np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32)


def place_table(side: int, c: int) -> Float[np.ndarray, "side side c"]:
  """Sin-cos positions of a square grid: half of the channels by column, then half by row."""
  if c % 4:
    raise errors.UserError(f"a width of {c} does not divide by 4, which the sin-cos positions need")
  line = line_table(side, c // 2)
  return on_grid(line, line)


def on_grid(
  rows: Float[Array | np.ndarray, "h c"], columns: Float[Array | np.ndarray, "w c"]
) -> Float[Array | np.ndarray, "h w c2"]:
  """The table of places from those of rows and of columns."""
  xp, shape = rows.__array_namespace__(), (len(rows), len(columns), rows.shape[1])
  return xp.concat([xp.broadcast_to(x, shape) for x in (columns[None], rows[:, None])], axis=-1)


def lengthened(table: Float[Array, "n c"], n: int) -> Float[Array, "m c"]:
  """Extends a [sin, cos] table to at least n rows, by rotating its last row one step for each.

  The table need not begin at position 0.
  """
  steps = np.outer(np.arange(1, n - len(table) + 1), frequencies(table.shape[1]))
  sin, cos = jnp.split(table[-1:], 2, axis=1)
  turn_sin, turn_cos = (jnp.asarray(f(steps), jnp.float32) for f in (np.sin, np.cos))
  more = [sin * turn_cos + cos * turn_sin, cos * turn_cos - sin * turn_sin]
  return jnp.concatenate([table, jnp.concatenate(more, 1)])


def time_embedding(c: int, rngs: layers.Keys) -> layers.TimeEmbedding:
  up = normal(TIME_CHANNELS, c, rngs=rngs)
  return layers.TimeEmbedding(up, normal(c, c, rngs=rngs))


def modulate(
  x: Float[Array, "b n m c"], shift: Float[Array, "b 1 1 c"], scale: Float[Array, "b 1 1 c"]
) -> Float[Array, "b n m c"]:
  """LayerNorm without parameters of its own: shift and scale are given."""
  centred = x - x.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + 1e-6) * (1 + scale) + shift


class Block(nnx.Module):
  """x + gate attention(norm(x)), then x + gate mlp(norm(x)); attention is along the third axis."""

  def __init__(self, c: int, *, heads: int, mult: int, dtype: Any, rngs: layers.Keys):
    linear = functools.partial(xavier, dtype=dtype, rngs=rngs)
    # Shift, scale and gate of the attention, then those of the MLP.
    self.modulation = zero(c, 6 * c, rngs=rngs)
    self.qkv = linear(c, 3 * c)
    self.out = linear(c, c)
    self.mlp_up = linear(c, mult * c)
    self.mlp_down = linear(mult * c, c)
    self.heads = heads

  def __call__(
    self, x: Float[Array, "b n m c"], emb: Float[Array, "b c"], *, along_time: bool
  ) -> Float[Array, "b n m c"]:
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(
      self.modulation(emb)[:, None, None], 6, axis=-1
    )
    x = x + gate * self._attend(modulate(x, shift, scale), along_time)
    h = self.mlp_up(modulate(x, mlp_shift, mlp_scale)).astype(jnp.float32)
    return x + mlp_gate * self.mlp_down(nnx.gelu(h, approximate=True))

  def _attend(self, x: Float[Array, "b n m c"], along_time: bool) -> Float[Array, "b n m c"]:
    q, k, v = (
      layers.split_heads(
        partition.merged(y) if along_time else y.reshape(-1, *y.shape[2:]), self.heads
      )
      for y in partition.parts(self.qkv, x, 3)
    )
    # In time each place is a sequence; within a frame, places are shared: each asks all of them.
    spread = partition.OF_FRAMES if along_time else partition.OF_CLIPS
    y = layers.merge_heads(attention.attention(q, k, v, spread=spread))
    return self.out(partition.parted(y, len(x)) if along_time else y.reshape(x.shape))


class Pair(nnx.Module):
  """A block within each frame, then a block along time at each place."""

  def __init__(self, c: int, *, heads: int, mult: int, dtype: Any, rngs: layers.Keys):
    kwargs = {"heads": heads, "mult": mult, "dtype": dtype, "rngs": rngs}
    self.spatial = Block(c, **kwargs)
    self.temporal = Block(c, **kwargs)

  def __call__(
    self,
    x: Float[Array, "b t n c"],
    emb: Float[Array, "b c"],
    frames: Float[Array, "t c"],
  ) -> Float[Array, "b t n c"]:
    """`frames` is added in between."""
    x = self.spatial(x, emb, along_time=False) + frames[None, :, None]
    return self.temporal(x.swapaxes(1, 2), emb, along_time=True).swapaxes(1, 2)


class Head(nnx.Module):
  """Norm with shift and scale, Linear: all values of a patch from its token."""

  def __init__(self, c: int, c_out: int, *, rngs: layers.Keys):
    self.modulation = zero(c, 2 * c, rngs=rngs)
    self.out = zero(c, c_out, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b t n c"], emb: Float[Array, "b c"]
  ) -> Float[Array, "b t n c_out"]:
    shift, scale = jnp.split(self.modulation(emb)[:, None, None], 2, axis=-1)
    return self.out(modulate(x, shift, scale))


class Latte(nnx.Module):
  """Patches, pairs of blocks, head; pairs are equal, so one is compiled and scanned over.

  Args:
    c_in: channels of x and of `coarse` together.
    size: height or width of x, the larger one, that it is trained at.
    frames: number of frames that it is trained at, with that of `frame`.
    width: channels of a token.
    depth: number of blocks, spatial and temporal together.
    patch: height and width of a patch.
    classes: number of classes; label `classes` is the null class. None for a network without.
    text: channels of a vector that stands for the text. None for a network without.
    timed: whether the network is told the time.
    mult: width of the MLP, in widths.
    wrap: makes of f(pair, *args) what is called instead, for example `jax.checkpoint`.
  """

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    size: int,
    frames: int,
    width: int,
    depth: int,
    heads: int,
    patch: int = 2,
    classes: int | None = None,
    text: int | None = None,
    timed: bool = True,
    mult: int = 4,
    dtype: Any = jnp.float32,
    wrap: Callable[[Callable], Callable] | None = None,
    rngs: layers.Keys,
  ):
    wholes = (("width", width, "heads", heads), ("size", size, "patch", patch))
    for name, n, by, parts in wholes:
      if n % parts:
        raise errors.UserError(f"a Latte's {name}, {n}, must divide by its {by}, {parts}")
    if depth % 2:
      raise errors.UserError(f"a Latte's depth, {depth}, must be even: its blocks come in pairs")

    def pair(key: Array) -> Pair:
      return Pair(width, heads=heads, mult=mult, dtype=dtype, rngs=layers.Keys(key))

    self.patches = xavier(patch * patch * c_in, width, dtype=dtype, rngs=rngs)
    self.positions = Positions(size // patch, frames, width)
    self.time = time_embedding(width, rngs) if timed else None
    self.label = None if classes is None else labels(classes + 1, width, rngs=rngs)
    self.text = None if text is None else xavier(text, width, rngs=rngs)
    self.pairs = jax.vmap(pair)(jax.random.split(rngs.params(), depth // 2))
    self.head = Head(width, patch * patch * c_out, rngs=rngs)
    self.c_in = c_in
    self.count = depth // 2
    self.patch = patch
    self.wrap = wrap

  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    time: Float[Array, " b"] | None,
    label: Int[Array, " b"] | None = None,
    frame: Float[Array, "b h w c"] | None = None,
    coarse: Float[Array, "b t h w c2"] | None = None,
    text: Float[Array, "b d"] | None = None,
  ) -> Float[Array, "b t h w c_out"]:
    """The network's prediction for the frames of x in float32."""
    emb = nnx.silu(self._embed(x.shape[0], time=time, label=label, text=text))
    x = self._condition(x, frame, coarse)
    t, (rows, columns) = x.shape[1], (n // self.patch for n in x.shape[2:4])
    split = {"i": self.patch, "j": self.patch, "h": rows, "w": columns}

    x = partition.places(einops.rearrange(x, "b t (h i) (w j) c -> b t (h w) (i j c)", **split))
    x = (
      partition.layer(self.patches)(x).astype(jnp.float32)
      + self.positions.of_places(rows, columns)[None, None]
    )
    frames = self.positions.of_frames(t)
    run = partition.blockwise(Pair.__call__, self.wrap, split=partition.places)

    def step(x: Array, xs: tuple[Pair, Array]) -> tuple[Array, None]:
      pair, first = xs
      return run(pair, x, emb, frames * first), None  # only the first pair meets the positions

    first = (jnp.arange(self.count) == 0).astype(jnp.float32)
    x, _ = jax.lax.scan(step, x, (self.pairs, first))
    x = partition.layer(self.head)(x if frame is None else x[:, 1:], emb)
    return einops.rearrange(x, "b t (h w) (i j c) -> b t (h i) (w j) c", **split)

  def _condition(self, x: Array, frame: Array | None, coarse: Array | None) -> Array:
    """x with the image in front along time, and with the coarse video behind along channels."""
    if frame is not None:
      x = jnp.concatenate([frame[:, None], x], 1)
      coarse = None if coarse is None else jnp.concatenate([frame[:, None], coarse], 1)
    x = x if coarse is None else jnp.concatenate([x, coarse], -1)
    h, w, c = x.shape[2:]
    if c != self.c_in:
      raise errors.UserError(
        f"this Latte takes {self.c_in} channels, x and `coarse` together have {c}"
      )
    if h % self.patch or w % self.patch:
      raise errors.UserError(
        f"Latte's input is {h} x {w}: both must divide by the patch of {self.patch}"
      )
    return x

  def _embed(self, b: int, **told: Array | None) -> Float[Array, "b c"]:
    emb = jnp.zeros((b, self.positions.time.shape[1]))
    for name, given in told.items():
      embedding = getattr(self, name)
      if (embedding is None) != (given is None):
        has, fix = ("knows no", "leave out") if embedding is None else ("needs a", "pass")
        raise errors.UserError(f"this Latte {has} {name}: {fix} `{name}`")
      emb += 0 if embedding is None else embedding(given)
    return emb


class NeuralPrior(nnx.Module):
  """A Latte without time that makes a coarse video of one image; its arguments are those of `Latte`.

  All frames start as the image. Only their positions in time tell them apart.
  """

  def __init__(
    self,
    c_in: int,
    c_out: int,
    *,
    size: int,
    frames: int,
    width: int,
    depth: int,
    heads: int,
    patch: int = 2,
    classes: int | None = None,
    text: int | None = None,
    mult: int = 4,
    dtype: Any = jnp.float32,
    wrap: Callable[[Callable], Callable] | None = None,
    rngs: layers.Keys,
  ):
    self.latte = Latte(
      c_in,
      c_out,
      size=size,
      frames=frames,
      width=width,
      depth=depth,
      heads=heads,
      patch=patch,
      classes=classes,
      text=text,
      timed=False,
      mult=mult,
      dtype=dtype,
      wrap=wrap,
      rngs=rngs,
    )
    self.frames = frames

  def __call__(
    self,
    frame: Float[Array, "b h w c"],
    label: Int[Array, " b"] | None = None,
    frames: int | None = None,
    text: Float[Array, "b d"] | None = None,
  ) -> Float[Array, "b t h w c_out"]:
    """The coarse video in float32, of as many frames as it is trained at unless told otherwise."""
    x = einops.repeat(frame, "b h w c -> b t h w c", t=frames or self.frames)
    return self.latte(x, None, label, text=text)
