"""The only place where names in a config become objects. Below here nobody sees a ConfigDict.

Every group of a config is splatted into a constructor, so its keys are that constructor's
arguments; an unknown one is an error that lists those that exist.
"""

from fbjax.build.caches import OF_THE_CACHE, cache_options
from fbjax.build.calls import bind
from fbjax.build.check import check
from fbjax.build.samplers import (
  Sampling,
  check_rescale,
  for_sampling,
  make_sample,
  sampling_options,
)
from fbjax.build.systems import (
  buckets,
  clip_size,
  is_fixed,
  make_networks,
  make_system,
  make_tokenizer,
  of_prior_run,
  refuse_buckets,
)
from fbjax.build.tables import DTYPES, GROUPS, SOURCES, TABLES
from fbjax.build.training import (
  make_batches,
  make_formulation,
  make_loss,
  make_mesh,
  make_optimizer,
  make_source,
  set_precision,
)

__all__ = [
  "DTYPES",
  "GROUPS",
  "OF_THE_CACHE",
  "SOURCES",
  "TABLES",
  "Sampling",
  "bind",
  "buckets",
  "cache_options",
  "check",
  "check_rescale",
  "clip_size",
  "for_sampling",
  "is_fixed",
  "make_batches",
  "make_formulation",
  "make_loss",
  "make_mesh",
  "make_networks",
  "make_optimizer",
  "make_sample",
  "make_source",
  "make_system",
  "make_tokenizer",
  "of_prior_run",
  "refuse_buckets",
  "sampling_options",
  "set_precision",
]
