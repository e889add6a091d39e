"""Latent caches: what their features depend on, and whether one matches a config.

The features depend on the clips (the source, how it is cropped), on the tokenizer, and on the
frozen encoders, their sizes and weights. All of this is recorded in cache.json when a cache is
begun, and a config that would give other features is refused. The network that trains on them does
not matter: a bridge and its neural prior share a cache.
"""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from fbjax import build, digest, errors, trees, weights
from fbjax import workdir as workdir_lib
from fbjax.data import cache as records
from fbjax.data import kept, objects, storage
from fbjax.data import video as video_lib
from fbjax.systems import base

logger = logging.getLogger(__name__)

ABOUT = "cache.json"
SPLITS = ("train", "val")
HELD_OUT = 64  # clips of the split val: as many as previews and the held-out loss look at
GIVEN, VIDEO = "given/", "video"  # of held-out clips: features of the given frames, and the pixels
PLACES = ("path", "root", "val")  # where data is, not what
Spec = Mapping[str, Any]


class Opened(NamedTuple):
  """A cache that fits a config.

  train, held_out: features of clips. shown: the held-out ones, with their pixels and the features
  of their given frames, for previews. nulls: features of the null conditions, the same for all.
  """

  train: records.Cached
  held_out: records.Cached
  shown: records.Cached
  nulls: base.Features


def made_of(config: Spec, system: base.System) -> dict[str, Any]:
  """The keys of a config that a cache depends on, and the digest of the encoders' weights."""
  codec = {k: v for k, v in config["system"]["codec"].items() if k not in ("at_once", "tiled")}
  encoders = {name: config["system"][name] for name in ("text", "image") if name in system.encoders}
  noisy = {
    name: config["system"].get(name, True)
    for name in ("noisy_frame", "noisy_prior")
    if "noisy" in vars(inner(system))
  }
  ends = {name: config["system"][name] for name in ("given",) if name in config["system"]}
  found = {
    # Of which there are none where there is a cache, said or not.
    "data": {k: v for k, v in without_places(config["data"]).items() if k != "buckets"},
    "tokenizer": without_places(config["tokenizer"]),
    "system": {"codec": codec} | encoders | noisy | ends,
    "weights": encoders_digest(config, system),
  }
  return json.loads(json.dumps(found))


def inner(system: base.System) -> Any:
  """The system without low-rank additions and without a neural prior in front of it."""
  whole = system.whole
  return getattr(whole, "system", whole)


def without_places(group: Any) -> Any:
  if not isinstance(group, Mapping):
    return group
  return {k: without_places(v) for k, v in group.items() if k not in PLACES}


def encoders_digest(config: Spec, system: base.System) -> str:
  """A digest of the encoders' weights, from those that their folder lists: reads no weights."""
  if not system.encoders:
    return "none"
  if not config["weights"]:
    return f"drawn from config.seed={config['seed']}"
  homes = tuple(weights.network_path(name, "") for name in system.encoders)
  digests = weights.read_about(config["weights"])["digests"]
  return digest.of_json({path: x for path, x in digests.items() if path.startswith(homes)})


def is_begun(folder: str) -> bool:
  """Whether a folder, here or in a bucket, has a cache.json."""
  return ABOUT in storage.listed(storage.place(folder))


def read_about(folder: str) -> dict[str, Any]:
  """The cache.json of a folder.

  Raises:
    UserError: when there is none, or it is damaged.
  """
  file = storage.place(folder) / ABOUT
  if not is_begun(folder):
    raise errors.UserError(
      f"{folder} holds no {ABOUT}: make a cache with --mode=cache --out={folder}, or leave "
      "config.cache.path empty"
    )
  try:
    about = json.loads(file.read_bytes())
    sealed = about.pop("digest")
    if sealed == digest.of_json(about):
      return about
  except (ValueError, KeyError, AttributeError, TypeError, OSError):
    pass
  raise errors.UserError(f"{file} is damaged: make the cache again in another folder")


def write_about(folder: str, about: Spec) -> None:
  sealed = dict(about) | {"digest": digest.of_json(about)}
  data = json.dumps(sealed, indent=2) + "\n"
  records.write_bytes(storage.place(folder) / ABOUT, data.encode())


def check(folder: str, about: Spec, found: Spec, options: Spec) -> None:
  """Raises a UserError unless a cache is of these keys and options; names every one that differs.

  Args:
    folder: of the cache.
    about: its cache.json.
    found: `made_of` the config.
    options: those keys of `config.cache` that the config sets.
  """
  own = {name: options[name] for name in build.OF_THE_CACHE if name in options}
  there = {"cache": {name: about["cache"][name] for name in own}} | about["made_of"]
  differing = workdir_lib.changes(there, {"cache": own} | dict(found))
  told = [
    f"the encoders' weights (config.weights): {was} there, {now} now"
    if key == "weights"
    else f"config.{key}: {was!r} there, {now!r} now"
    for key, was, now in differing
  ]
  if told:
    raise errors.UserError(
      f"the cache in {folder} was made under another config; these differ: {'; '.join(told)}. Take "
      "these keys as they were, another cache, or make one with --mode=cache"
    )


def opened(config: Spec, system: base.System) -> Opened:
  """The cache that `config.cache.path` names.

  Raises:
    UserError: when there is none, it is not whole, or it was made under another config or from other
      clips.
  """
  folder = build.cache_options(config).path
  about = read_about(folder)
  check(folder, about, made_of(config, system), config["cache"])
  check_source(config, folder, about)
  for name in SPLITS:
    records.check_whole(folder, name, about["clips"][name], about["cache"]["shard"])
  here = fetched(folder, about)

  def split(name: str, beside: tuple[str, ...] = ()) -> records.Cached:
    return records.Cached(
      here,
      name,
      clips=about["clips"][name],
      windows=about["cache"]["windows"] if name == "train" else 1,
      least=about["cache"]["shard"],
      digest=about["sources"][name],
      fields={
        path: (tuple(shape), dtype) for path, (shape, dtype) in about["fields"][name].items()
      },
      beside=beside,
    )

  nulls = records.read_one(here / records.NULLS).arrays
  return Opened(split("train"), split("val", (GIVEN, VIDEO)), split("val"), trees.nest(nulls))


def fetched(folder: str, about: Spec) -> pathlib.Path:
  """The local folder of a cache; one in a bucket is mirrored to this machine, and the copy is kept.

  All of it at once: a shuffled training reads from all shards in its first steps.

  Raises:
    UserError: when the disk has no room for it.
  """
  place = storage.place(folder)
  if not isinstance(place, objects.Address):
    return place
  sizes = {name: n for name, n in storage.listed(place).items() if name.endswith(records.SUFFIXES)}
  key = f"{place} {digest.of_json(about)}"
  return kept.mirror(folder, key, sizes, lambda name, file: (place / name).get(file))


def check_source(config: Spec, folder: str, about: Spec) -> None:
  """Raises a UserError if `config.data` lists other clips than the cache was made of, of any split.

  Data that cannot be read any more is no error: a training then reads the cache alone.
  """
  try:
    found = {split: build.make_source(config, split).digest() for split in about["sources"]}
  except video_lib.BrokenData as error:
    logger.info("%s Only the cache in %s is read.", error, folder)
    return
  if changed := [split for split, there in about["sources"].items() if found[split] != there]:
    raise errors.UserError(
      f"the cache in {folder} was made of other clips than config.data lists now ({changed[0]}): "
      f"{about['sources'][changed[0]]} there, {found[changed[0]]} now; make another one with "
      "--mode=cache, or give the data that it was made of"
    )
