from collections.abc import Sequence

import jax
import numpy as np
import pytest

from fbjax import errors
from fbjax.models import cogvideox, latte
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


def test_a_size_that_follows_from_others_is_refused_and_not_offered():
  given = {"c_in": 3, "c_out": 3}
  chosen = {name: size for name, size in SIZES.items() if name not in given}
  assert networks.sizes_of("config.system.latte", chosen, given) == SIZES
  with pytest.raises(errors.UserError, match="config.system.latte sets 'c_in', which follows from"):
    networks.sizes_of("config.system.latte", SIZES, {"c_in": 3})
  spec = networks.NetworkSpec(
    latte.Latte, SIZES | {"dept": 3}, network="latte", trained=True, given=tuple(given)
  )
  with pytest.raises(errors.UserError, match="has no key 'dept'; it takes size"):
    networks.NetworkSet({"latte": spec})


def test_sizes_that_do_not_fit_together_are_told_by_their_group():
  spec = networks.NetworkSpec(latte.Latte, SIZES | {"width": 17}, network="latte", trained=True)
  with pytest.raises(
    errors.UserError, match="config.system.latte: a Latte's width, 17, must divide by its heads, 2"
  ):
    networks.NetworkSet({"latte": spec})


@pytest.mark.parametrize(
  ("kind", "value", "sentence"),
  [
    (int, 0, "expected a whole number from 1 up"),
    (int, 8.5, "expected a whole number from 1 up"),
    (int, "a", "expected a whole number from 1 up"),
    (int | None, -1, "expected a whole number from 1 up"),
    (bool, 1, "expected True or False"),
    (Sequence[int], (), "expected a list of whole numbers from 1 up"),
    (Sequence[int], 3, "expected a list of whole numbers from 1 up"),
    (Sequence[int], (1, 0), "expected a list of whole numbers from 1 up"),
    (Sequence[int], "12", "expected a list of whole numbers from 1 up"),
    (tuple[int, int], 30, "expected a list of whole numbers from 1 up"),
    (tuple[int, int], (30,), "expected two whole numbers"),
    (cogvideox.Positions, "rope", "expected one of sincos, rotary, rotary_index"),
    (float, float("nan"), "expected a number above 0"),
    (float, 0.0, "expected a number above 0"),
  ],
)
def test_a_size_that_makes_no_sense_is_named(kind, value, sentence):
  with pytest.raises(errors.UserError, match=f"key is .*; {sentence}"):
    networks.check_size("key", kind, value)


def test_sizes_that_a_network_can_do_without_may_be_nothing():
  networks.check_size("positions", int, 0, empty=True)
  networks.check_size("attention_levels", Sequence[int], (), empty=True)
  networks.check_size("attention_levels", Sequence[int], [0, 2], empty=True)
  networks.check_size("classes", int | None, None)
  with pytest.raises(
    errors.UserError, match="dropout is 1.0; expected a number from 0 up, below 1"
  ):
    networks.check_size("config.system.unet.dropout", float, 1.0)


@pytest.mark.parametrize("sizes", [{"width": 0}, {"classes": 0}, {"mult": -1}])
def test_a_network_of_no_size_is_refused_by_its_key(sizes):
  spec = networks.NetworkSpec(latte.Latte, SIZES | sizes, network="latte", trained=True)
  ((name, value),) = sizes.items()
  with pytest.raises(errors.UserError, match=f"config.system.latte.{name} is {value}; expected"):
    networks.NetworkSet({"latte": spec})
