"""Folders of weights that --mode=port wrote: written and read leaf by leaf, onto any mesh."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

from fbjax import errors, places

WEIGHTS = "weights"  # in a folder of ported weights, beside what is told about them
CHUNK = 2**24  # bytes of a leaf that are encoded together


def write_weights(
  folder: str,
  leaves: Mapping[tuple[Any, ...], Any],
  check: Callable[[tuple[Any, ...], np.ndarray], None],
) -> None:
  """Writes a tree of weights of which only a chunk is in memory at a time.

  Args:
    folder: where `read_weights` will find them; must hold none yet.
    leaves: by their paths in the tree, with shape and dtype; indexing with slices reads them.
    check: is given every chunk and its path, and may raise: then nothing is left behind.

  Raises:
    UserError: when there are weights already.
  """
  path = places.absolute(folder) / WEIGHTS
  if path.exists():
    raise errors.UserError(f"{folder} already holds weights; remove it or choose another folder")
  aside = path.with_name(f"{WEIGHTS}.partial")
  _remove(aside)
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = False
  context.array.saving.use_ocdbt = False  # so that every leaf has a folder of its own
  context.array.saving.storage_options.chunk_byte_size = CHUNK
  try:
    # Orbax holds a leaf and all its chunks, encoded. So it is given zeros, which take no memory,
    # and the values take their places chunk by chunk.
    with context:
      ocp.save(aside, nest({keys: _zeros(x) for keys, x in leaves.items()}))
    for keys, leaf in leaves.items():
      there = _open(aside, keys)
      for place in _chunks(there):
        chunk = np.asarray(leaf[place])
        check(keys, chunk)
        there[place].write(chunk).result()
    aside.rename(path)
  except BaseException:
    _remove(aside)
    raise


def _remove(aside: epath.Path) -> None:
  """What a write that was stopped has left behind."""
  for stale in aside.parent.glob(f"{aside.name}*"):
    stale.rmtree()


def _open(path: epath.Path, keys: Sequence[Any]) -> tensorstore.TensorStore:
  """A leaf where Orbax keeps it."""
  folder = path / "state" / ".".join(map(str, keys))
  # A chunk of zeros is to be stored as well: Orbax takes one that is not for lost.
  spec = {"driver": "zarr3", "kvstore": f"{folder.as_uri()}/"}
  return tensorstore.open(spec | {"store_data_equal_to_fill_value": True}, open=True).result()


def _chunks(there: tensorstore.TensorStore) -> Iterator[tuple[slice, ...]]:
  """Where the chunks of an array are in it."""
  size = there.chunk_layout.write_chunk.shape or ()  # None of a scalar
  for cell in np.ndindex(*(-(-n // k) for n, k in zip(there.shape, size, strict=True))):
    ends = zip(cell, size, there.shape, strict=True)
    yield tuple(slice(i * k, min((i + 1) * k, n)) for i, k, n in ends)


def stored(folder: str) -> dict[tuple[Any, ...], Any]:
  """Shape and dtype of every leaf that `write_weights` wrote, by its path.

  Raises:
    UserError: when there is none.
  """
  path = places.absolute(folder) / WEIGHTS
  if not path.exists():
    raise errors.UserError(f"{folder} holds no weights; make them with --mode=port --out={folder}")
  tree = ocp.metadata(path).metadata
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {tuple(str(getattr(k, "key", getattr(k, "idx", k))) for k in p): x for p, x in leaves}


def read_weights(folder: str, wanted: Any) -> Any:
  """The part `wanted` of what `write_weights` wrote: a tree of shapes, dtypes and shardings.

  Leaves without a sharding come as numpy arrays.

  Raises:
    UserError: when there are no weights.
    UserError: lists what is missing or has another shape.
  """
  found = stored(folder)
  problems = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    there = found.get(tuple(name.split("/")))
    if there is None:
      problems.append(f"  missing   {name} {leaf.shape}")
    elif tuple(there.shape) != tuple(leaf.shape):
      problems.append(f"  misshapen {name}: {tuple(there.shape)} there, {leaf.shape} in the config")
  if problems:
    lines = "\n".join(problems)
    raise errors.UserError(
      f"the weights in {folder} do not fit the config in {len(problems)} leaves:\n{lines}\n"
      "Port them again with this config"
    )
  with _partial():
    return ocp.load(places.absolute(folder) / WEIGHTS, jax.tree.map(_placeholder, wanted))


def read_leaf(folder: str, path: Sequence[Any]) -> np.ndarray:
  """One leaf of what `write_weights` wrote."""
  there = _open(places.absolute(folder) / WEIGHTS, path)
  array = np.empty(there.shape, there.dtype.numpy_dtype)
  # All at once, its chunks would be in memory a second time, encoded.
  for place in _chunks(there):
    array[place] = there[place].read().result()
  return array


def nest(flat: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
  """{("a", "b"): x} -> {"a": {"b": x}}."""
  tree: dict[Any, Any] = {}
  for path, leaf in flat.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = leaf
  return tree


def _zeros(like: Any) -> np.ndarray:
  """Zeros of this shape and dtype that take no memory."""
  return np.broadcast_to(np.zeros((), like.dtype), like.shape)


def _placeholder(leaf: Any) -> Any:
  if getattr(leaf, "sharding", None) is None:
    return _zeros(leaf)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _partial() -> ocp.Context:
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  return context
