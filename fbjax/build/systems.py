"""The networks of a config, and which of their weights train."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fbjax import checks, errors, start, weights
from fbjax.build import calls, tables
from fbjax.build.calls import Spec
from fbjax.data import buckets as buckets_lib
from fbjax.systems import adapters, base, codecs, networks, neural_prior


def make_tokenizer(config: Spec) -> Any:
  if "length" in config["tokenizer"]:  # A text has a beginning and an end.
    checks.whole("config.tokenizer.length", config["tokenizer"]["length"], least=2, most=2**16)
  return calls.make(tables.TOKENIZERS, config["tokenizer"], "tokenizer")


def make_system(config: Spec, tokenizer: Any | None) -> base.System:
  """The system of a config, with LoRA if `config.trainable.lora` names kernels.

  Without a tokenizer it cannot encode text. The list of leaves in the folder `config.weights` is
  read: it decides which leaves are newly initialised, and so have to train in full.
  """
  return calls.call(
    make_trainable, config["trainable"], "trainable", config=config, tokenizer=tokenizer
  )


def make_trainable(
  config: Spec,
  tokenizer: Any | None,
  *,
  whole: Sequence[str] = (".*",),
  lora: Sequence[str] = (),
  rank: int | None = None,
  scale: float | None = None,
) -> base.System:
  """`make_system` with the options of `config.trainable`.

  Args:
    config, tokenizer: of the system.
    whole: leaves that train in full: regexes searched in `network/leaf`, and "new" for every newly
      initialised leaf. Without LoRA, the optimizer does not update the others.
    lora: regexes of kernels that get LoRA; then every leaf that neither option names is frozen.
    rank, scale: of LoRA; None is 16 and 1.

  Raises:
    UserError: for a regex that matches nothing, or a newly initialised leaf that would not train.
  """
  whole = checks.patterns("config.trainable.whole", whole)
  lora = checks.patterns("config.trainable.lora", lora)
  if not lora and (rank is not None or scale is not None):
    raise errors.UserError(
      "config.trainable.rank and .scale are of low-rank additions, and config.trainable.lora names no "
      "kernels to get any: take a config with :lora, or leave them out"
    )
  rank = checks.whole("config.trainable.rank", 16 if rank is None else rank)
  scale = checks.number("config.trainable.scale", 1.0 if scale is None else scale, above=0)
  system = make_networks(config, tokenizer)
  elsewhere = of_prior_run(config, system)
  system.starts = start.sources(system, config["weights"], config["start"], elsewhere)
  names, anew = trained_leaves(config, system)
  trained = adapters.chosen(names, whole, anew)
  adapters.check_anew(trained, anew)
  if not trained and not lora:
    raise errors.UserError(
      "config.trainable names nothing, in neither whole nor lora: all would stay"
    )
  if not lora:
    return system
  added = adapters.chosen(names, lora, anew, "lora")
  if set(added) <= set(trained):
    raise errors.UserError(
      "config.trainable.lora names only kernels that config.trainable.whole trains as they are: nothing "
      "would get additions. Set whole=('new',) beside it"
    )
  return adapters.LoRA(system, added=added, whole=trained, rank=rank, scale=scale)


def trained_leaves(config: Spec, system: networks.NetworkSet) -> tuple[list[str], set[str]]:
  """Leaves of the trained networks, without constants, and those of them newly initialised."""
  names = [
    f"{name}/{leaf}"
    for name, network in system.networks.items()
    if network.trained
    for leaf in system.shapes(name)
  ]
  names = [name for name in names if not is_fixed(system, name)]
  anew = start.started_anew(system, system.starts, config["weights"], config["start"])
  return names, anew & set(names)


def is_fixed(system: base.System, name: str) -> bool:
  return any(re.search(pattern, name) for pattern in system.fixed)


def make_networks(config: Spec, tokenizer: Any | None) -> networks.NetworkSet:
  """The networks of a config, without LoRA.

  `config.prior`, unless empty, adds a neural prior: it holds the options of
  `neural_prior.WithNeuralPrior`, and those keys of `config.system` in which the prior differs.

  Raises:
    UserError: for keys or clips that do not fit the system.
  """
  spec, prior = config["system"], config["prior"]
  if prior and spec["name"].endswith("_prior"):
    raise errors.UserError(
      f"config.prior puts a neural prior in front, but config.system.name is {spec['name']!r}, a neural prior "
      "itself: leave config.prior empty"
    )
  system = make_architecture(config, spec, tokenizer, coarse_told=bool(prior))
  if prior:
    if alike := [name for name in ("name", "codec", "given") if name in prior]:
      raise errors.UserError(
        f"config.prior sets {', '.join(map(repr, alike))}, in which a neural prior is as config.system: "
        "leave it out"
      )
    own = {k: v for k, v in prior.items() if k in spec}
    options = {k: v for k, v in prior.items() if k not in spec}
    try:
      made = make_architecture(config, spec | own | {"name": f"{spec['name']}_prior"}, tokenizer)
    except errors.UserError as error:
      raise errors.UserError(
        f"the neural prior that config.prior makes of config.system: {error}"
      ) from error
    system = calls.call(neural_prior.WithNeuralPrior, options, "prior", system=system, prior=made)
    check_prior_there(config, neural_prior.names_in(system.networks))
  check_buckets(config, system)
  return system.for_clips(*clip_size(config))


def check_prior_there(config: Spec, names: Iterable[str]) -> None:
  """Raises a UserError for a frozen neural prior without weights.

  They come from `config.prior_run` or the folder `config.weights`. Without that folder nothing is
  checked.
  """
  if config["prior"].get("trained") or config["prior_run"] or not config["weights"]:
    return
  homes = tuple(weights.network_path(name, "") for name in names)
  if not any(path.startswith(homes) for path in weights.stored(config["weights"])):
    raise errors.UserError(
      "config.prior puts a frozen neural prior in front: name the workdir that has trained it in "
      "config.prior_run"
    )


def clip_size(config: Spec) -> tuple[int, tuple[int, int]]:
  """Frames, and (height, width) in pixels, of the clips of a config."""
  for key in ("frames", "size"):
    if key not in config["data"]:
      raise errors.UserError(f"config.data lacks {key!r}: set config.data.{key}")
  frames = checks.whole("config.data.frames", config["data"]["frames"])
  size = checks.pair("config.data.size", config["data"]["size"], "height and width")
  checks.clip(frames, size)
  return frames, size


def buckets(config: Spec) -> tuple[buckets_lib.Bucket, ...]:
  """The lengths and sizes of the clips that a config trains on; none where all are of `clip_size`."""
  value = config["data"].get("buckets")
  return () if value is None else buckets_lib.parse(value)


def check_buckets(config: Spec, system: base.System) -> None:
  """Raises a UserError that names a bucket whose clips a system cannot take."""
  for bucket in buckets(config):
    try:
      system.check_clip(bucket.frames, bucket[1:])
    except errors.UserError as error:
      raise buckets_lib.wrong(bucket, error) from None


def refuse_buckets(config: Spec) -> None:
  """Raises a UserError for buckets: a latent cache holds clips of one size."""
  if buckets(config):
    raise errors.UserError(
      "config.data.buckets has clips of several sizes, and a cache holds those of one: set it to None "
      "(config.data.frames and .size then say which), or train without config.cache.path"
    )


def of_prior_run(config: Spec, system: base.System) -> list[str]:
  """The networks whose weights come from `config.prior_run`, not from files or a draw."""
  return neural_prior.names_in(system.networks) if config["prior_run"] else []


def make_architecture(
  config: Spec, spec: Spec, tokenizer: Any | None, coarse_told: bool = False
) -> base.System:
  """One system of `spec`, without a neural prior; `coarse_told`: a coarse video is a condition."""
  spec = dict(spec)
  for name in ("text", "image"):
    if spec.get(name) is None:
      continue
    if not isinstance(spec[name], Mapping):
      raise errors.UserError(f"config.system.{name} is {spec[name]!r}; expected a group of keys")
    networks.check_size(f"config.system.{name}.width", int, spec[name].get("width"))
  dtype = calls.choose(tables.DTYPES, spec.pop("dtype"), "system.dtype")
  spec["codec"] = make_codec(spec["codec"], dtype)
  if tokenizer is not None and "text" in spec:
    for key in ("vocab", "length"):
      size, least = (spec["text"] or {}).get(key), getattr(tokenizer, key)
      if isinstance(size, int) and size < least:
        raise errors.UserError(
          f"config.system.text.{key} is {size}, but the tokenizer's is {least} (config.tokenizer): the "
          "text network must know at least as many"
        )
    spec["text"] = {"vocab": tokenizer.vocab, "length": tokenizer.length} | dict(spec["text"])
  given = {"dtype": dtype, "frames": config["data"]["frames"], "coarse": coarse_told}
  if "text" in spec:
    null = None if tokenizer is None else np.asarray(tokenizer([""])[0], np.int32)
    given |= {"null_tokens": null}
  return calls.make(tables.SYSTEMS, spec, "system", **given)


def make_codec(spec: Spec, dtype: Any) -> codecs.Codec:
  given = {} if spec.get("name") == "pixels" else {"dtype": dtype}
  return calls.make(tables.CODECS, spec, "system.codec", **given)
