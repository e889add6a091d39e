import jax
import numpy as np
import pytest

from fbjax import errors
from fbjax.models import latte
from fbjax.systems import networks

SIZES = dict(c_in=3, c_out=3, size=8, frames=4, width=16, depth=4, heads=2, classes=3)


def test_a_network_is_drawn_the_same_whatever_is_beside_it():
  spec = networks.NetworkSpec(latte.Latte, SIZES, network="latte", trained=True)
  alone = networks.NetworkSet({"latte": spec}).init(jax.random.key(3))["latte"]
  beside = networks.NetworkSet({"other": spec, "latte": spec}).init(jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, alone, beside["latte"])
  kernels = (x["patches"]["kernel"] for x in (alone, beside["other"]))
  assert np.abs(np.subtract(*kernels)).max() > 0.01


def test_a_size_that_the_network_does_not_have_is_named():
  spec = networks.NetworkSpec(latte.Latte, SIZES | {"dept": 3}, network="latte", trained=True)
  with pytest.raises(
    errors.UserError, match="config.system.latte has no key 'dept'; it takes c_in"
  ):
    networks.NetworkSet({"latte": spec})
