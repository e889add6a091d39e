import jax
import numpy as np

from fbjax.models import latte
from fbjax.port import convert
from fbjax.systems import networks

SIZES = dict(c_in=3, c_out=3, size=8, frames=4, width=16, depth=4, heads=2, classes=3)


def test_a_leaf_drawn_alone_is_that_of_the_whole_network():
  part = networks.NetworkSpec(latte.Latte, SIZES, network="latte", trained=True)
  whole = convert.flatten(networks.NetworkSet({"latte": part}).init(jax.random.key(3))["latte"])
  key = jax.random.split(jax.random.key(3), 1)[0]  # one for each network
  names = ["pairs/spatial/qkv/kernel", "label/embedding", "positions/time", "time/up/bias"]
  drawn = networks.fresh(part, key, names)
  assert list(drawn) == sorted(names)
  for name, leaf in drawn.items():
    assert leaf.shape == whole[name].shape and leaf.dtype == whole[name].dtype
    np.testing.assert_allclose(leaf, whole[name], rtol=1e-6, err_msg=name)


def test_only_what_a_leaf_needs_is_computed():
  program = jax.make_jaxpr(lambda x: (x + 1, (x * 2) @ x, x - 3))(np.ones((3, 3), np.float32))
  lines = [str(line.primitive) for line in networks.only(program, 1).jaxpr.eqns]
  assert lines == ["mul", "dot_general"]
