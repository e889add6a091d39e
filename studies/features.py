"""The networks through which the studies compare clips, as no weights of I3D may be passed on.

A small one that was trained here to name what happens in a moving shapes' clip, and a random I3D beside
it: a ranking that both agree on does not hang on what either was made for.
`studies.train_features` has made it.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fbjax import trees
from fbjax.data import synthetic
from fbjax.evaluation import resizing
from fbjax.models import i3d, layers
from fbjax.systems import networks

FILE = pathlib.Path(__file__).parent / "features.npz"
SIDE, FRAMES = (
  32,
  8,
)  # of what the trained network sees; of a random I3D twice the side and the frames
PATCH, WIDTH = 8, 96
PLACES = (SIDE // PATCH) ** 2
BATCH = 64
HEADS = {
  "motion": tuple(synthetic.MOTIONS),
  "speed": tuple(synthetic.SPEEDS),
  "shape": tuple(synthetic.SHAPES),
  "colour": tuple(synthetic.COLOURS),
  "texture": synthetic.TEXTURES,
  "size": tuple(synthetic.SIZES),
}
Clips = UInt8[np.ndarray, "n t h w 3"]
Features = Callable[[Clips], Float[np.ndarray, "n d"]]


class Block(nnx.Module):
  """Mixes times, then places, then channels."""

  def __init__(self, *, rngs: layers.Keys):
    options = {"dtype": jnp.float32, "rngs": rngs}
    self.norms = nnx.List([layers.layer_norm(WIDTH, rngs=rngs) for _ in range(3)])
    self.time = layers.linear(FRAMES, FRAMES, **options)
    self.place = layers.linear(PLACES, PLACES, **options)
    self.up = layers.linear(WIDTH, 2 * WIDTH, **options)
    self.down = layers.linear(2 * WIDTH, WIDTH, **options)

  def __call__(self, x: Float[Array, "b t n c"]) -> Float[Array, "b t n c"]:
    over_time, over_place, over_channels = (norm for norm in self.norms)
    x = x + jnp.moveaxis(self.time(jnp.moveaxis(nnx.gelu(over_time(x)), 1, -1)), -1, 1)
    x = x + jnp.moveaxis(self.place(jnp.moveaxis(nnx.gelu(over_place(x)), 2, -1)), -1, 2)
    return x + self.down(nnx.gelu(self.up(over_channels(x))))


class Classifier(nnx.Module):
  """Patches of 8x8 pixels, mixed three times, pooled to `WIDTH` features, and a head for each label.

  Products of matrices alone: gradients of convolutions are ten times slower on a CPU.
  """

  def __init__(self, *, rngs: layers.Keys):
    options = {"dtype": jnp.float32, "rngs": rngs}
    self.patches = layers.linear(3 * PATCH**2, WIDTH, **options)
    self.blocks = nnx.List([Block(rngs=rngs) for _ in range(3)])
    self.norm = layers.layer_norm(WIDTH, rngs=rngs)
    self.heads = nnx.Dict(
      {name: layers.linear(WIDTH, len(HEADS[name]), **options) for name in HEADS}
    )

  def __call__(
    self, x: Float[Array, "b t h w 3"]
  ) -> tuple[Float[Array, "b d"], dict[str, Float[Array, "b n"]]]:
    x = einops.rearrange(x, "b t (h p) (w q) c -> b t (h w) (p q c)", p=PATCH, q=PATCH)
    x = self.patches(x)
    for block in self.blocks:
      x = block(x)
    pooled = self.norm(x).mean((1, 2))
    return pooled, {name: head(pooled) for name, head in self.heads.items()}


def seen(clips: UInt8[Array, "b t h w 3"], frames: int, side: int) -> Float[Array, "b t2 h2 w2 3"]:
  """Clips of any length and size as a network wants them, in [-1, 1]."""
  chosen = np.round(np.linspace(0, clips.shape[1] - 1, frames)).astype(int)
  return resizing.bilinear(clips[:, chosen].astype(jnp.float32), side, side) / 127.5 - 1


NETWORK = networks.NetworkSpec(Classifier, {}, network="", trained=False)
I3D = networks.NetworkSpec(i3d.I3D, {}, network="i3d", trained=False)


def trained() -> Features:
  """`WIDTH` features of each clip by the network in features.npz."""
  with np.load(FILE) as file:
    params = trees.nest({path: jnp.asarray(file[path], jnp.float32) for path in file.files})

  @jax.jit
  def of(clips: jax.Array) -> jax.Array:
    return nnx.merge(NETWORK.graph(), params)(seen(clips, FRAMES, SIDE))[0]

  return functools.partial(in_batches, of)


def random() -> Features:
  """1,024 features of each clip by an I3D whose weights are drawn at random, always the same."""
  params = scaled(jax.eval_shape(I3D.init, jax.random.key(0)))

  @jax.jit
  def of(clips: jax.Array) -> jax.Array:
    network = nnx.merge(I3D.graph(), params)
    x = i3d.max_pool(network.conv1a(seen(clips, FRAMES, SIDE)), (1, 3, 3), (1, 2, 2))
    x = network.conv2c(network.conv2b(x))
    for name, block in zip(i3d.BLOCKS, network.blocks, strict=True):
      x = block(i3d.max_pool(x, *i3d.POOLED[name]) if name in i3d.POOLED else x)
    return x.mean((1, 2, 3))

  return functools.partial(in_batches, of)


def scaled(shapes: Any) -> Any:
  """Random weights that keep the size of what flows through a ReLU (He); norms as they begin, biases zero."""
  rng = np.random.default_rng(0)

  def draw(path: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    if path.split("/")[-1] == "kernel":
      deviation = (2 / np.prod(like.shape[:-1])) ** 0.5
      return jnp.asarray(deviation * rng.standard_normal(like.shape, np.float32))
    return jnp.full(like.shape, float(path.split("/")[-1] in ("scale", "var")), like.dtype)

  return trees.map_paths(draw, shapes)


def in_batches(of: Callable[[jax.Array], jax.Array], clips: Clips) -> Float[np.ndarray, "n d"]:
  """Features of clips, some at a time; the last batch is filled up, so that nothing recompiles."""
  found = []
  for first in range(0, len(clips), BATCH):
    part = clips[first : first + BATCH]
    rows = np.minimum(np.arange(BATCH), len(part) - 1)
    found.append(np.asarray(of(part[rows]))[: len(part)])
  return np.concatenate(found)
