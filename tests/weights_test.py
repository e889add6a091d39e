import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax import errors, sharding
from fbjax import weights as weights_lib

LEAVES = {
  "networks/unet/down/0/kernel": np.random.default_rng(0).standard_normal((64, 32)),
  "networks/unet/out/bias": np.arange(7.0),
  "left/model.betas": np.ones((), np.int64),
}
DTYPES = {"networks/unet/down/0/kernel": np.float16, "networks/unet/out/bias": np.float64}
LEAVES = {path: x.astype(DTYPES.get(path, x.dtype)) for path, x in LEAVES.items()}


@pytest.fixture(params=["in chunks", "in one file"])
def folder(request, tmp_path):
  about = {"parts": {"unet": {}}}
  if request.param == "in chunks":
    weights_lib.write(str(tmp_path), LEAVES, lambda path, x: None, about)
  else:
    weights_lib.write_file(str(tmp_path), LEAVES, about)
  return str(tmp_path)


def wanted(mesh):
  shapes = {p: jax.ShapeDtypeStruct(x.shape, jnp.float32) for p, x in LEAVES.items() if x.ndim}
  return sharding.placed(shapes, sharding.tree(shapes, mesh))


def test_leaves_come_back_in_the_dtype_and_on_the_mesh_that_is_asked_for(folder):
  for mesh in (sharding.make_mesh(1, 1, devices=jax.devices()[:1]), sharding.make_mesh(2, 4)):
    found = weights_lib.read(folder, wanted(mesh))
    for path, x in found.items():
      assert x.dtype == jnp.float32 and x.sharding.mesh.size == mesh.size
      np.testing.assert_array_equal(x, LEAVES[path].astype(np.float32))
  for path, x in LEAVES.items():
    leaf = weights_lib.read_leaf(folder, path)
    assert leaf.dtype == x.dtype
    np.testing.assert_array_equal(leaf, x)
  assert {p: tuple(x.shape) for p, x in weights_lib.stored(folder).items()} == {
    p: x.shape for p, x in LEAVES.items()
  }


def test_no_flipped_bit_becomes_a_weight(folder):
  """Every one is refused, or changes nothing."""
  mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  files = [f for f in sorted(pathlib.Path(folder).rglob("*")) if f.is_file() and f.stat().st_size]
  rng, refused = random.Random(0), 0
  for _ in range(40):
    file = rng.choice(files)
    whole = file.read_bytes()
    place = rng.randrange(8 * len(whole))
    flipped = bytearray(whole)
    flipped[place // 8] ^= 1 << place % 8
    file.write_bytes(flipped)
    try:
      found = weights_lib.read(folder, wanted(mesh))
      for path, x in found.items():
        np.testing.assert_array_equal(x, LEAVES[path].astype(np.float32))
    except errors.UserError as error:
      assert folder in str(error) and "again" in str(error)
      refused += 1
    file.write_bytes(whole)
  assert refused > 10


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path):
  def full(path, chunk):
    raise OSError(28, "No space left on device")

  with pytest.raises(errors.UserError, match="cannot write weights to .*no space left on device"):
    weights_lib.write(str(tmp_path), LEAVES, full, {"parts": {}})
  assert not list(tmp_path.iterdir())
