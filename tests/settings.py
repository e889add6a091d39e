"""Places and compiler settings that the tests share."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / ".jax_cache"
SHARED = ROOT.parent / "shared"

# Tests compile far more than they compute. Unoptimised code, of one module and without MLIR's
# emitters, is ready six times sooner.
FAST_COMPILATION = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

# Bytes of a worker beyond which it forgets what it has compiled.
MEMORY = 1_500_000_000

# On the path of programs that tests start, which must do without torch.
BARE = str(ROOT / "tests/bare")
