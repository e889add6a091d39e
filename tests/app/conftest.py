"""A pipe whose network shows whatever it is told, and a server of it."""

import jax
import numpy as np
import PIL.Image
import pytest

import fbjax
import toy
from fbjax import pipe as pipes
from fbjax import sharding
from fbjax.app import session


@pytest.fixture(scope="session")
def pipe(tmp_path_factory):
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipes.build, "make_mesh", lambda config: one)
    yield fbjax.load(toy.wild(str(tmp_path_factory.mktemp("wild"))))


@pytest.fixture(scope="session")
def server(pipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp("uploads")
  return session.serve(pipe, {"workdir": "runs/wild"}, str(folder))


@pytest.fixture(scope="session")
def image(server):
  """A file that was uploaded."""
  noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
  path = f"{server.folder}/cat.png"
  PIL.Image.fromarray(noise).save(path)
  return path
