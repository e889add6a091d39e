import jax.numpy as jnp
import numpy as np
import pytest
from models import networks, references

import golden
from fbjax import port
from fbjax.models import lpips
from fbjax.port import table


@pytest.fixture(scope="module")
def tensors():
  """In the names of lpips; torchvision's of the same network are `features`."""
  slices = {"0": 1, "3": 2, "6": 3, "8": 4, "10": 5}
  found = {}
  for x in table.layout("lpips", {}).leaves({}):
    group, place, *rest = x.key.split(".")
    theirs = ".".join(["net", f"slice{slices[place]}", place, *rest]) if not rest[1:] else x.key
    found[theirs] = references.weight(theirs, x.shape)
  return found


@pytest.fixture(scope="module")
def distance(tensors):
  params = port.to_flax("lpips", tensors, {})
  forward = networks.call(networks.split(lpips.LPIPS)[0])
  return lambda a, b: forward(params, a, b)


def image(size, seed=0):
  return references.images(2, size, seed).astype(np.float32) / 127.5 - 1


def test_distances_are_those_of_lpips(distance):
  with np.load(references.FILE) as theirs:
    assert golden.error(distance(image(64), image(64, seed=1)), theirs["lpips"]) < 1e-4


def test_an_image_is_at_no_distance_from_itself_and_the_least_one_has_one(distance):
  a, b = image(lpips.LEAST), image(lpips.LEAST, seed=1)
  np.testing.assert_allclose(distance(a, a), 0, atol=1e-9)
  assert jnp.isfinite(distance(a, b)).all() and (distance(a, b) > 1e-5).all()


def test_the_table_names_exactly_the_leaves_of_the_model(tensors):
  leaves = table.layout("lpips", {}).leaves({})
  assert {x.path: x.target for x in leaves} == networks.shapes(lpips.LPIPS)
  # torchvision's file and that of lpips together are the same network.
  plain = {table.layout("lpips", {}).plain(key): x for key, x in tensors.items()}
  others = {"classifier.6.bias": np.zeros(1000, np.float32)}
  _, report = port.fill("lpips", plain | others, {})
  assert set(report.left) == set(others)
