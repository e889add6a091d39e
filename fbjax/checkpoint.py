"""Saving and restoring with Orbax: a run's state and position in the data, and bare weights.

A checkpoint is written aside and renamed when complete, so a killed run leaves either the whole of
it or nothing. It restores onto any mesh and any number of processes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

from fbjax import places

CONFIG_FILE = "config.json"
WEIGHTS = "weights"  # in a folder of ported weights, beside what is told about them
CHUNK = 2**24  # bytes of a leaf that are encoded together


class Checkpoints:
  """The checkpoints of one run, under `workdir/checkpoints`, newest `keep` kept."""

  def __init__(self, workdir: str, keep: int = 2):
    self.path = places.absolute(workdir) / "checkpoints"
    self._checkpointer = ocp.training.Checkpointer(
      self.path,
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  @property
  def latest(self) -> int | None:
    """The step of the newest complete checkpoint, or None."""
    newest = self._checkpointer.latest
    return None if newest is None else newest.step

  def save(self, step: int, state: Any, position: int) -> None:
    """Writes in the background; returns once the arrays are safe from donation."""
    self._checkpointer.save_checkpointables_async(
      step, {"state": state, "data": {"next_index": position}}, force=True
    )

  def restore(self, step: int, state: Any) -> tuple[Any, int]:
    """The state at `step` and the position in the data.

    Args:
      step: a step that was saved.
      state: tree of arrays or ShapeDtypeStructs with the shapes and shardings to restore to.
    """
    found = self._checkpointer.load_checkpointables(
      step, {"state": abstract(state), "data": {"next_index": 0}}
    )
    return found["state"], int(found["data"]["next_index"])

  def restore_part(self, step: int, part: dict[str, Any]) -> dict[str, Any]:
    """Only some fields of the state, such as `{"ema": shapes}`: nothing else is read."""
    with _partial():
      found = ocp.load_checkpointables(self.path / str(step), {"state": abstract(part)})
    return found["state"]

  def wait(self) -> None:
    """Blocks until what is being written is on disk."""
    self._checkpointer.wait()

  def close(self) -> None:
    """Waits and frees the threads."""
    self._checkpointer.close()


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
    FileExistsError: when there are weights already.
  """
  path = places.absolute(folder) / WEIGHTS
  if path.exists():
    raise FileExistsError(f"{folder} already holds weights; remove it or choose another folder")
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
    FileNotFoundError: when there is none.
  """
  path = places.absolute(folder) / WEIGHTS
  if not path.exists():
    raise FileNotFoundError(f"{folder} holds no weights; make them with --mode=port --out={folder}")
  tree = ocp.metadata(path).metadata
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {tuple(str(getattr(k, "key", getattr(k, "idx", k))) for k in p): x for p, x in leaves}


def read_weights(folder: str, wanted: Any) -> Any:
  """The part `wanted` of what `write_weights` wrote: a tree of shapes, dtypes and shardings.

  Leaves without a sharding come as numpy arrays.

  Raises:
    FileNotFoundError: when there are no weights.
    ValueError: lists what is missing or has another shape.
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
    raise ValueError(
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


def abstract(tree: Any) -> Any:
  """Shapes, dtypes and shardings of a tree of arrays."""

  def leaf(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))

  return jax.tree.map(leaf, tree)


def claim(workdir: str, config: dict[str, Any], free: tuple[str, ...] = ()) -> None:
  """Makes `workdir` this run's, or checks that it already is: its config must be the same.

  Args:
    workdir: created when missing.
    config: nested plain values.
    free: dotted keys, or beginnings of keys, that may change between runs of one workdir.

  Raises:
    ValueError: when the workdir was trained with another config; names every key that differs.
    OSError: when the workdir cannot be written.
  """
  path = epath.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".write-{jax.process_index()}"
    probe.write_text("")
    probe.unlink()
  except OSError as error:
    raise OSError(
      f"cannot write to workdir {workdir} ({error.strerror or error}); choose another --workdir"
    ) from None
  if (path / CONFIG_FILE).exists():
    check(workdir, config, free)
  if jax.process_index() == 0:
    (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def check(workdir: str, config: dict[str, Any], free: tuple[str, ...] = ()) -> None:
  """Checks that `workdir` was trained with `config`, the `free` keys aside.

  Raises:
    ValueError: when it was not; names every key that differs.
    FileNotFoundError: when nothing was trained there.
  """
  differing = _differences(read_config(workdir), config, free)
  if differing:
    raise ValueError(
      f"{workdir} was trained with another config; these keys differ: {'; '.join(differing)}. "
      "Take another --workdir, or the config it was trained with"
    )


def read_config(workdir: str) -> dict[str, Any]:
  """The resolved config that a workdir was trained with.

  Raises:
    FileNotFoundError: when nothing was trained there.
  """
  file = epath.Path(workdir) / CONFIG_FILE
  if not file.exists():
    raise FileNotFoundError(
      f"{workdir} holds no {CONFIG_FILE}: nothing was trained there; "
      "train first, or give the --workdir of a trained run"
    )
  return json.loads(file.read_text())


def _differences(old: dict[str, Any], new: dict[str, Any], free: tuple[str, ...]) -> list[str]:
  old, new = _flatten(old), _flatten(json.loads(json.dumps(new)))
  absent = "(absent)"
  return [
    f"{key}: {old.get(key, absent)!r} there, {new.get(key, absent)!r} now"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, absent) != new.get(key, absent)
    and not any(key == name or key.startswith(name + ".") for name in free)
  ]


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
