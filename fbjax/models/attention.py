"""Multi-head attention, softmax(scale q k^T + bias) v, by one of several implementations.

  plain   all logits in memory: the reference, and the choice for short sequences
  blocks  `plain` for some queries at a time, rematerialised in the backward pass: for large logits
  packed  several short sequences in one of 128 tokens, a TPU's tile, masked from each other
  splash  a TPU's fused kernel (jax.experimental.pallas), the logits never in memory
  cudnn   a GPU's fused kernel (`jax.nn.dot_product_attention`)

Softmax is float32 in all of them.
"""

import functools
import logging
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fbjax import partition

logger = logging.getLogger(__name__)

Kind = Literal["plain", "blocks", "packed", "splash", "cudnn"]

LARGE = 2**30  # bytes of float32 logits on a device
TILE = 128
BLOCK = 512  # longest side of what splash works on at a time
LONG = 256  # from here on a fused kernel is worth its start


class Sizes(NamedTuple):
  """Sizes of an attention on one device: sequences (rows), n queries, m keys, heads of width d."""

  rows: int
  n: int
  m: int
  heads: int
  d: int


def attention(
  q: Float[Array, "b n k d"],
  k: Float[Array, "b m k d"],
  v: Float[Array, "b m k d"],
  *,
  scale: float | None = None,
  bias: Float[Array, "#b #k n m"] | None = None,
  spread: partition.Spread = partition.APART,
) -> Float[Array, "b n k d"]:
  """softmax(scale q k^T + bias) v for each head; scale is 1/sqrt(d) unless given.

  `spread` says over which axes of a mesh it is split.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  shared = bias is None or bias.shape[:2] == (1, 1)
  share = partition.of_attention(spread, q.shape)
  if not share.whole:
    q, k, v = (partition.put(x, spec) for x, spec in zip((q, k, v), share.specs, strict=True))
  of = Sizes(share.rows, share.queries, k.shape[1], share.heads, q.shape[3])
  kind = choose(
    of, v.dtype, partition.platform(), biased=bias is not None, shared=shared, whole=share.whole
  )
  _tell(kind, q.shape[1], k.shape[1])
  match kind:
    case "packed":
      return packed(q, k, v, scale, bias)
    case "blocks":
      return blocks(q, k, v, scale, bias, spread=spread)
    case "splash":
      return partition.per_device(share, lambda q, k, v: splash(q, k, v, scale), q, k, v)
    case "cudnn":
      fused = functools.partial(jax.nn.dot_product_attention, scale=scale, implementation="cudnn")
      return partition.per_device(share, fused, q, k, v)
    case _:
      return plain(q, k, v, scale, bias)


@functools.cache
def _tell(kind: Kind, n: int, m: int) -> None:
  """Once for each pair of lengths, while a program is traced."""
  if kind != "plain":
    logger.info("Attention of %s tokens to %s: %s.", f"{n:,}", f"{m:,}", kind)


def choose(
  of: Sizes,
  dtype: Any,
  platform: str,
  *,
  biased: bool = False,
  shared: bool = True,
  whole: bool = False,
) -> Kind:
  """Chooses the implementation for the sizes, the dtype of v and the platform.

  A bias that is `shared` is the same in all rows and heads. With `whole`, the devices of the mesh
  do not divide the rows: then only plain products will do, which XLA's partitioner can split.
  """
  half = dtype in (jnp.bfloat16, jnp.float16)
  short = shared and of.n == of.m and of.n <= TILE // 2 and TILE % of.n == 0
  if platform == "tpu" and short and not whole and of.rows % (TILE // of.n) == 0:
    return "packed"
  if half and not biased and min(of.n, of.m) >= LONG:
    if platform == "tpu" and not whole and of.d <= TILE:
      return "splash"
    # cuDNN has no gradient for odd lengths.
    fits = of.d <= 128 and of.d % 8 == 0 and not (of.n | of.m) % 2
    if platform in ("gpu", "cuda") and fits and not whole and _has_fused():
      return "cudnn"
  logits = 4 * of.rows * of.heads * of.n * of.m
  return "blocks" if logits > LARGE and of.n > 1 else "plain"


@functools.cache
def _has_fused() -> bool:
  """Whether the GPUs of this machine are of Ampere or later; where there are none, those that it plans for are."""
  capability = getattr(jax.local_devices()[0], "compute_capability", None)
  return capability is None or float(capability) >= 8


def plain(
  q: Float[Array, "b n k d"],
  k: Float[Array, "b m k d"],
  v: Float[Array, "b m k d"],
  scale: float,
  bias: Float[Array, "#b #k n m"] | None = None,
) -> Float[Array, "b n k d"]:
  """Reference implementation, with all logits in memory.

  It divides by the softmax's sum after the product with v: n d numbers a head in place of n m.
  """
  logits = jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32) * scale
  if bias is not None:
    logits = logits + bias
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  total = weights.sum(-1).swapaxes(1, 2)[..., None]
  out = jnp.einsum("bknm,bmkd->bnkd", weights.astype(v.dtype), v)
  return (out / total).astype(v.dtype)


def blocks(
  q: Float[Array, "b n k d"],
  k: Float[Array, "b m k d"],
  v: Float[Array, "b m k d"],
  scale: float,
  bias: Float[Array, "#b #k n m"] | None = None,
  *,
  spread: partition.Spread = partition.APART,
  large: int = LARGE,
) -> Float[Array, "b n k d"]:
  """`plain` for as many queries at a time as keep the logits of a device below `large` bytes."""
  share = partition.of_attention(spread, q.shape)
  shares, n = q.shape[1] // share.queries, share.queries
  size = max(min(large // (4 * share.rows * share.heads * k.shape[1]), n), 1)
  count = math.ceil(n / size)
  size = math.ceil(n / count)  # all of one length, but for the filling of the last

  def split(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Each device's own queries in `count` parts; the parts come first."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    x = x.reshape(*before, shares, n, *after)
    x = jnp.pad(x, [(0, count * size - n if i == axis + 1 else 0) for i in range(x.ndim)])
    x = jnp.moveaxis(x.reshape(*before, shares, count, size, *after), axis + 1, 0)
    return x.reshape(count, *before, shares * size, *after)

  parts = split(q, 1), None if bias is None else split(bias, 2)
  out = jax.lax.map(jax.checkpoint(lambda part: plain(part[0], k, v, scale, part[1])), parts)
  out = out.reshape(count, len(q), shares, size, *q.shape[2:])
  out = jnp.moveaxis(out, 0, 2).reshape(len(q), shares, count * size, *q.shape[2:])
  return out[:, :, :n].reshape(q.shape)


def packed(
  q: Float[Array, "b n k d"],
  k: Float[Array, "b n k d"],
  v: Float[Array, "b n k d"],
  scale: float,
  bias: Float[Array, "1 1 n n"] | None = None,
) -> Float[Array, "b n k d"]:
  """`plain` for TILE // n sequences at once; the number of sequences must divide by that."""
  n = q.shape[1]
  count = TILE // n
  place = np.arange(count * n) // n
  same = (place[:, None] == place[None])[None, None]
  own = jnp.zeros((1, 1)) if bias is None else jnp.tile(bias, (1, 1, count, count))
  q, k, v = (x.reshape(-1, count * n, *x.shape[2:]) for x in (q, k, v))
  y = plain(q, k, v, scale, jnp.where(same, own.reshape(1, 1, *own.shape[-2:]), -jnp.inf))
  return y.reshape(-1, n, *y.shape[2:])


def splash(
  q: Float[Array, "b n k d"],
  k: Float[Array, "b m k d"],
  v: Float[Array, "b m k d"],
  scale: float,
  *,
  interpret: bool = False,
) -> Float[Array, "b n k d"]:
  """The Pallas kernel of TPUs; sequences are filled up to its blocks. `interpret` runs it anywhere, slowly."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  heads = q.shape[2]
  n, m = _filled(q.shape[1]), _filled(k.shape[1])
  block_q, block_kv = (math.gcd(length, BLOCK) for length in (n, m))
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([masks.FullMask((n, m))] * heads),
    block_sizes=kernels.BlockSizes(
      block_q=block_q,
      block_kv=block_kv,
      block_kv_compute=block_kv,
      block_q_dkv=block_q,
      block_kv_dkv=block_kv,
      block_kv_dkv_compute=block_kv,
      block_q_dq=block_q,
      block_kv_dq=block_kv,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )

  def heads_first(x: Float[Array, "b n k d"], length: int) -> Float[Array, "b k n2 d"]:
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

  # Tokens that fill up are a sequence of their own.
  filled = (n, m) != (q.shape[1], k.shape[1])
  segments = (
    kernels.SegmentIds(np.arange(n) >= q.shape[1], np.arange(m) >= k.shape[1]) if filled else None
  )
  segments = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), segments)
  out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(
    heads_first((q * scale).astype(v.dtype), n), heads_first(k, m), heads_first(v, m)
  )
  return out.swapaxes(1, 2)[:, : q.shape[1]].astype(v.dtype)


def _filled(n: int) -> int:
  """The next length that blocks of a whole tile divide, with few and long ones where there are many tokens."""
  step = BLOCK if n > 2 * BLOCK else TILE
  return math.ceil(n / step) * step
