"""What every test runs under: eight CPU devices, checked shapes, strict JAX, a compilation cache."""

import os
import pathlib

# Tests compile far more than they compute: unoptimised code is ready four times sooner.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILATION} --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("fbjax", "typechecker.check")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of goldens and real clips beside the checkout; tests that need it skip without it."""
  if not SHARED.exists():
    pytest.skip("no ../shared beside this checkout")
  return SHARED
