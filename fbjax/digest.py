"""A digest of an array's bits that does not depend on how the array is split over devices.

Every element is hashed together with its index in the array, and the hashes are summed. A sum has
no order, so each process digests the shards it holds, and the total is the same on any mesh and in
any number of processes. The hash is one-to-one: damage to a single element changes the digest for
certain, any other goes unnoticed once in 2^64.

The shards are hashed on the host, to which a checkpoint copies them anyway: on the device, every
shape would need a program of its own.
"""

import concurrent.futures
import gc
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt64

from fbjax import trees

# The odd number next to 2^32 over the golden ratio: successive places share no pattern of bits.
PLACE = 0x9E3779B1
# Elements mixed at a time: small enough to stay in a core's cache.
BLOCK = 1 << 16
# Bytes for which it is worth a second to look for what is of no use any more.
LARGE = 1 << 25


def of_tree(tree: Any, kept: bool = False) -> dict[str, str]:
  """The digest of each array of a tree, 32 hexadecimal digits, by path.

  With `kept`, JAX keeps what it has copied to the host as long as the arrays, for who copies them next.
  """
  sums = _sums(tree, lambda shard: shard.replica_id == 0, kept)
  return {path: as_text(total) for path, total in sums.items()}


def of_json(value: Any) -> str:
  """16 hexadecimal digits that stand for nested plain values, whatever the order of their keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def of_code() -> str:
  """16 hexadecimal digits that stand for all Python files of this package."""
  top = pathlib.Path(__file__).parent
  files = {str(file.relative_to(top)): file.read_text() for file in top.rglob("*.py")}
  return of_json(files)


def as_text(total: UInt64[np.ndarray, "2"]) -> str:
  """Two 64-bit sums over all pieces of an array as its digest, 32 hexadecimal digits."""
  return "".join(f"{half:016x}" for half in total)


def differing(tree: Any, digests: Mapping[str, str]) -> list[str]:
  """Paths of the arrays of a tree whose digest is not the given one, in any process.

  The replicas of all processes are hashed; of equal shards within a process, only one.
  """
  leaves = trees.paths(tree)
  wrong = []
  for path, total in _sums(tree, lambda shard: True).items():
    expected = np.array([int(digests[path][:16], 16), int(digests[path][16:], 16)], np.uint64)
    if np.any(total != expected * np.uint64(copies(leaves[path]))):
      wrong.append(path)
  return wrong


def copies(x: jax.Array) -> int:
  """The number of replicas of an array over all devices."""
  held = math.prod(x.sharding.shard_shape(x.shape)) * x.sharding.num_devices
  return held // max(x.size, 1)


def _sums(
  tree: Any, counted: Callable[[jax.Shard], bool], kept: bool = False
) -> dict[str, UInt64[np.ndarray, "2"]]:
  """The sums over the counted pieces of each array, those of all processes."""
  leaves = trees.paths(tree)
  if not leaves:
    return {}
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    jobs = [_submit(pool, leaf, counted, kept) for leaf in leaves.values()]
    here = np.stack(
      [sum((job.result() for job in of_leaf), np.zeros(2, np.uint64)) for of_leaf in jobs]
    )
  if not kept and sum(x.nbytes for x in leaves.values()) > LARGE:
    gc.collect()  # An array and what was copied of it to the host hold each other.
  # As halves: without 64-bit types JAX would drop the upper ones.
  halves = np.asarray(multihost_utils.process_allgather(here.view(np.uint32)))
  total = halves.reshape(-1, len(leaves), 4).view(np.uint64).sum(0)
  return dict(zip(leaves, total, strict=True))


def _submit(
  pool: concurrent.futures.Executor,
  x: jax.Array,
  counted: Callable[[jax.Shard], bool],
  kept: bool,
) -> list[concurrent.futures.Future]:
  """A job for each counted piece that this process holds; equal pieces share one."""
  jobs, found = {}, []
  for shard in filter(counted, x.addressable_shards):
    start = tuple(index.start or 0 for index in shard.index)
    if start not in jobs:
      piece = shard.data if kept else _anew(shard.data)
      jobs[start] = pool.submit(of_piece, piece, start, x.shape)
    found.append(jobs[start])
  return found


def _anew(piece: jax.Array) -> jax.Array:
  """The same memory as another array, with which the copy on the host goes."""
  return jax.make_array_from_single_device_arrays(piece.shape, piece.sharding, [piece])


def of_piece(piece: Any, start: tuple[int, ...], shape: tuple[int, ...]) -> UInt64[np.ndarray, "2"]:
  """The sums over a piece of an array of `shape` that begins at `start`."""
  words = _words(np.asarray(piece))
  start, shape = start + (0,), shape + words.shape[-1:]
  # Elements behind the last axis that is cut are neighbours in the whole array too.
  cut = [axis for axis, size in enumerate(shape) if words.shape[axis] != size]
  runs_from = cut[-1] if cut else 0
  strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  first_places = np.zeros((), np.uint32)
  for axis in range(runs_from):
    places = (start[axis] + np.arange(words.shape[axis], dtype=np.uint64)) * np.uint64(
      strides[axis]
    )
    first_places = np.add.outer(first_places, places.astype(np.uint32))
  begin = start[runs_from] * strides[runs_from]
  rows = words.reshape(first_places.size, -1)
  first_places = (first_places.reshape(-1) + np.uint32(begin % 2**32)) * np.uint32(PLACE)

  total = np.zeros(2, np.uint64)
  width = min(rows.shape[1], BLOCK)
  height = max(1, BLOCK // max(width, 1))
  mixed, spare = np.empty((2, height * width), np.uint32)
  for column in range(0, rows.shape[1], max(width, 1)):
    along = np.arange(column, min(column + width, rows.shape[1]), dtype=np.uint64)
    along = along.astype(np.uint32) * np.uint32(PLACE)
    for row in range(0, len(rows), height):
      block = rows[row : row + height, column : column + width]
      h, s = (buffer[: block.size].reshape(block.shape) for buffer in (mixed, spare))
      np.add.outer(first_places[row : row + height], along, out=h)
      total += _mix(h, s, block)
  return total


def _mix(h: np.ndarray, s: np.ndarray, words: np.ndarray) -> UInt64[np.ndarray, "2"]:
  """Sums of the mixed words; `h` holds a number for each place, `s` is memory to work in."""
  h ^= words
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    np.right_shift(h, shift, out=s)
    h ^= s
    h *= np.uint32(factor)
  np.right_shift(h, 16, out=s)
  h ^= s
  first = h.sum(dtype=np.uint64)
  np.right_shift(h, 15, out=s)
  s ^= h
  s *= np.uint32(0x2C1B3C6D)
  np.right_shift(s, 13, out=h)
  s ^= h
  return np.stack([first, s.sum(dtype=np.uint64)])


def _words(x: np.ndarray) -> np.ndarray:
  """The bits of every element as unsigned words along a new last axis."""
  size = min(x.dtype.itemsize, 4)
  words = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * size}")
  return words.reshape(*x.shape, x.dtype.itemsize // size)
