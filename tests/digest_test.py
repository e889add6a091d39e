import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fbjax import digest, sharding

SPLITS = [
  P(),
  P("data"),
  P(None, "fsdp"),
  P(None, None, "fsdp"),
  P("data", None, "fsdp"),
  P("fsdp", "data"),
]


@pytest.fixture
def mesh():
  return sharding.make_mesh(2, 4)


def numbers(dtype, shape=(8, 12, 16)):
  return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.int8, np.bool_])
def test_the_digest_is_the_same_on_any_mesh(mesh, dtype):
  for block in (50, digest.BLOCK):  # also when rows are cut into blocks
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(digest, "BLOCK", block)
      found = {
        digest.of_tree({"x": jax.device_put(numbers(dtype), NamedSharding(mesh, split))})["x"]
        for split in SPLITS
      }
      assert len(found) == 1


def test_any_flipped_bit_is_found(mesh):
  x = numbers(np.float32, (8, 4))
  expected = digest.of_tree({"x": jnp.asarray(x)})
  for split in (P(), P("data"), P(None, "fsdp")):
    placed = NamedSharding(mesh, split)
    assert digest.differing({"x": jax.device_put(x, placed)}, expected) == []
    for bit in range(32):
      wrong = x.copy()
      wrong.reshape(-1).view(np.uint32)[bit] ^= np.uint32(1 << bit)
      assert digest.differing({"x": jax.device_put(wrong, placed)}, expected) == ["x"], (split, bit)


def test_order_counts(mesh):
  x = numbers(np.float32)
  for other in (x[::-1], x.swapaxes(0, 1), np.roll(x, 1), -x, np.zeros_like(x)):
    assert digest.of_tree([jnp.asarray(other)]) != digest.of_tree([jnp.asarray(x)])


def test_arrays_of_any_size_have_a_digest():
  tree = {"scalar": jnp.float32(1), "none": jnp.zeros((0, 3)), "one": jnp.ones(1)}
  found = digest.of_tree(tree)
  assert digest.differing(tree, found) == []
  assert len({*found.values()}) == 2  # the scalar and the single element have the same bits
  assert digest.of_tree({}) == {}


def test_weights_that_were_hashed_are_not_in_the_memory_of_the_host_as_well():
  """In another order than NumPy's, so that the host makes a copy, as it does of a device's memory."""
  layout = Format(Layout((1, 0)), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  made = jax.jit(lambda: jnp.ones((4096, 4096)), out_shardings=layout)
  x = {"x": jax.block_until_ready(made())}
  before = psutil.Process().memory_info().rss
  assert digest.differing(x, digest.of_tree(x)) == []
  assert psutil.Process().memory_info().rss - before < 2**25


def test_of_small_arrays_no_garbage_is_looked_for(monkeypatch):
  """It takes a second where much is compiled."""
  monkeypatch.setattr(digest.gc, "collect", lambda: pytest.fail("looked for garbage"))
  digest.of_tree({"x": jnp.ones(3)})
