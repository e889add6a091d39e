"""Where arrays live: a device mesh, and how weights and batches are laid out on it.

Batches are split over the axes `data` and `fsdp`. Weights, with their optimizer state and average, are
split over `fsdp` and `tensor`: a state of N bytes costs N / (fsdp * tensor) on each device. What the axes
share of the work inside a program is `partition`'s.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fbjax import errors

# Those that talk to each other most come last: neighbours, where devices are near each other.
AXES = ("data", "fsdp", "context", "tensor")
CLIPS = ("data", "fsdp")
WEIGHTS = ("tensor", "fsdp")  # in this order what `fsdp` gathers is what a device of `tensor` uses

# Below this a split costs more in messages than it saves in memory.
SMALLEST_SPLIT = 2**10


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  context: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh with four axes; `data=-1` takes the devices that the others leave.

  Args:
    data: size of the axis that splits clips; weights are replicated along it.
    fsdp: of the axis that splits clips and weights.
    context: of the axis that splits the frames of a clip.
    tensor: of the axis that splits weights, and heads and channels of a block.
    devices: all of the job, unless given.

  Raises:
    UserError: when the axes do not multiply to the number of devices, or when devices that share a
      clip (along `context` and `tensor`) belong to several processes.
  """
  devices = jax.devices() if devices is None else devices
  n, others = len(devices), (fsdp, context, tensor)
  if data == -1 and min(others) > 0 and n % math.prod(others) == 0:
    data = n // math.prod(others)
  sizes = (data, *others)
  if min(sizes) < 1 or math.prod(sizes) != n:
    named = " x ".join(f"config.mesh.{axis}={n}" for axis, n in zip(AXES, sizes, strict=True))
    raise errors.UserError(
      f"{named} does not make {n} devices; choose fsdp, context and tensor whose product divides {n}, "
      "and data=-1"
    )
  mesh = Mesh(arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))
  of_clips = _processes(mesh)
  if (of_clips != of_clips[:, :1]).any():
    raise errors.UserError(
      f"config.mesh.context={context} x config.mesh.tensor={tensor} reaches over several processes, each of "
      "which reads clips of its own; choose two whose product divides the devices of one process"
    )
  return mesh


def arranged(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
  """Devices in an array of the sizes of the axes: neighbours along an axis are near each other.

  Those that share a clip are of one process, where that has enough of them.
  """
  data, fsdp, *shared = sizes
  processes = len({device.process_index for device in devices})
  here, within = len(devices) // processes, math.prod(shared)
  # By itself an axis may not be a part of a dimension of a TPU's torus, nor two axes make up a host.
  if processes == 1 or within == 1 or here % within:
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  own_fsdp = math.gcd(fsdp, here // within)
  own_data = here // within // own_fsdp
  return mesh_utils.create_hybrid_device_mesh(
    (own_data, own_fsdp, *shared),
    (data // own_data, fsdp // own_fsdp, 1, 1),
    devices,
    process_is_granule=True,
    allow_split_physical_axes=True,
  )


def _processes(mesh: Mesh) -> np.ndarray:
  """The processes that the devices of each part of a batch belong to, one row a part."""
  return np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(
    clip_shares(mesh), -1
  )


def local(mesh: Mesh) -> Mesh:
  """A mesh of this process's devices; `fsdp` is the whole mesh's as far as it divides them."""
  devices = mesh.local_devices
  return make_mesh(fsdp=math.gcd(mesh.shape["fsdp"], len(devices)), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def batch(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: its first axis split over `data` and `fsdp`."""
  return NamedSharding(mesh, P(CLIPS))


def clip_shares(mesh: Mesh) -> int:
  """Into how many parts the mesh splits a batch of clips."""
  return math.prod(mesh.shape[axis] for axis in CLIPS)


def tree(abstract: Any, mesh: Mesh) -> Any:
  """A sharding for every leaf of a tree of arrays or ShapeDtypeStructs, as `of_weight` has it."""
  return jax.tree.map(lambda x: NamedSharding(mesh, of_weight(x.shape, mesh)), abstract)


def of_weight(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """How a weight of this shape is split between steps.

  The largest dimension that `fsdp` and `tensor` divide is split, or else that which one of them does;
  failing that, or for small ones, each device has all of it. Optimizer moments and averages have the
  shapes of their parameters, and so follow them.
  """
  axes = tuple(axis for axis in WEIGHTS if mesh.shape[axis] > 1)
  if not axes or np.prod(shape) < SMALLEST_SPLIT:
    return P()
  for some in dict.fromkeys((axes, axes[-1:], axes[:1])):
    parts = math.prod(mesh.shape[axis] for axis in some)
    if fitting := [axis for axis, size in enumerate(shape) if size % parts == 0]:
      # The last of equals: output channels, which keeps the contraction of a matmul whole.
      axis = max(fitting, key=lambda axis: (shape[axis], axis))
      return P(*[None] * axis, some if len(some) > 1 else some[0])
  return P()


def placed(shapes: Any, shardings: Any) -> Any:
  """The shapes as ShapeDtypeStructs with these shardings, as a restore takes them."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


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
  here = int((_processes(mesh)[:, 0] == jax.process_index()).sum())
  for name, value in local.items():
    if len(value) % here:
      raise errors.UserError(
        f"batch[{name!r}] has {len(value)} clips in this process, which do not divide into the {here} parts "
        f"of its devices; make config.train.batch_size a multiple of {clip_shares(mesh)}"
      )
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}
