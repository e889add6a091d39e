"""Where arrays live: a (data, fsdp) device mesh, and one table of rules for weights.

Batches are split over both axes. Weights are split over `fsdp` alone, so that a state of N bytes
costs N / fsdp on each device.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fbjax import errors, trees

Rules = Sequence[tuple[str, P]]

# Below this a split costs more in messages than it saves in memory.
SMALLEST_SPLIT = 2**10


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
