"""A pipe whose network shows whatever it is told."""

import jax
import pytest

import fbjax
import toy
from fbjax import pipe as pipes
from fbjax import sharding


@pytest.fixture(scope="session")
def pipe(tmp_path_factory):
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipes.build, "make_mesh", lambda config: one)
    yield fbjax.load(toy.wild(str(tmp_path_factory.mktemp("wild"))))
