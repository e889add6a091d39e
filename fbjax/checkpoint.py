"""The checkpoints of a run with Orbax: its state and its position in the data.

A checkpoint is written aside and renamed when complete, so a killed run leaves either the whole of
it or nothing. It restores onto any mesh and any number of processes. A seal with the digest of every
array is written along and checked on reading: damage on disk never becomes weights. Reading takes
the newest checkpoint that is intact.

One run writes, with `Checkpoints`. Any number read meanwhile, with `load`, which changes nothing on
disk.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as v0
from absl import logging as absl_logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from fbjax import errors, places, trees
from fbjax import seal as seals

logger = logging.getLogger(__name__)

# Orbax logs what goes wrong in each of its threads with a traceback and then raises it to us; what
# else failed along with it is never asked for.
absl_logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())


class Checkpoints:
  """Writes the checkpoints of one run, under `workdir/checkpoints`, newest `keep` kept.

  The writer alone clears away what a killed run left unfinished and what it finds damaged.
  """

  def __init__(self, workdir: str, keep: int = 2):
    self.folder = folder(workdir)
    with errors.of_the_disk(
      f"cannot keep checkpoints in {self.folder}", lambda: "choose another --workdir"
    ):
      # Not v1's Checkpointer, which opens an event loop for each save and closes none.
      self._manager = v0.CheckpointManager(
        self.folder,
        options=v0.CheckpointManagerOptions(
          max_to_keep=keep,
          cleanup_tmp_directories=True,
          lightweight_initialize=True,  # reads nothing that may be damaged
        ),
      )
    self._writing: int | None = None
    self._failed = False

  def restore(self, state: Any) -> tuple[Any, int] | None:
    """The newest intact state and its position in the data; None when nothing was saved.

    Newer checkpoints, all damaged, are renamed, so that their steps can be saved again.

    Args:
      state: tree of arrays or ShapeDtypeStructs with the shapes and shardings to restore to.

    Raises:
      UserError: when no checkpoint is intact, or what was saved has other arrays.
    """
    if not _steps(self.folder):
      return None
    seal, restored = _newest_intact(self.folder, state, whole=True)
    _set_aside(self.folder, [step for step in _steps(self.folder) if step > seal.step])
    self._manager.reload()
    return restored, seal.position

  def save(self, step: int, state: Any, position: int) -> None:
    """Writes in the background; returns once the arrays are safe from donation.

    Raises:
      UserError: when this save or the one before could not be written, such as to a full disk.
    """
    self.wait()
    with self._failing(step):
      self._manager.save(
        step,
        args=v0.args.Composite(
          state=v0.args.StandardSave(state),
          seal=v0.args.JsonSave(seals.to_json(seals.make(step, position, state))),
        ),
        force=True,
      )
    self._writing = step

  def check(self) -> None:
    """Raises the error of a background save that has failed; never blocks."""
    if self._writing is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Blocks until what is being written is on disk.

    Raises:
      UserError: when it could not be written.
    """
    if self._writing is not None:
      with self._failing(self._writing):
        self._manager.wait_until_finished()
      self._writing = None

  def close(self) -> None:
    """Waits and frees the threads; raises as `wait` does, but no failure twice."""
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
        self._manager.close()

  def intact(self) -> str:
    """A clause for error messages: the newest step with a finished checkpoint; does not read it."""
    saved = [step for step in _listed(self.folder) if step != self._writing]
    if not saved:
      return "there is no earlier checkpoint"
    return f"the checkpoint of step {saved[-1]} is intact"

  @contextlib.contextmanager
  def _failing(self, step: int) -> Iterator[None]:
    try:
      with errors.of_the_disk(
        f"step {step} could not be saved in {self.folder}",
        lambda: f"{self.intact()}; make room there and run the same command to go on",
      ):
        yield
    except BaseException:
      self._writing, self._failed = None, True
      raise


def load(workdir: str, part: dict[str, Any], step: int | None = None) -> tuple[int, dict[str, Any]]:
  """Restores some fields of a checkpoint's state; returns its step and these fields.

  Reads nothing else and changes nothing on disk; a training may go on there meanwhile.

  Args:
    workdir: of a run.
    part: such as `{"ema": shapes}`, arrays or ShapeDtypeStructs with the shapes, dtypes and
      shardings to restore to.
    step: of the checkpoint to read; None takes the newest that is intact.

  Raises:
    UserError: when nothing was saved, no checkpoint is intact, that of the step is not there, or what
      was saved has other arrays.
  """
  check_trained(workdir)
  saved = steps(workdir)
  if step is None:
    seal, found = _newest_intact(folder(workdir), part, whole=False)
    return seal.step, found
  if step not in saved:
    raise errors.UserError(
      f"{workdir} holds no checkpoint of step {step}; it has {', '.join(map(str, saved))} "
      "(config.train.keep says how many are kept)"
    )
  try:
    return step, _read_together(folder(workdir) / str(step), part, whole=False)[1]
  except seals.Damaged as damage:
    raise errors.UserError(
      f"the checkpoint of step {step} in {workdir} is damaged ({damage}): take another step"
    ) from None


def check_trained(workdir: str) -> None:
  """Raises a UserError for a workdir without a checkpoint."""
  if not steps(workdir):
    raise errors.UserError(f"{workdir} holds no checkpoint yet; train it first")


def steps(workdir: str) -> list[int]:
  """The steps that have a checkpoint, intact or not, in order."""
  return _steps(folder(workdir))


def folder(workdir: str) -> epath.Path:
  """Where the checkpoints of a workdir are."""
  return places.absolute(workdir) / "checkpoints"


def _steps(folder: epath.Path) -> list[int]:
  """The steps with a checkpoint, in order, as the first process sees them.

  Those that are being written, or were left unfinished, are none.
  """
  found = _listed(folder)
  if jax.process_count() == 1:
    return found
  count = int(multihost_utils.broadcast_one_to_all(np.int32(len(found))))
  mine = np.resize(np.array(found, np.int32), count) if found else np.zeros(count, np.int32)
  return [int(step) for step in multihost_utils.broadcast_one_to_all(mine)]


def _listed(folder: epath.Path) -> list[int]:
  try:
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())
  except (FileNotFoundError, NotADirectoryError):
    return []


def _newest_intact(folder: epath.Path, wanted: Any, whole: bool) -> tuple[seals.Seal, Any]:
  """The newest checkpoint that can be read and is what was saved.

  The folder is listed anew after each failure: a training may have removed what was being read and
  have written something newer.
  """
  failed: dict[int, str] = {}
  while left := [step for step in _steps(folder) if step not in failed]:
    try:
      found = _read_together(folder / str(left[-1]), wanted, whole)
    except seals.Damaged as damage:
      failed[left[-1]] = str(damage)
      continue
    for step, reason in failed.items():
      if step > left[-1]:
        logger.warning(
          "The checkpoint of step %d in %s is damaged (%s): going back to that of step %d.",
          *(step, folder, reason, left[-1]),
        )
    return found
  told = "; ".join(f"step {step}: {reason}" for step, reason in failed.items())
  raise errors.UserError(
    f"no checkpoint in {folder} is intact ({told}): put back a copy of one, or remove the folder to "
    "start anew"
  )


def _read_together(path: epath.Path, wanted: Any, whole: bool) -> tuple[seals.Seal, Any]:
  """One checkpoint; when a process cannot read it, all fail.

  Raises:
    Damaged: when it is not what was saved.
    UserError: when what was saved has other arrays than are wanted, or a machine cannot read it now.
  """
  found, failed = None, None
  try:
    found = _read(path, wanted, whole)
  except (seals.Damaged, errors.UserError) as error:
    failed = error
  kinds = np.array([isinstance(failed, kind) for kind in (errors.UserError, seals.Damaged)])
  refused, damaged = multihost_utils.process_allgather(kinds).reshape(-1, 2).any(0)
  if refused:
    if isinstance(failed, errors.UserError):
      raise failed
    raise errors.UserError(f"another process of this run cannot read {path}: its log says why")
  if damaged:
    raise failed or seals.Damaged("another process cannot read it")
  seal, tree = found
  seals.check_read(tree, seal)
  # Only now in the dtypes that are asked for: the digests are of what was saved.
  return seal, jax.tree.map(lambda x, like: x.astype(like.dtype), tree, wanted)


def _read(path: epath.Path, wanted: Any, whole: bool) -> tuple[seals.Seal, Any]:
  seal = seals.from_json(_load(path, "seal", None))
  if seal.step != int(path.name):
    raise seals.Damaged(f"it is of step {seal.step}")
  shapes = trees.paths(wanted)
  seals.check_wanted(shapes, seal, whole, f"the checkpoint of step {seal.step} in {path.parent}")
  stored = [abstract(x, seal.arrays[name].dtype) for name, x in shapes.items()]
  stored = jax.tree.unflatten(jax.tree.structure(wanted), stored)
  tree = _load(path, "state", stored)
  for x, like in zip(jax.tree.leaves(tree), jax.tree.leaves(stored), strict=True):
    if (x.shape, x.dtype) != (like.shape, like.dtype):
      raise seals.Damaged("an array has another shape than was saved")
  return seal, tree


def _load(path: epath.Path, item: str, like: Any) -> Any:
  """One item of a checkpoint, as it is on disk.

  Raises:
    Damaged: when it cannot be read.
    UserError: when the machine is to blame, and no other checkpoint could be read either.
  """
  if not (path / item).is_dir():
    raise seals.Damaged(f"its {item} is missing")
  context = ocp.Context()
  # Each process reads by itself: if one fails, no other waits for it inside Orbax.
  context.multiprocessing.active_processes = {jax.process_index()}
  context.multiprocessing.primary_host = jax.process_index()
  context.pytree.loading.partial_load = True  # the seal knows what has to be there
  try:
    with context:
      return ocp.load_checkpointables(path, {item: like})[item]
  except Exception as error:  # On damaged files Orbax and TensorStore raise almost anything.
    first = _first_cause(error)
    if isinstance(first, (jax.errors.JaxRuntimeError, MemoryError)):
      raise  # The files are not to blame.
    if code := errors.code(first, errors.MACHINE):
      raise errors.UserError(
        f"cannot read {path} ({os.strerror(code).lower()}): nothing says that it is damaged; mend that "
        "and run the same command again"
      ) from error
    raise seals.Damaged(_in_words(first)) from error


def abstract(x: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
  """Shape, dtype and sharding of an array; what has no sharding goes to the first device."""
  sharding = getattr(x, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding)


def _set_aside(folder: epath.Path, damaged: list[int]) -> None:
  """Renames checkpoints, so that their steps can be saved again; nothing is lost."""
  if jax.process_index() == 0:
    for step in damaged:
      names = (f"{step}.damaged{again or ''}" for again in range(1000))
      aside = next(folder / name for name in names if not (folder / name).exists())
      (folder / str(step)).rename(aside)
      logger.warning("Kept it as %s; remove it when nobody needs it.", aside)
  if damaged:
    multihost_utils.sync_global_devices("damaged checkpoints set aside")


def _first_cause(error: BaseException) -> BaseException:
  """The exception that an exception was raised for; Orbax wraps all of them."""
  while inner := error.__cause__ or error.__context__:
    error = inner
  return error


def _in_words(error: BaseException) -> str:
  if isinstance(error, FileNotFoundError):
    return f"a file is missing: {error.filename or error}"
  lines = str(error).strip().splitlines()
  return f"{lines[0][:160]}" if lines else type(error).__name__
