"""CLIP's transformers, as OpenCLIP writes them: text now, images beside it.

Block: LayerNorm, attention, added; LayerNorm, Linear, GELU, Linear, added
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fbjax.models import layers as layers_lib


class Attention(nnx.Module):
  """Multi-head self-attention whose query, key and value come from one projection."""

  def __init__(self, c: int, *, heads: int, dtype: Any, rngs: layers_lib.Rngs):
    self.qkv = layers_lib.linear(c, 3 * c, dtype=dtype, rngs=rngs)
    self.out = layers_lib.linear(c, c, dtype=dtype, rngs=rngs)
    self.heads = heads

  def __call__(
    self, x: Float[Array, "b n c"], bias: Float[Array, "1 1 n n"] | None
  ) -> Float[Array, "b n c"]:
    q, k, v = (layers_lib.split_heads(y, self.heads) for y in jnp.split(self.qkv(x), 3, axis=-1))
    return self.out(layers_lib.merge_heads(layers_lib.attention(q, k, v, bias=bias)))


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)) with the exact GELU."""

  def __init__(self, c: int, *, heads: int, mult: int = 4, dtype: Any, rngs: layers_lib.Rngs):
    kwargs = {"dtype": dtype, "rngs": rngs}
    self.norm1 = layers_lib.layer_norm(c, rngs=rngs)
    self.attn = Attention(c, heads=heads, **kwargs)
    self.norm2 = layers_lib.layer_norm(c, rngs=rngs)
    self.up = layers_lib.linear(c, mult * c, **kwargs)
    self.down = layers_lib.linear(mult * c, c, **kwargs)

  def __call__(
    self, x: Float[Array, "b n c"], bias: Float[Array, "1 1 n n"] | None = None
  ) -> Float[Array, "b n c"]:
    x = x + self.attn(self.norm1(x), bias)
    return x + self.down(nnx.gelu(self.up(self.norm2(x)), approximate=False))


class Transformer(nnx.Module):
  """Equal blocks, stacked: one is compiled and scanned over."""

  def __init__(self, c: int, *, layers: int, heads: int, dtype: Any, rngs: layers_lib.Rngs):
    if c % heads:
      raise ValueError(f"a width of {c} does not divide into {heads} heads; change either")

    def block(key: Array) -> Block:
      return Block(c, heads=heads, dtype=dtype, rngs=layers_lib.Keys(key))

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
    return jax.lax.scan(lambda x, block: (block(x, bias), None), x, blocks)[0]


class TextEncoder(nnx.Module):
  """Token and position embeddings, causal blocks, LayerNorm: a vector for every token.

  Args:
    vocab: number of token ids.
    length: largest number of tokens.
    skip: blocks at the end that are not run; 1 is OpenCLIP's "penultimate".
    c_out: channels of CLIP's joint space, if the projection into it is wanted.
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
    dtype: Any = jnp.float32,
    rngs: layers_lib.Rngs,
  ):
    normal = nnx.initializers.normal
    self.token = nnx.Embed(vocab, width, embedding_init=normal(0.02), dtype=dtype, rngs=rngs)
    self.position = nnx.Param(normal(0.01)(rngs.params(), (length, width)))
    self.transformer = Transformer(width, layers=layers, heads=heads, dtype=dtype, rngs=rngs)
    self.norm = layers_lib.layer_norm(width, rngs=rngs)
    joint = c_out is not None
    init = normal(width**-0.5)
    self.projection = nnx.Param(init(rngs.params(), (width, c_out))) if joint else None
    self.logit_scale = nnx.Param(jnp.log(jnp.full((), 1 / 0.07))) if joint else None
    self.skip = skip
    self.dtype = dtype

  def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n c"]:
    n, length = tokens.shape[1], self.position.shape[0]
    if n > length:
      raise ValueError(f"the text network reads at most {length} tokens, not {n}: cut the prompt")
    x = self.token(tokens) + self.position[:n][None].astype(self.dtype)
    return self.norm(self.transformer(x, skip=self.skip, causal=True))
