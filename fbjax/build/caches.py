"""The options of a latent cache."""

from typing import NamedTuple

from fbjax import checks
from fbjax.build import calls
from fbjax.build.calls import Spec


class Cache(NamedTuple):
  """The keys of `config.cache`.

  path: folder, local or in a bucket, of a cache that --mode=cache made: training reads it in place
    of `config.data`. Empty for none. The other keys are of making a cache.
  windows: temporal windows stored of each clip, each read as one epoch would read it.
  draws: noisy versions stored of the given frame, and of the prior, where noise is added to pixels
    before they are encoded. A clip is seen about ten times in the published 20k steps of batch 64
    on 100k clips, and frame and prior are picked independently: 4 of each are 16 pairs.
  dtype: storage dtype of floating-point features, see `fbjax.modes.cache`.
  shard: smallest number of clips per file.
  batch_size: clips that a process encodes at once.
  """

  path: str = ""
  windows: int = 1
  draws: int = 4
  dtype: str = "float16"
  shard: int = 256
  batch_size: int = 8


DTYPES = ("float16", "float32")
SIZED = ("windows", "draws", "shard", "batch_size")
# Keys that identify a cache: with other values it is another cache.
OF_THE_CACHE = ("windows", "draws", "dtype", "shard")


def cache_options(config: Spec) -> Cache:
  """The checked `config.cache`; defaults for configs of earlier versions, which have no such group.

  Raises:
    UserError: for unknown keys and invalid values.
  """
  options = calls.call(Cache, config.get("cache", {}), "cache")
  for name in SIZED:
    checks.whole(f"config.cache.{name}", getattr(options, name))
  calls.choose(DTYPES, options.dtype, "cache.dtype")
  return options
