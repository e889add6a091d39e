"""The options of a latent cache."""

from typing import NamedTuple

from fbjax import checks
from fbjax.build import calls
from fbjax.build.calls import Spec


class Cache(NamedTuple):
  """The keys of `config.cache`.

  path: a folder, here or in a bucket, that --mode=cache wrote, which a training reads in place of `config.data`; empty for
    none. What follows is of making one, and a training from it need not say it again.
  windows: of each clip, each read as one epoch would read it.
  draws: noisy versions of the given frame, and of the prior, where pixels are noisy before they are
    encoded. A clip is seen about ten times in the published 20k steps of batch 64 on 100k clips, and
    frame and prior are picked apart: 4 of each are 16 pairs.
  dtype: of features that are floats: see `fbjax.modes.cache`.
  shard: clips of a file, at least.
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
# What a cache that was made otherwise is another one by.
OF_THE_CACHE = ("windows", "draws", "dtype", "shard")


def cache_options(config: Spec) -> Cache:
  """`config.cache`, which configs of earlier versions have not.

  Raises:
    UserError: for keys that do not exist, and values that make no sense.
  """
  options = calls.call(Cache, config.get("cache", {}), "cache")
  for name in SIZED:
    checks.whole(f"config.cache.{name}", getattr(options, name))
  calls.choose(DTYPES, options.dtype, "cache.dtype")
  return options
