"""Looks at every key of a config before anything is loaded."""

import inspect
from collections.abc import Mapping

from fbjax import checks, errors, tracker
from fbjax.build import caches, calls, samplers, systems, tables, training
from fbjax.build.calls import Spec
from fbjax.data import pipeline
from fbjax.train import loop, optim


def check(config: Spec) -> None:
  """Looks at every key of a config, before anything is loaded.

  Raises:
    UserError: for a group or a key that does not exist, a name that no table has, a number that
      makes no sense.
  """
  groups = (*tables.TABLES, *tables.GROUPS, "sampling", "trainable", "start", "port", "prior")
  for group in groups:
    if not isinstance(config.get(group), Mapping):
      raise errors.UserError(
        f"the config has no group {group!r}, which configs/common.py gives every config: add it, or "
        "take the version of the program that the config was written for"
      )
  for key in ("seed", "precision", "weights", "prior_run"):
    if key not in config:
      raise errors.UserError(f"the config has no key {key!r}; see configs/common.py")
  for group, table in tables.TABLES.items():
    spec = {k: v for k, v in config[group].items() if k != "name"}
    if group == "bridge" and config[group].get("name") == "diffusion":
      calls.check_keys(spec, (), "bridge", "diffusion")
      continue
    fn = calls.choose(table, config[group].get("name"), f"{group}.name")
    own = [
      name for name in inspect.signature(fn).parameters if name not in tables.GIVEN.get(group, ())
    ]
    extra = tables.EXTRA.get(group, ())
    calls.check_keys(spec, [*own, *extra], group, config[group]["name"])
    calls.check_missing(spec, [*calls.required(fn, own), *tables.NEEDED.get(group, ())], group)
    calls.check_types(fn, {k: v for k, v in spec.items() if k not in extra}, group)
  for group, fn in tables.GROUPS.items():
    arguments = inspect.signature(fn).parameters.items()
    own = [name for name, x in arguments if x.annotation in tables.PLAIN]
    takes = [name for name in own if name not in tables.GIVEN.get(group, ())]
    calls.check_keys(config[group], takes, group)
    calls.check_missing(config[group], calls.required(fn, takes), group)
    calls.check_types(fn, config[group], group)
  for key in ("weights", "prior_run"):
    if not isinstance(config[key], str):
      raise errors.UserError(f"config.{key} is {config[key]!r}; expected a folder, or nothing")
  for key in ("codec", "sampler", "grid"):
    group = "system" if key == "codec" else "sampling"
    if not isinstance(config[group].get(key), Mapping):
      raise errors.UserError(
        f"config.{group}.{key} is {config[group].get(key)!r}; expected a group with a name"
      )
  checks.finite(config)
  if config["prior_run"] and not config["prior"]:
    raise errors.UserError(
      "config.prior_run names a neural prior, but this config puts none in front: take one that "
      "does, such as ucf101_bridge_prior.py or :from_prior, or leave it empty"
    )
  checks.whole("config.seed", config["seed"], 0, checks.SEED)
  calls.choose(tables.PRECISIONS, config["precision"], "precision")
  loop.check_numbers(**config["train"])
  tracker.names(config["train"].get("writers", ""))
  pipeline.check_numbers(**config["loader"])
  calls.call(optim.make_optimizer, config["optim"], "optim", steps=config["train"]["steps"])
  systems.clip_size(config)
  systems.buckets(config)
  caches.cache_options(config)
  training.check_weight(config["objective"])
  samplers.for_sampling(config)
  samplers.check_rescale(samplers.sampling_options(config))
  form = training.make_formulation(config)
  times = samplers.make_times(config["sampling"]["grid"], config["sampling"]["steps"], form.steps)
  samplers.check_sampler(config["sampling"]["sampler"], form.process, times)
