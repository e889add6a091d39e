"""CLIP: a causal transformer over the tokens of a text, another over the patches of an image.

  Block: LayerNorm, attention, added; LayerNorm, Linear, GELU, Linear, added

`TextEncoder` and `ImageEncoder` give a vector for every token, which is what video models are
conditioned on. `Clip` pairs them in the space where a text and its image are close.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fbjax import errors, partition
from fbjax.models import attention
from fbjax.models import layers as layers_lib

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Attention(nnx.Module):
  """Multi-head self-attention whose query, key and value come from one projection."""

  def __init__(self, c: int, *, heads: int, dtype: Any, rngs: layers_lib.Keys):
    self.qkv = layers_lib.linear(c, 3 * c, dtype=dtype, rngs=rngs)
    self.out = layers_lib.linear(c, c, dtype=dtype, rngs=rngs)
    self.heads = heads

  def __call__(
    self, x: Float[Array, "b n c"], bias: Float[Array, "1 1 n n"] | None
  ) -> Float[Array, "b n c"]:
    q, k, v = (layers_lib.split_heads(y, self.heads) for y in jnp.split(self.qkv(x), 3, axis=-1))
    return self.out(layers_lib.merge_heads(attention.attention(q, k, v, bias=bias)))


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); the GELU is exact or OpenAI's quick one."""

  def __init__(
    self,
    c: int,
    *,
    heads: int,
    quick_gelu: bool,
    epsilon: float = 1e-5,
    dtype: Any,
    rngs: layers_lib.Keys,
  ):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.norm1 = layers_lib.layer_norm(c, epsilon=epsilon, rngs=rngs)
    self.attn = Attention(c, heads=heads, **kwargs)
    self.norm2 = layers_lib.layer_norm(c, epsilon=epsilon, rngs=rngs)
    self.up = layers_lib.linear(c, 4 * c, **kwargs)
    self.down = layers_lib.linear(4 * c, c, **kwargs)
    self.quick_gelu = quick_gelu

  def __call__(
    self, x: Float[Array, "b n c"], bias: Float[Array, "1 1 n n"] | None = None
  ) -> Float[Array, "b n c"]:
    x = x + self.attn(self.norm1(x), bias)
    h = self.up(self.norm2(x)).astype(jnp.float32)
    h = h * nnx.sigmoid(1.702 * h) if self.quick_gelu else nnx.gelu(h, approximate=False)
    return x + self.down(h)


class Transformer(nnx.Module):
  """Equal blocks, stacked: one is compiled and scanned over."""

  def __init__(
    self,
    c: int,
    *,
    layers: int,
    heads: int,
    quick_gelu: bool,
    epsilon: float = 1e-5,
    dtype: Any,
    rngs: layers_lib.Keys,
  ):
    if c % heads:
      raise errors.UserError(f"a width of {c} does not divide into {heads} heads; change either")

    def block(key: Array) -> Block:
      rngs = layers_lib.Keys(key)
      options = {"quick_gelu": quick_gelu, "epsilon": epsilon, "dtype": dtype, "rngs": rngs}
      return Block(c, heads=heads, **options)

    self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), layers))
    self.layers = layers

  def __call__(
    self, x: Float[Array, "b n c"], *, skip: int = 0, causal: bool = False
  ) -> Float[Array, "b n c"]:
    """Runs all blocks but the last `skip`."""
    bias = layers_lib.causal_bias(x.shape[1]) if causal else None
    blocks = self.blocks
    if skip:
      blocks = jax.tree.map(lambda p: p[: self.layers - skip], blocks)
    run = partition.blockwise(Block.__call__, split=partition.apart)
    return jax.lax.scan(lambda x, block: (run(block, x, bias), None), x, blocks)[0]


class TextEncoder(nnx.Module):
  """Token and position embeddings, causal blocks, LayerNorm: a vector for every token.

  Args:
    vocab: number of token ids.
    length: largest number of tokens.
    skip: blocks at the end that are not run; 1 is OpenCLIP's "penultimate".
    c_out: channels of CLIP's joint space, if the projection into it is wanted.
    quick_gelu: OpenAI's approximation of the GELU, which its own weights need.
  """

  def __init__(
    self,
    vocab: int,
    length: int,
    width: int,
    layers: int,
    heads: int,
    *,
    skip: int = 0,
    c_out: int | None = None,
    quick_gelu: bool = False,
    dtype: Any = jnp.float32,
    rngs: layers_lib.Keys,
  ):
    if skip >= layers:
      raise errors.UserError(
        f"the text network's skip is {skip}, but it has only {layers} layers: one at least must be run"
      )
    normal = nnx.initializers.normal
    # Trained from scratch, words must outweigh the biases of the blocks: with the 0.02 of CLIP all
    # captions look alike to the network that reads them.
    self.token = nnx.Embed(vocab, width, embedding_init=normal(1.0), rngs=rngs)
    self.position = nnx.Param(normal(0.01)(rngs.params(), (length, width)))
    self.transformer = Transformer(
      width, layers=layers, heads=heads, quick_gelu=quick_gelu, dtype=dtype, rngs=rngs
    )
    self.norm = layers_lib.layer_norm(width, rngs=rngs)
    joint = c_out is not None
    init = normal(width**-0.5)
    self.projection = nnx.Param(init(rngs.params(), (width, c_out))) if joint else None
    self.logit_scale = nnx.Param(jnp.full((), math.log(1 / 0.07))) if joint else None
    self.skip = skip

  def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n c"]:
    n, length = tokens.shape[1], self.position.shape[0]
    if n > length:
      raise errors.UserError(
        f"the text network reads at most {length} tokens, not {n}: cut the prompt"
      )
    x = self.token(tokens) + self.position[:n][None]
    return self.norm(self.transformer(x, skip=self.skip, causal=True))

  def pool(self, tokens: Int[Array, "b n"]) -> Float[Array, "b c"]:
    """The text as one vector, that of its end, which has the largest token id.

    In the joint space, if there is one.
    """
    x = self(tokens)
    end = jnp.argmax(tokens, axis=1)
    x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return x if self.projection is None else x @ self.projection[...]


class ImageEncoder(nnx.Module):
  """Patches, a class token in front, positions, LayerNorm, blocks: a vector for every token.

  Takes images that `preprocess` has made, `size` pixels square. The tokens come as they leave
  the last block; only `pool` applies the last LayerNorm and the projection.

  Args:
    c_out: channels of CLIP's joint space.
    quick_gelu: OpenAI's approximation of the GELU, which its own weights need.
  """

  def __init__(
    self,
    size: int,
    patch: int,
    width: int,
    layers: int,
    heads: int,
    c_out: int,
    *,
    quick_gelu: bool = False,
    dtype: Any = jnp.float32,
    rngs: layers_lib.Keys,
  ):
    normal = nnx.initializers.normal(width**-0.5)
    if size % patch:
      raise errors.UserError(f"an image of size {size} does not divide into patches of {patch}")
    n = (size // patch) ** 2 + 1
    self.patches = layers_lib.conv(
      3, width, patch, stride=patch, padding=0, bias=False, dtype=dtype, rngs=rngs
    )
    self.start = nnx.Param(normal(rngs.params(), (width,)))
    self.position = nnx.Param(normal(rngs.params(), (n, width)))
    self.in_norm = layers_lib.layer_norm(width, rngs=rngs)
    self.transformer = Transformer(
      width, layers=layers, heads=heads, quick_gelu=quick_gelu, dtype=dtype, rngs=rngs
    )
    self.out_norm = layers_lib.layer_norm(width, rngs=rngs)
    self.projection = nnx.Param(normal(rngs.params(), (width, c_out)))
    self.size = size

  def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
    if image.shape[1:3] != (self.size, self.size):
      got = " x ".join(map(str, image.shape[1:3]))
      raise errors.UserError(
        f"CLIP's image is {self.size} pixels square, not {got}: call preprocess"
      )
    x = einops.rearrange(self.patches(image), "b h w c -> b (h w) c")
    start = jnp.broadcast_to(self.start[...], (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([start, x.astype(jnp.float32)], 1) + self.position[...][None]
    return self.transformer(self.in_norm(x))

  def pool(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
    """The image in the joint space."""
    return self.out_norm(self(image)[:, 0]) @ self.projection[...]


class Clip(nnx.Module):
  """Both encoders; the cosine similarity of their embeddings scores how well a text fits an image.

  Args:
    image, text: sizes of the encoders.
    c_out: channels of the joint space.
  """

  def __init__(
    self,
    c_out: int,
    *,
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    quick_gelu: bool = False,
    dtype: Any = jnp.float32,
    rngs: layers_lib.Keys,
  ):
    kwargs = {"c_out": c_out, "quick_gelu": quick_gelu, "dtype": dtype, "rngs": rngs}
    self.image = ImageEncoder(**image, **kwargs)
    self.text = TextEncoder(**text, **kwargs)

  def embed_image(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
    """Unit vectors of images that `preprocess` has made."""
    return _unit(self.image.pool(image))

  def embed_text(self, tokens: Int[Array, "b n"]) -> Float[Array, "b c"]:
    """Unit vectors of texts."""
    return _unit(self.text.pool(tokens))


def _unit(x: Float[Array, "b c"]) -> Float[Array, "b c"]:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def preprocess(image: Float[Array, "b h w 3"], *, size: int = 224) -> Float[Array, "b s s 3"]:
  """Preprocesses images in [-1, 1] for `ImageEncoder`, as VideoCrafter does for OpenCLIP.

  Resized to a square as kornia does (bicubic, corners aligned, blurred before shrinking), then
  normalized by the mean and deviation of each channel. The blur and the interpolation of an axis
  are one matrix. jax.image.resize is none of this: other corners, another cubic, another blur.
  """
  h, w = image.shape[1:3]
  image = image.astype(jnp.float32)
  if (h, w) != (size, size):
    blur = max(h, w) > size
    rows, columns = (jnp.asarray(resize_matrix(n, size, blur=blur)) for n in (h, w))
    precise = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    image = precise("ih,bhwc->biwc", rows, image)
    image = precise("jw,biwc->bijc", columns, image)
  mean, std = (jnp.asarray(x).reshape(1, 1, 1, 3) for x in (MEAN, STD))
  return ((image + 1) / 2 - mean) / std


def resize_matrix(n_in: int, n_out: int, *, blur: bool) -> Float[np.ndarray, "n_out n_in"]:
  """Bicubic interpolation (a = -0.75, corners aligned, edges repeated), after a Gaussian blur."""
  place = np.arange(n_out) * (n_in - 1) / max(n_out - 1, 1)
  first = np.floor(place).astype(int) - 1
  a, cubic = -0.75, np.zeros((n_out, n_in))
  for k in range(4):
    x = np.abs(place - (first + k))
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    weight = np.where(x <= 1, near, np.where(x < 2, far, 0))
    np.add.at(cubic, (np.arange(n_out), np.clip(first + k, 0, n_in - 1)), weight)
  if not blur:
    return cubic.astype(np.float32)

  sigma = max((n_in / n_out - 1) / 2, 0.001)
  length = int(max(4 * sigma, 3)) // 2 * 2 + 1
  offset = np.arange(length) - length // 2
  gauss = np.exp(-(offset**2) / (2 * sigma**2))
  gauss /= gauss.sum()
  smooth = np.zeros((n_in, n_in))
  mirror = np.abs(np.arange(n_in)[:, None] + offset[None])
  mirror = (n_in - 1) - np.abs((n_in - 1) - mirror)
  np.add.at(smooth, (np.arange(n_in)[:, None], mirror), gauss[None])
  return (cubic @ smooth).astype(np.float32)
