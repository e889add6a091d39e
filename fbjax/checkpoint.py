"""Saving and restoring with Orbax: a run's state and position in the data, and bare weights.

A checkpoint is written aside and renamed when complete, so a killed run leaves either the whole of
it or nothing. It restores onto any mesh and any number of processes.
"""

import ctypes
import functools
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from fbjax import places

CONFIG_FILE = "config.json"
WEIGHTS = "weights"  # in a folder of ported weights, beside what is told about them
CHUNK = 2**25  # bytes of a leaf that are encoded together
AT_ONCE = 2**25  # bytes of small weights that are gathered before they are written


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


def write_weights(folder: str, leaves: Iterable[tuple[tuple[Any, ...], Any]]) -> None:
  """Writes a tree of weights of which only a few leaves are in memory at a time.

  Args:
    folder: where `read_weights` will find them; must hold none yet.
    leaves: (path in the tree, array); np.asarray reads it when its turn has come.

  Raises:
    FileExistsError: when there are weights already.
  """
  path = places.absolute(folder) / WEIGHTS
  if path.exists():
    raise FileExistsError(f"{folder} already holds weights; remove it or choose another folder")
  _remove_partial(path)
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = False  # nobody changes them meanwhile
  # A leaf is encoded chunk by chunk: whole, it would be in memory three times.
  context.array.saving.storage_options.chunk_byte_size = CHUNK
  part, size = {}, 0
  try:
    with context:
      for keys, leaf in leaves:
        node = part
        for key in keys[:-1]:
          node = node.setdefault(key, {})
        node[keys[-1]] = np.asarray(leaf)
        size += node[keys[-1]].nbytes
        if size >= AT_ONCE:
          ocp.partial.save(path, part)
          # Not even a name may keep them while the next leaf is read.
          part, node, leaf, size = {}, None, None, 0
          _give_back()
      if part:
        ocp.partial.save(path, part)
      ocp.partial.finalize(path)
  except BaseException:
    _remove_partial(path)
    raise


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


def read_leaves(folder: str, wanted: Sequence[tuple[tuple[Any, ...], Any]]) -> list[np.ndarray]:
  """Leaves of what `write_weights` wrote as numpy arrays, from (path, shape and dtype) of each."""
  tree: dict[Any, Any] = {}
  for path, like in wanted:
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = np.broadcast_to(np.zeros((), like.dtype), like.shape)
  with _partial():
    found = ocp.load(places.absolute(folder) / WEIGHTS, tree)
  return [functools.reduce(lambda node, key: node[key], path, found) for path, _ in wanted]


def _give_back() -> None:
  """Returns freed memory to the system: glibc keeps hundreds of megabytes, thread by thread."""
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
  if trim is not None:
    trim(0)


def _remove_partial(path: epath.Path) -> None:
  """What a write that was stopped has left behind."""
  for stale in path.parent.glob(path.name + ".partial_save*"):
    stale.rmtree()


def _placeholder(leaf: Any) -> Any:
  if getattr(leaf, "sharding", None) is None:
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
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
