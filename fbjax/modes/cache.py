"""--mode=cache: runs the data through the frozen encoders once, so that trainings need not.

  cache.json               what made it: the data, the encoders' weights, the keys that it depends on
  train-*, val-*.records   features of every window of every clip, and of the first held-out ones
  nulls.record             features of the empty caption and no image

Latents are sampled in training: of an autoencoder with a sampled posterior, mean and log-variance
are kept.

Floats are kept in float16. Measured on moving shapes with an autoencoder of random weights: rounding
moves the means of latents by 2e-4 of their deviation. That is a thirtieth of what it moves them to
compute the autoencoder in bfloat16, as trainings do (7e-3); bfloat16, no smaller, would round by 2e-3.
`config.cache.dtype=float32` keeps every bit.

Every process makes shards of its own. A shard is in its place when it is whole, and made once: killed
and started again, by any number of processes, the mode makes those that are missing.
"""

import functools
import importlib.metadata
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from fbjax import (
  build,
  caches,
  errors,
  loading,
  partition,
  places,
  processes,
  sampling,
  sharding,
)
from fbjax.data import cache as records_lib
from fbjax.data import objects, pipeline, storage
from fbjax.data import video as video_lib
from fbjax.systems import base, cached
from fbjax.tracker import progress

logger = logging.getLogger(__name__)

TOLD = 10.0  # seconds between two lines of progress
# (frozen, clips, index, window) -> features by path, and whether each row is finite
Encode = Callable[[base.Params, Mapping[str, jax.Array]], tuple[dict[str, jax.Array], jax.Array]]


class Split(NamedTuple):
  """A split of the data: its first `clips` clips, `windows` of each, and how they are encoded."""

  source: Any
  clips: int
  windows: int
  seed: int
  encode: Encode


def cache(config: dict[str, Any], out: str | None) -> None:
  """Makes a cache of `config.data` in a folder, here or in a bucket, or what is missing of it.

  Raises:
    UserError: for keys, weights or data that do not fit; for a folder with another cache; for
      features that are not finite in the cache's dtype; when none of the clips can be read.
  """
  if not out:
    raise errors.UserError("--mode=cache needs --out=<folder for the cache>")
  options = build.cache_options(config)
  if options.path:
    raise errors.UserError(
      f"config.cache.path is {options.path!r}, which a training reads; --mode=cache writes to --out"
    )
  build.refuse_buckets(config)
  build.set_precision(config)
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  made = splits(config, system, tokenizer, options)
  places.check_writable(out)
  begin(out, about(config, system, made, options))
  frozen = encoders(config, system)
  file = storage.place(out) / records_lib.NULLS
  if jax.process_index() == 0 and file.name not in storage.listed(file.parent):
    nulls = jax.jit(lambda frozen: cached.narrowed(system.nulls(frozen, {}), options.dtype))(frozen)
    records_lib.write_one(file, records_lib.Record(jax.tree.map(np.asarray, nulls), {}))
  for name, split in made.items():
    write(out, name, split, config, tokenizer, frozen, options)
  processes.meet("the cache is made")
  logger.info("To train from the cache: --config.cache.path=%s", out)


def splits(
  config: dict[str, Any], system: base.System, tokenizer: Any, options: Any
) -> dict[str, Split]:
  """The splits of a cache: all training clips, and the first held-out ones.

  A held-out clip is kept with its pixels and the features of its given frames, for previews.
  """
  train, val = (build.make_source(config, split) for split in caches.SPLITS)
  clips = functools.partial(encode, system, options.draws, options.dtype, config["seed"])
  stills = of_stills(config, system, tokenizer, options.dtype)

  def held_out(frozen: base.Params, batch: Mapping[str, jax.Array]) -> Any:
    found, finite = clips(frozen, batch)
    given, more = stills(frozen, sampling.given(batch))
    found |= {f"{caches.GIVEN}{path}": x for path, x in given.items()}
    return found | {caches.VIDEO: batch["video"]}, finite & more

  return {
    "train": Split(train, len(train), options.windows, config["seed"], clips),
    # Read as evaluation reads them.
    "val": Split(val, min(len(val), caches.HELD_OUT), 1, 0, held_out),
  }


def of_stills(config: dict[str, Any], system: base.System, tokenizer: Any, dtype: str) -> Encode:
  """Makes the function that encodes what sampling is given, with the log-variance of its latents.

  So kept, they serve whether sampling draws latents or takes the mode.
  """
  draw = "sample" if system.decoders else None
  sampled = build.for_sampling(config | {"sampling": config["sampling"] | {"draw": draw}})
  return functools.partial(encode, build.make_system(sampled, tokenizer), 1, dtype, 0)


def images(
  config: dict[str, Any], system: base.System, tokenizer: Any, given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The features of images, captions and other conditions, for a sampler that takes features.

  The encoders are in memory for this call alone. Every process encodes all images.
  """
  mesh = sharding.local(build.make_mesh(config))
  shares = sharding.clip_shares(mesh)
  size = -(-config["sampling"]["batch_size"] // shares) * shares
  program = jax.jit(partition.over(mesh, of_stills(config, system, tokenizer, "float32")))
  frozen = encoders(config, system)
  found = []
  for rows in batched(range(len(given["image"])), size):
    full = np.resize(rows, size).astype(np.uint32)
    batch = {name: x[full] for name, x in given.items()}
    batch |= {"index": full, "window": np.zeros_like(full)}
    features, _ = program(frozen, sharding.put_batch(batch, mesh))
    found.append({path: np.asarray(x)[: len(rows)] for path, x in features.items()})
  return {path: np.concatenate([part[path] for part in found]) for path in found[0]}


def encode(
  system: base.System,
  draws: int,
  dtype: str,
  seed: int,
  frozen: base.Params,
  batch: Mapping[str, jax.Array],
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Features of rows that `data.cache.Reads` has read, by path, and whether each row is finite.

  The noise of a window is a function of seed, index and window alone.
  """

  def keys(index: jax.Array, window: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), index)
    return jax.random.split(jax.random.fold_in(key, window), draws)

  found = system.features(frozen, batch, jax.vmap(keys)(batch["index"], batch["window"]))
  found = cached.narrowed(found, dtype)
  floats = [x for x in found.values() if jnp.issubdtype(x.dtype, jnp.floating)]
  finite = [jnp.isfinite(x).all(axis=range(1, x.ndim)) for x in floats]
  return found, functools.reduce(jnp.logical_and, finite)


def about(
  config: dict[str, Any], system: base.System, made: Mapping[str, Split], options: Any
) -> dict[str, Any]:
  """What cache.json says."""
  frozen = jax.eval_shape(system.init_frozen, jax.random.key(0))
  shape = clip_shape(config)
  tokens = build.make_tokenizer(config).length
  like = {"video": (shape, "uint8"), "tokens": ((tokens,), "int32")}
  like |= dict.fromkeys(("stride", "label"), ((), "int32"))
  like |= dict.fromkeys(("index", "window"), ((), "uint32"))
  batch = {name: jax.ShapeDtypeStruct((1, *s), dtype) for name, (s, dtype) in like.items()}
  fields = {}
  for name, split in made.items():
    found, _ = jax.eval_shape(split.encode, frozen, batch)
    fields[name] = {path: [list(x.shape[1:]), x.dtype.name] for path, x in found.items()}
  return {
    "version": 1,
    "made_of": caches.made_of(config, system),
    "cache": {name: getattr(options, name) for name in build.OF_THE_CACHE},
    "sources": {name: split.source.digest() for name, split in made.items()},
    "clips": {name: split.clips for name, split in made.items()},
    "fields": fields,
    "places": {name: config["data"][name] for name in caches.PLACES if name in config["data"]},
    "weights": config["weights"],
    "seed": config["seed"],
    "by": {name: importlib.metadata.version(name) for name in ("jax", "array-record")},
  }


def begin(out: str, found: Mapping[str, Any]) -> None:
  """Writes cache.json, or checks that the one that is there is the same cache's.

  Raises:
    UserError: when it is not; names what differs.
  """
  if not caches.is_begun(out):
    if jax.process_index() == 0:
      caches.write_about(out, found)
    return
  there = caches.read_about(out)
  caches.check(out, there, found["made_of"], found["cache"])
  for name in ("sources", "clips", "fields", "seed"):
    if there[name] != found[name]:
      raise errors.UserError(
        f"the cache in {out} was begun with other {name}: {there[name]} there, {found[name]} now; "
        "take another --out"
      )


def encoders(config: dict[str, Any], system: base.System) -> base.Params:
  """The encoders' weights on this process's devices alone, so that encoding needs no collective."""
  mesh = build.make_mesh(config)
  frozen = loading.frozen_networks(config, system, mesh, system.encoders)
  local = sharding.local(mesh)
  if jax.process_count() > 1:
    frozen = jax.device_put(frozen, sharding.replicated(mesh))
    frozen = jax.tree.map(lambda x: x.addressable_data(0), frozen)
  return jax.device_put(frozen, sharding.tree(frozen, local))


def clip_shape(config: dict[str, Any]) -> tuple[int, int, int, int]:
  frames, size = build.clip_size(config)
  return (frames, *size, 3)


def write(
  out: str,
  name: str,
  split: Split,
  config: dict[str, Any],
  tokenizer: Any,
  frozen: base.Params,
  options: Any,
) -> None:
  """Writes those shards of a split that are this process's and missing."""
  files = {
    records_lib.shard_file(out, name, i): clips
    for i, clips in enumerate(records_lib.shards(split.clips, options.shard))
    if i % jax.process_count() == jax.process_index()
  }
  there = storage.listed(storage.place(out))
  missing = {
    file: clips for file, clips in files.items() if file.name not in there or is_damaged(file)
  }
  if len(missing) < len(files):
    logger.info("%s: %d of %d shards are there.", name, len(files) - len(missing), len(files))
  if not missing:
    return
  mesh = sharding.local(build.make_mesh(config))
  shares = sharding.clip_shares(mesh)
  size = -(-options.batch_size // shares) * shares
  # Every shard begins a batch, so that its bits do not depend on which others are missing.
  rows = [
    batch
    for clips in missing.values()
    for batch in batched([(i, w) for i in clips for w in range(split.windows)], size)
  ]
  reads = records_lib.Reads(
    split.source,
    tokenizer,
    rows,
    batch_size=size,
    seed=split.seed,
    shape=clip_shape(config),
  )
  loader = {
    k: config["loader"].get(k, d) for k, d in (("workers", 0), ("threads", 4), ("prefetch", 4))
  }
  batches = pipeline.stream(grain.MapDataset.source(reads), **loader)
  made = records(split, batches, rows, frozen, mesh)
  made = telling(name, made, [len(batch) for batch in rows], split)
  try:
    for file, clips in missing.items():
      records_lib.write(file, itertools.islice(made, len(clips) * split.windows))
  finally:
    batches.close()


def is_damaged(file: objects.Place) -> bool:
  """Whether a shard on this machine is damaged as a whole; those in a bucket were uploaded whole."""
  if isinstance(file, objects.Address):
    return False
  try:
    records_lib.opened(file)
  except video_lib.BrokenData:
    logger.warning("%s is damaged and made anew.", file)
    return True
  return False


def batched(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
  return [rows[first : first + size] for first in range(0, len(rows), size)]


def records(
  split: Split,
  batches: Iterator[Mapping[str, np.ndarray]],
  rows: Sequence[Sequence[tuple[int, int]]],
  frozen: base.Params,
  mesh: jax.sharding.Mesh,
) -> Iterator[records_lib.Record]:
  """The records of batches, in order; one batch is encoded while the next one is read.

  Raises:
    UserError: for features that are not finite.
  """
  encode = jax.jit(partition.over(mesh, split.encode))
  pending = None
  for own in [*rows, None]:
    made = None
    if own is not None:
      batch = dict(pipeline.following(batches))
      wrong = batch.pop("error")[: len(own)]
      told = {name: batch[name] for name in ("stride", "label")}
      made = own, wrong, told, encode(frozen, sharding.put_batch(batch, mesh))
    if pending is not None:
      yield from unpacked(split, *pending)
    pending = made


def unpacked(
  split: Split,
  rows: Sequence[tuple[int, int]],
  wrong: np.ndarray,
  told: Mapping[str, np.ndarray],
  made: tuple[dict[str, jax.Array], jax.Array],
) -> Iterator[records_lib.Record]:
  """The records of one batch."""
  features, finite = jax.device_get(made)
  for i, (index, window) in enumerate(rows):
    name, caption = split.source.name(index), split.source.caption(index)
    known = {"index": index, "window": window, "name": name, "caption": caption}
    if wrong[i]:
      error = wrong[i].decode(errors="ignore")
      if window == 0:
        logger.warning("%s Trainings will read another clip in its place.", error)
      yield records_lib.Record({}, known | {"error": error})
      continue
    if not finite[i]:
      raise errors.UserError(
        f"what the encoders make of {name} is not finite in the cache's dtype: set "
        "config.cache.dtype=float32, or look at this clip and at config.weights"
      )
    known |= {field: int(x[i]) for field, x in told.items()}
    yield records_lib.Record({path: x[i] for path, x in features.items()}, known)


def telling(
  name: str, made: Iterator[records_lib.Record], batches: Sequence[int], split: Split
) -> Iterator[records_lib.Record]:
  """Passes records through, and logs progress now and then: clips, clips/s and ETA.

  The rate leaves out the first batch, for which the encoders are compiled.

  Args:
    name: of the split.
    made: records, which come a batch at a time.
    batches: the sizes of these.
    split: itself, of which these may be a part.

  Raises:
    BrokenData: when these are all of the split, and none is of a clip that could be read.
  """
  windows = split.windows
  first, count = batches[0], sum(batches)
  ends = set(itertools.accumulate(batches))
  last = time.monotonic()
  began, broken = 0.0, 0
  for done, record in enumerate(made, 1):
    broken += "error" in record.about
    if done == broken == split.clips * windows:
      raise video_lib.BrokenData(
        f"none of the clips of {name} can be read; the last: {record.about['error']} Take another "
        "--out when they can be"
      )
    now = time.monotonic()
    if done == first:
      began = now
    if done in ends and (now - last > TOLD or done == count):
      last = now
      told = [f"{name}: {done // windows}/{count // windows} clips"]
      if done > first:
        rate = (done - first) / max(now - began, 1e-6) / windows
        left = progress.duration((count - done) / windows / rate)
        told += [f"{progress.number(rate)} clips/s", f"ETA {left}"]
      if broken:
        told.append(f"{broken // windows} cannot be read")
      logger.info("%s", "  ".join(told))
    yield record
