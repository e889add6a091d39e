"""Where arrays live: a (data, fsdp) device mesh, and one table of rules for weights.

Batches are split over both axes. Weights are split over `fsdp` alone, so that a state of N bytes
costs N / fsdp on each device. Each block of a network gathers its weights when it runs, in the dtype
it computes in, and what flows between blocks stays split over the clips: so each device does the work
of its own clips, all of it and no other. Left to itself, the partitioner splits channels instead.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from flax import nnx
from jax import ad_checkpoint
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fbjax import errors, trees

Rules = Sequence[tuple[str, P]]
M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")
Given = ParamSpec("Given")

# Below this a split costs more in messages than it saves in memory.
SMALLEST_SPLIT = 2**10
BLOCK_INPUT = "block_input"  # what a policy of `jax.checkpoint` knows it by


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with axes `data` and `fsdp`; `data=-1` takes the devices that `fsdp` leaves.

  Raises:
    UserError: when the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  n = len(devices)
  if data == -1 and fsdp > 0 and n % fsdp == 0:
    data = n // fsdp
  if data < 1 or fsdp < 1 or data * fsdp != n:
    raise errors.UserError(
      f"config.mesh.data={data} x config.mesh.fsdp={fsdp} does not make {n} devices; "
      f"choose a fsdp that divides {n} and data=-1"
    )
  return jax.make_mesh(
    (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def local(mesh: Mesh) -> Mesh:
  """A mesh of this process's devices alone, split as far as the whole one is."""
  devices = mesh.local_devices
  return make_mesh(fsdp=math.gcd(mesh.shape["fsdp"], len(devices)), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, P())


def batch(mesh: Mesh) -> NamedSharding:
  """The first axis is split over all devices."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def tree(abstract: Any, mesh: Mesh, rules: Rules = ()) -> Any:
  """A sharding for every leaf: the first rule whose regex is found in the leaf's path wins.

  Without one, the largest dimension that `fsdp` divides is split; failing that, or for small leaves,
  the leaf is replicated. Optimizer moments and EMA end in their parameter's path and follow it.

  Args:
    abstract: tree of arrays or ShapeDtypeStructs.
    mesh: from `make_mesh`.
    rules: (regex, PartitionSpec) pairs, tried in order on paths such as `params/unet/mid/kernel`.
  """

  def leaf_sharding(name: str, leaf: Any) -> NamedSharding:
    for pattern, spec in rules:
      if re.search(pattern, name):
        return NamedSharding(mesh, spec)
    return NamedSharding(mesh, _largest_dimension(leaf.shape, mesh.shape["fsdp"]))

  return trees.map_paths(leaf_sharding, abstract)


def placed(shapes: Any, shardings: Any) -> Any:
  """Shapes that know where they are to be, as a restore wants them."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def _largest_dimension(shape: tuple[int, ...], fsdp: int) -> P:
  fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
  if fsdp == 1 or not fitting or np.prod(shape) < SMALLEST_SPLIT:
    return P()
  # The last of equals: output channels, which keeps the contraction of a matmul whole.
  axis = max(fitting, key=lambda axis: (shape[axis], axis))
  return P(*[None] * axis, "fsdp")


# --- inside a compiled program


def over(mesh: Mesh | None, f: Callable[Given, T]) -> Callable[Given, T]:
  """f, to be compiled for a mesh: within it, `blockwise` and the like split over that."""
  if mesh is None:
    return f

  @functools.wraps(f)
  def traced(*args: Given.args, **kwargs: Given.kwargs) -> T:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return f(*args, **kwargs)

  return traced


def split_clips(x: jax.Array) -> jax.Array:
  """The same array, its clips (first axis) spread over all devices, if these divide them."""
  mesh = _mesh()
  if mesh is None or x.shape[0] % mesh.size:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(("data", "fsdp"))))


def rows_here(n: int) -> int | None:
  """How many of n rows a device has; None if the devices do not divide them."""
  mesh = _mesh()
  size = 1 if mesh is None else mesh.size
  return None if n % size else n // size


def per_device(f: Callable[..., jax.Array], *xs: jax.Array) -> jax.Array:
  """f of rows, which each device does for its own: for kernels that the partitioner cannot split."""
  mesh = _mesh()
  if mesh is None:
    return f(*xs)
  rows = P(("data", "fsdp"))
  return jax.shard_map(f, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(*xs)


def platform() -> str:
  """Of the devices that a program is traced for: cpu, gpu or tpu."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def full_rows(n: int) -> np.ndarray:
  """Rows of n clips, the last repeated until the devices divide them."""
  mesh = _mesh()
  size = 1 if mesh is None else mesh.size
  return np.minimum(np.arange(-(-n // size) * size), n - 1)


def whole(module: M) -> M:
  """The module with its weights on every device, kernels in the dtype that they are used in.

  Their gradient comes back summed and split as the weights are.
  """
  mesh = _mesh()
  if mesh is None or mesh.shape["fsdp"] == 1:
    return module
  graph, state = nnx.split(module)
  used = {
    "/".join(map(str, (*path, "kernel"))): layer.dtype or np.float32
    for path, layer in nnx.iter_modules(module)
    if isinstance(layer, nnx.Linear | nnx.Conv)
  }
  params = trees.map_paths(
    lambda name, x: _gather(mesh, x.astype(used.get(name, x.dtype))), nnx.to_pure_dict(state)
  )
  return nnx.merge(graph, params)


def blockwise(
  call: Callable[..., jax.Array], wrap: Callable[[Callable], Callable] | None = None
) -> Callable[..., jax.Array]:
  """Makes of `call(block, x, *args)` one that gathers the block's weights and keeps x split over clips.

  `wrap` goes around all of it: behind `jax.checkpoint`, weights are gathered once more on the way back.
  """

  def run(block: nnx.Module, x: jax.Array, *args: Any) -> jax.Array:
    x = ad_checkpoint.checkpoint_name(split_clips(x), BLOCK_INPUT)
    return split_clips(call(whole(block), x, *args))

  return run if wrap is None else wrap(run)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(mesh: jax.sharding.AbstractMesh, x: jax.Array) -> jax.Array:
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def _gather_forward(mesh: jax.sharding.AbstractMesh, x: jax.Array) -> tuple[jax.Array, None]:
  return _gather(mesh, x), None


def _gather_backward(mesh: jax.sharding.AbstractMesh, _: None, g: jax.Array) -> tuple[jax.Array]:
  # By itself the gradient would be wanted whole, like the weight.
  split = NamedSharding(mesh, _largest_dimension(g.shape, mesh.shape["fsdp"]))
  return (jax.lax.with_sharding_constraint(g, split),)


_gather.defvjp(_gather_forward, _gather_backward)


def _mesh() -> jax.sharding.AbstractMesh | None:
  """The mesh of `over`; None outside, where nothing is split."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if "fsdp" in mesh.shape and mesh.size > 1 else None


# --- from the host and back


def own_rows(x: jax.Array) -> np.ndarray:
  """This process's share of a global batch: the rows that it gave to `put_batch`."""
  pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
  return np.concatenate([pieces[first] for first in sorted(pieces)])


def put_batch(local: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Makes global arrays of this process's share of a batch.

  Raises:
    UserError: when the batch cannot be split evenly over the mesh.
  """
  sharding = batch(mesh)
  here = len(mesh.local_devices)
  for name, value in local.items():
    if len(value) % here:
      raise errors.UserError(
        f"batch[{name!r}] has {len(value)} clips in this process, which {here} local devices "
        f"do not divide; make config.train.batch_size a multiple of {mesh.size}"
      )
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}
