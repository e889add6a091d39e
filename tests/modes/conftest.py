"""Runs at toy size that the tests of several modes share."""

import jax
import numpy as np
import pytest
from PIL import Image

import toy
from fbjax import build, sharding
from fbjax.modes import train


@pytest.fixture(autouse=True, scope="module")
def one_device():
  """Programs for eight devices take minutes to compile; one test below asks for them."""
  with pytest.MonkeyPatch.context() as patch:
    one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
    patch.setattr(build, "make_mesh", lambda config, devices=None: one)
    yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):
  workdir = tmp_path_factory.mktemp("trained")
  train.train(toy.config(), str(workdir))
  return workdir


@pytest.fixture
def image(tmp_path):
  path = tmp_path / "cat.png"
  pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return path
