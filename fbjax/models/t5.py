"""The encoder of T5 v1.1: bidirectional, a vector for every token.

  block  x + attention(norm(x)), then x + mlp(norm(x)); norms only scale, nothing has biases

Relative positions are a bias of the attention logits, one number for each head and bucket of
distances. All blocks share it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fbjax import partition
from fbjax.models import attention
from fbjax.models import layers as layers_lib


def norm(c: int, *, rngs: layers_lib.Keys) -> nnx.RMSNorm:
  return nnx.RMSNorm(c, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)


class Block(nnx.Module):
  """Attention whose logits are not scaled, and an MLP gated by the tanh GELU."""

  def __init__(
    self, c: int, *, heads: int, head_dim: int, mlp: int, dtype: Any, rngs: layers_lib.Keys
  ):
    kwargs = {"bias": False, "dtype": dtype, "rngs": rngs}
    inner = heads * head_dim
    self.norm1 = norm(c, rngs=rngs)
    # Small, in place of the scale of the logits.
    init = nnx.initializers.normal((c * head_dim) ** -0.5)
    self.q = layers_lib.Linear(c, inner, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
    self.k = layers_lib.linear(c, inner, **kwargs)
    self.v = layers_lib.linear(c, inner, **kwargs)
    self.out = layers_lib.linear(inner, c, **kwargs)
    self.norm2 = norm(c, rngs=rngs)
    self.gate = layers_lib.linear(c, mlp, **kwargs)
    self.up = layers_lib.linear(c, mlp, **kwargs)
    self.down = layers_lib.linear(mlp, c, **kwargs)
    self.heads = heads

  def __call__(
    self, x: Float[Array, "b n c"], bias: Float[Array, "#b k n n"]
  ) -> Float[Array, "b n c"]:
    h = self.norm1(x)
    q, k, v = (layers_lib.split_heads(f(h), self.heads) for f in (self.q, self.k, self.v))
    x = x + self.out(layers_lib.merge_heads(attention.attention(q, k, v, scale=1.0, bias=bias)))
    h = self.norm2(x)
    gate = nnx.gelu(self.gate(h).astype(jnp.float32), approximate=True)
    return x + self.down(gate * self.up(h))


class Encoder(nnx.Module):
  """Token embeddings, equal blocks, norm.

  Args:
    vocab: number of token ids.
    mlp: width of the MLP.
    buckets: number of buckets of distances, half of them for tokens that come later. Half of either
      hold one distance each, the others grow logarithmically up to `distance`.
    distance: all distances from here on share a bucket.
  """

  def __init__(
    self,
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    *,
    head_dim: int,
    mlp: int,
    buckets: int = 32,
    distance: int = 128,
    dtype: Any = jnp.float32,
    rngs: layers_lib.Keys,
  ):
    def block(key: Array) -> Block:
      rngs = layers_lib.Keys(key)
      return Block(width, heads=heads, head_dim=head_dim, mlp=mlp, dtype=dtype, rngs=rngs)

    normal = nnx.initializers.normal
    self.token = nnx.Embed(vocab, width, embedding_init=normal(1.0), rngs=rngs)
    self.positions = nnx.Embed(buckets, heads, embedding_init=normal(width**-0.5), rngs=rngs)
    self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), layers))
    self.norm = norm(width, rngs=rngs)
    self.distance = distance

  def __call__(
    self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None
  ) -> Float[Array, "b n c"]:
    """Float32 states of all tokens; attention is to tokens where `mask` is True.

    CogVideoX gives no mask, so that its tokens attend to padding too.
    """
    buckets = relative_buckets(tokens.shape[1], self.positions.num_embeddings, self.distance)
    bias = self.positions(jnp.asarray(buckets)).astype(jnp.float32).transpose(2, 0, 1)[None]
    if mask is not None:
      bias = jnp.where(mask[:, None, None], bias, -1e9)
    x = self.token(tokens).astype(jnp.float32)
    run = partition.blockwise(Block.__call__, split=partition.apart)
    x, _ = jax.lax.scan(lambda x, block: (run(block, x, bias), None), x, self.blocks)
    return self.norm(x)


def relative_buckets(n: int, buckets: int, distance: int) -> Int[np.ndarray, "n n"]:
  """The bucket of the distance from each token (row) to each other (column)."""
  offset = np.arange(n)[None] - np.arange(n)[:, None]
  half, exact = buckets // 2, buckets // 4
  far = np.maximum(np.abs(offset), exact)
  growth = np.log(far / exact) / np.log(distance / exact) * (half - exact)
  bucket = np.where(np.abs(offset) < exact, np.abs(offset), exact + growth.astype(int))
  return np.minimum(bucket, half - 1) + np.where(offset > 0, half, 0)
