import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fbjax import errors, sharding


@pytest.fixture
def mesh():
  return sharding.make_mesh(data=2, fsdp=4)


def test_data_axis_takes_the_devices_that_the_others_leave():
  sizes = {"data": 4, "fsdp": 2, "context": 1, "tensor": 1}
  assert dict(sharding.make_mesh(data=-1, fsdp=2).shape) == sizes
  sizes = {"data": 2, "fsdp": 1, "context": 2, "tensor": 2}
  assert dict(sharding.make_mesh(data=-1, context=2, tensor=2).shape) == sizes


@pytest.mark.parametrize("sizes", [(3, 2), (-1, 3), (0, 8), (-1, 0), (-1, 2, 3), (2, 2, 2, 2)])
def test_a_mesh_that_does_not_fit_says_so(sizes):
  with pytest.raises(ValueError, match="does not make 8 devices"):
    sharding.make_mesh(*sizes)


@dataclasses.dataclass(frozen=True)
class Device:
  """Of four hosts, each of which has a square of two by two: rows of the whole have two hosts."""

  id: int
  platform: str = "cpu"
  device_kind: str = "cpu"

  @property
  def process_index(self):
    row, column = divmod(self.id, 4)
    return 2 * (row // 2) + column // 2


@pytest.mark.parametrize(
  "sizes", [(4, 1, 2, 2), (1, 4, 4, 1), (2, 2, 1, 4), (2, 4, 2, 1), (1, 8, 1, 2)]
)
def test_a_host_shares_clips_whichever_devices_it_has(sizes):
  found = sharding.arranged(sizes, [Device(i) for i in range(16)])
  assert found.shape == sizes and len(set(found.ravel())) == 16
  for sharing in found.reshape(sizes[0] * sizes[1], -1):
    assert len({device.process_index for device in sharing}) == 1


def test_devices_that_share_a_clip_are_those_of_one_process(monkeypatch):
  of_clips = lambda mesh: (np.arange(8) // 4).reshape(sharding.clip_shares(mesh), -1)  # noqa: E731
  monkeypatch.setattr(sharding, "_processes", of_clips)
  assert sharding.make_mesh(context=2, tensor=2).shape["data"] == 2
  with pytest.raises(
    errors.UserError, match="context=8 x config.mesh.tensor=1 reaches over several"
  ):
    sharding.make_mesh(context=8)


def test_weights_are_split_along_their_largest_divisible_dimension(mesh):
  shapes = {
    "wide": jnp.zeros((3, 3, 16, 64)),
    "tall": jnp.zeros((128, 16)),
    "square": jnp.zeros((32, 32)),
    "odd": jnp.zeros((1025, 3)),
    "small": jnp.zeros((64,)),
  }
  specs = {k: s.spec for k, s in sharding.tree(shapes, mesh).items()}
  assert specs["wide"] == P(None, None, None, "fsdp")
  assert specs["tall"] == P("fsdp")
  assert specs["square"] == P(None, "fsdp")
  assert specs["odd"] == P()
  assert specs["small"] == P()


def test_weights_are_split_over_tensor_as_well_and_where_that_does_not_divide_over_one_axis():
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  shapes = {"both": (128, 16), "one": (1020, 3), "other": (1026, 3), "none": (1025, 3)}
  specs = {k: sharding.of_weight(shape, mesh) for k, shape in shapes.items()}
  assert specs == {
    "both": P(("tensor", "fsdp")),
    "one": P("fsdp"),
    "other": P("tensor"),
    "none": P(),
  }


def test_clips_are_shared_by_the_devices_of_context_and_tensor():
  mesh = sharding.make_mesh(data=2, context=2, tensor=2)
  clips = np.arange(4 * 3, dtype=np.int32).reshape(4, 3)
  batch = sharding.put_batch({"x": clips}, mesh)
  np.testing.assert_array_equal(batch["x"], clips)
  assert {s.data.shape for s in batch["x"].addressable_shards} == {(2, 3)}
  np.testing.assert_array_equal(sharding.own_rows(batch["x"]), clips)


def test_a_batch_is_spread_over_all_devices_in_order(mesh):
  clips = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
  batch = sharding.put_batch({"x": clips}, mesh)
  np.testing.assert_array_equal(batch["x"], clips)
  assert {s.data.shape for s in batch["x"].addressable_shards} == {(2, 3)}


def test_a_batch_that_does_not_divide_says_so(mesh):
  with pytest.raises(ValueError, match=r"'x'.*6 clips.*train.batch_size a multiple of 8"):
    sharding.put_batch({"x": np.zeros((6, 2))}, mesh)
