"""What every test runs under: eight CPU devices, checked shapes, strict JAX, a compilation cache."""

import gc
import os
import pathlib
from collections.abc import Iterator

import settings

os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} {settings.FAST_COMPILATION}"
  " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PYTHONPATH"] = os.pathsep.join(
  [settings.BARE, *filter(None, [os.environ.get("PYTHONPATH")])]
)

import jax
import jaxtyping
import psutil
import pytest
from absl.testing import flagsaver

jaxtyping.install_import_hook("fbjax", "typechecker.check")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_compilation_cache_dir", str(settings.CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of goldens and real clips beside the checkout; tests that need it skip without it."""
  if not settings.SHARED.exists():
    pytest.skip("no ../shared beside this checkout")
  return settings.SHARED


@pytest.fixture(autouse=True)
def flags_are_of_one_test() -> Iterator[None]:
  """Puts back what a test parsed: the next one in this worker was told nothing yet."""
  with flagsaver.flagsaver():
    yield


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
  """Between two files, drops what a worker has compiled once it takes much memory."""
  ends = nextitem is None or nextitem.path != item.path
  if ends and psutil.Process().memory_info().rss > settings.MEMORY:
    jax.clear_caches()
    gc.collect()
