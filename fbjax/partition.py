"""How mesh axes split the work of a network, as sharding constraints for XLA's partitioner.

  data, fsdp  clips
  context     frames of a clip; rows of its images in layers across frames (temporal attention or
              convolution); queries in attention over all tokens
  tensor      heads, and channels within a block

Each block of a network all-gathers its weights when it runs, in the dtype it computes in, and the
activations between blocks stay split over clips and frames: each device does its share of the work
and no other. Without constraints the partitioner splits channels instead. A dimension that an axis
does not divide is not split: each device of the axis does all of it.
"""

import contextlib
import contextvars
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
from flax import nnx
from jax import ad_checkpoint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from fbjax import sharding, trees

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")
Given = ParamSpec("Given")
Axes = tuple[str, ...]

BLOCK_INPUT = "block_input"  # what a policy of `jax.checkpoint` knows it by
CLIPS: Axes = sharding.CLIPS
FRAMES: Axes = (*CLIPS, "context")
ALL: Axes = (*FRAMES, "tensor")

# The axis of a leaf that `tensor` splits, by the leaf's path in its block: -1 are the channels that come
# out, which what follows finds split; -2, of all other kernels, those that go in, whose products are
# summed over the devices. None: products of several parts, each of which is split (`layers.parts`).
TENSOR: tuple[tuple[str, int | None], ...] = (
  (r"(^|/)(qkv|kv|ff/up)/", None),
  (r"(^|/)(q|k|v|image_k|image_v|up|mlp_up)/(kernel|bias)$", -1),
  (r"^res/(in_conv|emb|out_norm)/", -1),
  (r"^res/temporal/(convs/[02]|norms/[13])/", -1),
  (r"(^|/)kernel$", -2),
)


class Spread(NamedTuple):
  """Over which axes an attention is split: its sequences (rows) and its queries; its heads over `tensor`."""

  rows: Axes
  queries: Axes = ()


OF_FRAMES = Spread(FRAMES)  # sequences of frames, or of places: rows of `merged`
OF_CLIPS = Spread(CLIPS, ("context",))
APART = Spread(
  ALL
)  # of networks whose rows know nothing of each other, and whose weights are whole


_portable: contextvars.ContextVar[bool] = contextvars.ContextVar("portable", default=False)


def over(mesh: Mesh | None, f: Callable[Given, T]) -> Callable[Given, T]:
  """Wraps f so that it is traced under a mesh, over which the functions of this module split."""
  if mesh is None:
    return f

  @functools.wraps(f)
  def traced(*args: Given.args, **kwargs: Given.kwargs) -> T:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return f(*args, **kwargs)

  return traced


@contextlib.contextmanager
def for_any_platform() -> Iterator[None]:
  """Context in which programs are traced without kernels that only one platform has."""
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def platform() -> str:
  """The platform that a program is traced for: cpu, gpu or tpu; cpu within `for_any_platform`."""
  if _portable.get():
    return "cpu"
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def size(*axes: str) -> int:
  """How many devices share along these axes of the mesh; 1 without a mesh."""
  mesh = _mesh()
  return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)


# --- what flows through a network


def clips(x: Shaped[Array, "b *n"]) -> Shaped[Array, "b *n"]:
  """The same array, its clips spread over `data` and `fsdp`."""
  return _split(x, CLIPS)


def video(x: Shaped[Array, "b t *n"]) -> Shaped[Array, "b t *n"]:
  """The same array, its clips spread as by `clips`, their frames or tokens over `context`."""
  _tell(x.shape[1], size("context"))
  return _split(x, CLIPS, ("context",))


def places(x: Shaped[Array, "b t n *c"]) -> Shaped[Array, "b t n *c"]:
  """The same array, its clips spread as by `clips`, positions within frames (n) over `context`."""
  _tell(x.shape[2], size("context"))
  return _split(x, CLIPS, (), ("context",))


def across_frames(x: Shaped[Array, "b t n *c"]) -> Shaped[Array, "b t n *c"]:
  """Reshards from frames to positions, before a layer across frames; a no-op if `context` is 1."""
  return places(x) if size("context") > 1 else x


def apart(x: Shaped[Array, "b *n"]) -> Shaped[Array, "b *n"]:
  """The same array, its first axis spread over all mesh axes, or as many of them as divide it."""
  return _split(x, ALL)


def merged(x: Shaped[Array, "b t *n"]) -> Shaped[Array, "bt *n"]:
  """The first two axes as one, in an order that moves nothing: each device keeps its clips and frames.

  The second axis is the one that `context` splits. `parted` is the inverse.
  """
  (b, t), rest = x.shape[:2], x.shape[2:]
  blocks = _blocks(b, t)
  if blocks is None:
    return x.reshape(b * t, *rest)
  d, c = blocks
  rows = x.reshape(d, b // d, c, t // c, *rest).swapaxes(1, 2).reshape(b * t, *rest)
  return _split(rows, FRAMES)


def parted(rows: Shaped[Array, "bt *n"], b: int) -> Shaped[Array, "b t *n"]:
  """The inverse of `merged`, for b clips."""
  t, rest = rows.shape[0] // b, rows.shape[1:]
  blocks = _blocks(b, t)
  if blocks is None:
    return rows.reshape(b, t, *rest)
  d, c = blocks
  return video(rows.reshape(d, c, b // d, t // c, *rest).swapaxes(1, 2).reshape(b, t, *rest))


def per_frame(f: Callable[[Array], Array], x: Shaped[Array, "b t *n"]) -> Shaped[Array, "b t *m"]:
  """f of the frames of all clips, as one batch."""
  return parted(f(merged(x)), x.shape[0])


def frames_apart(
  f: Callable[[Array], Array], x: Shaped[Array, "b t *n"]
) -> Shaped[Array, "b t *m"]:
  """`per_frame` for networks with replicated weights, over all mesh axes.

  They split clips if they divide them, and otherwise frames.
  """
  b, t = x.shape[:2]
  if b % size(*ALL) and _blocks(b, t) is not None:
    return per_frame(f, x)
  y = f(apart(apart(x).reshape(b * t, *x.shape[2:])))
  return y.reshape(b, t, *y.shape[1:])


def full_rows(n: int) -> np.ndarray:
  """Indices of n clips, the last repeated up to a multiple of the devices that split clips."""
  shares = size(*CLIPS)
  return np.minimum(np.arange(-(-n // shares) * shares), n - 1)


# --- attention


class Share(NamedTuple):
  """Each device's share of an attention: numbers of rows, queries and heads.

  specs: of queries, keys and values, [b n k d]; the output is split as queries are.
  whole: whether every device has all rows, since none of the axes divides them.
  """

  rows: int
  queries: int
  heads: int
  specs: tuple[P, P, P]
  whole: bool


def of_attention(spread: Spread, shape: tuple[int, ...]) -> Share:
  """The share of each device in an attention whose queries have the shape b n k d."""
  b, n, k = shape[:3]
  rows = _dividing(b, spread.rows)
  queries = _dividing(n, spread.queries)
  heads: Axes = ()
  if size("tensor") > 1 and "tensor" not in spread.rows:
    # Heads that the axis does not divide are whole on each device, for other sequences or queries.
    if k % size("tensor") == 0:
      heads = ("tensor",)
    elif b % size(*rows, "tensor") == 0:
      rows = (*rows, "tensor")
    elif n % size(*queries, "tensor") == 0:
      queries = (*queries, "tensor")
  kv = P(rows or None, None, heads or None)
  return Share(
    b // size(*rows),
    n // size(*queries),
    k // size(*heads),
    (P(rows or None, queries or None, heads or None), kv, kv),
    whole=size(*CLIPS) > 1 and not rows,
  )


def put(x: Shaped[Array, "*n"], spec: P) -> Shaped[Array, "*n"]:
  """The same array, constrained to a spec; unchanged without a mesh."""
  mesh = _mesh()
  return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def per_device(share: Share, f: Callable[..., Array], *qkv: Array) -> Array:
  """f(q, k, v) by shard_map, each device on its share: for kernels that XLA does not partition."""
  mesh = _mesh()
  if mesh is None:
    return f(*qkv)
  return jax.shard_map(
    f, mesh=mesh, in_specs=share.specs, out_specs=share.specs[0], check_vma=False
  )(*qkv)


# --- weights


def whole(module: M, *, shared: bool = False) -> M:
  """The module with its weights all-gathered, kernels cast to the dtype of their layer.

  Gradients come back summed, and split as the weights are (`sharding.of_weight`).
  `shared`: leaves that `TENSOR` names stay split over `tensor`.
  """
  mesh = _mesh()
  if mesh is None or size("fsdp", "tensor") == 1:
    return module
  graph, state = nnx.split(module)
  used = {
    "/".join(map(str, (*path, "kernel"))): layer.dtype or np.float32
    for path, layer in nnx.iter_modules(module)
    if isinstance(layer, nnx.Linear | nnx.Conv)
  }

  def gathered(name: str, x: Array) -> Array:
    return _gather(_used(name, x.shape) if shared else P(), x.astype(used.get(name, x.dtype)))

  return nnx.merge(graph, trees.map_paths(gathered, nnx.to_pure_dict(state)))


def layer(module: nnx.Module) -> nnx.Module:
  """A layer between blocks with its weights gathered, but for those that `TENSOR` splits."""
  return whole(module, shared=True)


def blockwise(
  call: Callable[..., Array],
  wrap: Callable[[Callable], Callable] | None = None,
  *,
  split: Callable[[Array], Array] = video,
) -> Callable[..., Array]:
  """Wraps `call(block, x, *args)`: gathers the block's weights, and constrains x and the result.

  Args:
    call: the forward pass of a block.
    wrap: applied around all of it, such as `jax.checkpoint`, whose backward pass then gathers the
      weights again.
    split: the constraint of x and the result. With `apart` all weights are gathered; otherwise
      those that `TENSOR` names stay split.
  """

  def run(block: nnx.Module, x: Array, *args: Any) -> Array:
    x = ad_checkpoint.checkpoint_name(split(x), BLOCK_INPUT)
    return split(call(whole(block, shared=split is not apart), x, *args))

  return run if wrap is None else wrap(run)


def parts(linear: nnx.Linear, x: Shaped[Array, "*n c"], n: int) -> list[Shaped[Array, "*n m"]]:
  """The n equal parts of a linear layer's result, each of them split over `tensor`."""
  if size("tensor") == 1:
    return list(jax.numpy.split(linear(x), n, axis=-1))

  def part(i: int) -> Array:
    own = lambda leaf: _split_last(leaf[...].reshape(*leaf.shape[:-1], n, -1)[..., i, :])  # noqa: E731
    layer = nnx.clone(linear)
    layer.kernel = nnx.Param(own(linear.kernel))
    layer.bias = None if linear.bias is None else nnx.Param(own(linear.bias))
    layer.out_features //= n
    return layer(x)

  return [part(i) for i in range(n)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(spec: P, x: Array) -> Array:
  return put(x, spec)


def _gather_forward(spec: P, x: Array) -> tuple[Array, None]:
  return put(x, spec), None


def _gather_backward(spec: P, _: None, g: Array) -> tuple[Array]:
  if (
    spec != P()
  ):  # Its own part first, or the partitioner makes all of it on each device of `tensor`.
    g = put(g, spec)
  # By itself the gradient would be wanted whole, like the weight.
  return (put(g, sharding.of_weight(g.shape, _mesh())),)


_gather.defvjp(_gather_forward, _gather_backward)


def _used(name: str, shape: tuple[int, ...]) -> P:
  """How a leaf is split where it is used, by the first pattern of `TENSOR` that is found in its path."""
  for pattern, axis in TENSOR:
    if re.search(pattern, name):
      if axis is None or len(shape) < -axis or shape[axis] % size("tensor"):
        return P()
      return P(*[None] * (len(shape) + axis), "tensor")
  return P()


# --- specs


def _split(x: Array, *dims: Axes) -> Array:
  """x with its first dimensions split over these axes, where they divide them; as it is, if none does."""
  specs = [_dividing(n, axes) or None for n, axes in zip(x.shape, dims, strict=False)]
  return put(x, P(*specs)) if any(specs) else x


def _split_last(x: Array) -> Array:
  return put(x, P(*[None] * (x.ndim - 1), _dividing(x.shape[-1], ("tensor",)) or None))


@functools.cache
def _tell(n: int, context: int) -> None:
  """Once for each length, while a program is traced."""
  if n % context:
    logger.warning(
      "config.mesh.context=%d does not divide a network's %d frames, rows or tokens: each of its devices does "
      "all of their work there.",
      context,
      n,
    )


def _dividing(n: int, axes: Axes) -> Axes:
  """As many of the axes, from the first on, as together divide n."""
  while size(*axes) > 1 and n % size(*axes):
    axes = axes[:-1]
  return axes if size(*axes) > 1 else ()


def _blocks(b: int, t: int) -> tuple[int, int] | None:
  """Parts that clips and frames are cut into; None if the latter are not."""
  d, c = size(*CLIPS), size("context")
  return None if c == 1 or b % d or t % c else (d, c)


def _mesh() -> jax.sharding.AbstractMesh | None:
  """The mesh of `over`; None outside, where nothing is split."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if "fsdp" in mesh.shape and mesh.size > 1 else None
