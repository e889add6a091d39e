"""softmax(scale q k^T + bias) v for each head, by whatever the platform computes it best with.

  plain   all logits in memory: the reference, and what short sequences take everywhere
  blocks  the same for some queries at a time, computed again on the way back: where the logits would be large
  packed  several short sequences in one of 128 tokens, which do not see each other: a TPU's tiles are that long
  splash  a TPU's fused kernel (jax.experimental.pallas), the logits never in memory
  cudnn   a GPU's

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

from fbjax import sharding

logger = logging.getLogger(__name__)

Kind = Literal["plain", "blocks", "packed", "splash", "cudnn"]

LARGE = 2**30  # bytes of float32 logits on a device
TILE = 128
BLOCK = 512  # longest side of what splash works on at a time
LONG = 256  # from here on a fused kernel is worth its start


class Sizes(NamedTuple):
  """Of one attention: sequences (rows) of n queries and m keys, heads of d channels."""

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
) -> Float[Array, "b n k d"]:
  """softmax(scale q k^T + bias) v for each head; scale is 1/sqrt(d) unless given."""
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  shared = bias is None or bias.shape[:2] == (1, 1)
  kind = choose(sizes(q, k), v.dtype, sharding.platform(), biased=bias is not None, shared=shared)
  _tell(kind, q.shape[1], k.shape[1])
  match kind:
    case "packed":
      return packed(q, k, v, scale, bias)
    case "blocks":
      return blocks(q, k, v, scale, bias)
    case "splash":
      return sharding.per_device(lambda q, k, v: splash(q, k, v, scale), q, k, v)
    case "cudnn":
      return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
    case _:
      return plain(q, k, v, scale, bias)


@functools.cache
def _tell(kind: Kind, n: int, m: int) -> None:
  """Once for each pair of lengths, while a program is traced."""
  if kind != "plain":
    logger.info("Attention of %s tokens to %s: %s.", f"{n:,}", f"{m:,}", kind)


def sizes(q: Float[Array, "b n k d"], k: Float[Array, "b m k d"]) -> Sizes:
  rows, n, heads, d = q.shape
  return Sizes(rows, n, k.shape[1], heads, d)


def choose(
  of: Sizes, dtype: Any, platform: str, *, biased: bool = False, shared: bool = True
) -> Kind:
  """What computes an attention on a platform; a bias that is `shared` is the same in all rows and heads."""
  here = sharding.rows_here(of.rows)
  half = dtype in (jnp.bfloat16, jnp.float16)
  short = shared and of.n == of.m and of.n <= TILE // 2 and TILE % of.n == 0
  if platform == "tpu" and short and here and here % (TILE // of.n) == 0:
    return "packed"
  if half and not biased and min(of.n, of.m) >= LONG:
    if platform == "tpu" and here and of.d <= TILE:
      return "splash"
    # cuDNN has no gradient for odd lengths.
    fits = of.d <= 128 and of.d % 8 == 0 and not (of.n | of.m) % 2
    if platform in ("gpu", "cuda") and fits and _has_fused():
      return "cudnn"
  logits = 4 * (here or of.rows) * of.heads * of.n * of.m
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
  """The division by the softmax's sum comes after the product with v, where it is n d instead of n m long."""
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
  large: int = LARGE,
) -> Float[Array, "b n k d"]:
  """`plain` for as many queries at a time as keep the logits below `large` bytes."""
  of = sizes(q, k)
  row = 4 * (sharding.rows_here(of.rows) or of.rows) * of.heads * of.m
  size = max(min(large // row, of.n), 1)
  count = math.ceil(of.n / size)
  size = math.ceil(of.n / count)  # all of one length, but for the filling of the last
  fill = count * size - of.n

  def split(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    padded = jnp.pad(x, [(0, fill if i == axis else 0) for i in range(x.ndim)])
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(padded.reshape(shape), axis, 0)

  parts = split(q, 1), None if bias is None else split(bias, 2)
  out = jax.lax.map(jax.checkpoint(lambda part: plain(part[0], k, v, scale, part[1])), parts)
  return jnp.moveaxis(out, 0, 1).reshape(of.rows, count * size, *out.shape[3:])[:, : of.n]


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

  of = sizes(q, k)
  n, m = _filled(of.n), _filled(of.m)
  block_q, block_kv = (math.gcd(length, BLOCK) for length in (n, m))
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([masks.FullMask((n, m))] * of.heads),
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
  filled = (n, m) != (of.n, of.m)
  segments = kernels.SegmentIds(np.arange(n) >= of.n, np.arange(m) >= of.m) if filled else None
  segments = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), segments)
  out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(
    heads_first((q * scale).astype(v.dtype), n), heads_first(k, m), heads_first(v, m)
  )
  return out.swapaxes(1, 2)[:, : of.n].astype(v.dtype)


def _filled(n: int) -> int:
  """The next length that blocks of a whole tile divide, with few and long ones where there are many tokens."""
  step = BLOCK if n > 2 * BLOCK else TILE
  return math.ceil(n / step) * step
