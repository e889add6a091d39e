"""Fixtures of the bridge: both precisions, and the checks of types switched off."""

import jax
import jaxtyping
import numpy as np
import pytest


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
  """The dtype of a test's arrays; float64 exists inside the test only."""
  with jax.enable_x64(request.param == "float64"):
    yield np.dtype(request.param)


@pytest.fixture
def unchecked():
  """Runs as users do, without checked signatures, so that our own errors are met."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
