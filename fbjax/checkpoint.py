"""The checkpoints of a run with Orbax: its state and its position in the data.

A checkpoint is written aside and renamed when complete, so a killed run leaves either the whole of
it or nothing. It restores onto any mesh and any number of processes.
"""

from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fbjax import places


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


def _partial() -> ocp.Context:
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  return context


def abstract(tree: Any) -> Any:
  """Shapes, dtypes and shardings of a tree of arrays."""

  def leaf(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))

  return jax.tree.map(leaf, tree)
