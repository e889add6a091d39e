"""Arrays stay where they are, weights come and gradients go as the mesh has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fbjax import compiled, partition, sharding
from fbjax.models import layers


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(data=2, context=2, tensor=2)


def compile(mesh, f, *args):
  return jax.jit(partition.over(mesh, f)).lower(*args).compile()


def test_clips_and_frames_become_one_axis_and_two_again_without_a_message(mesh):
  x = jnp.arange(4.0 * 6 * 5).reshape(4, 6, 5)
  x = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"), "context")))
  through = compile(mesh, lambda x: partition.per_frame(lambda row: 2 * row, x), x)
  assert not compiled.collectives(through)
  np.testing.assert_array_equal(through(x), 2 * x)
  rows = compile(mesh, partition.merged, x)(x)
  assert {tuple(row) for row in np.asarray(rows)} == {
    tuple(row) for row in np.asarray(x).reshape(24, 5)
  }
  assert {shard.data.shape for shard in rows.addressable_shards} == {(6, 5)}


def test_what_does_not_divide_stays_in_order_and_is_told(mesh, caplog):
  x = jnp.arange(3.0 * 5 * 2).reshape(3, 5, 2)
  rows = jax.jit(partition.over(mesh, partition.merged))(x)
  np.testing.assert_array_equal(rows, x.reshape(15, 2))
  np.testing.assert_array_equal(jax.jit(partition.over(mesh, partition.video))(x), x)
  assert "config.mesh.context=2 does not divide a network's 5 frames" in caplog.text


@pytest.mark.parametrize(("spread", "shape", "rows", "queries", "heads"), [
  (partition.OF_FRAMES, (8, 16, 4), 2, 16, 2),
  (partition.OF_FRAMES, (8, 16, 5), 1, 16, 5),  # heads that do not divide: other frames
  (partition.OF_CLIPS, (2, 16, 4), 1, 8, 2),
  (partition.OF_CLIPS, (2, 16, 5), 1, 4, 5),  # other queries
  (partition.APART, (8, 16, 4), 1, 16, 4),
  (partition.APART, (2, 16, 4), 1, 16, 4),
])  # fmt: skip
def test_an_attention_is_shared_by_rows_queries_and_heads(
  mesh, spread, shape, rows, queries, heads
):
  share = partition.over(mesh, lambda: partition.of_attention(spread, (*shape, 8)))()
  assert share[:3] == (rows, queries, heads) and not share.whole


def test_an_attention_whose_rows_do_not_divide_is_left_to_the_partitioner(mesh):
  assert partition.over(mesh, lambda: partition.of_attention(partition.APART, (3, 4, 2, 8)))().whole


def test_parts_of_a_product_are_its_slices(mesh):
  linear = layers.linear(8, 12, dtype=jnp.float32, rngs=layers.Keys(jax.random.key(0)))
  x = jax.random.normal(jax.random.key(1), (4, 8))
  parts = jax.jit(partition.over(mesh, lambda x: partition.parts(linear, x, 3)))(x)
  for ours, theirs in zip(parts, jnp.split(linear(x), 3, -1), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
