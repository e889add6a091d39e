"""The training loop, for any loss: restores, steps, logs, previews and saves."""

import concurrent.futures
import contextlib
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from fbjax import checkpoint, checks, errors, flops, processes, sharding, tracker
from fbjax.train import goodput, optim, profile
from fbjax.train import step as train_step

logger = logging.getLogger(__name__)


@runtime_checkable
class Data(Protocol):
  """Host batches in an order fixed by `position`, the number of batches already given."""

  position: int

  def __next__(self) -> dict[str, np.ndarray]: ...


# A picture, numbers by name, and perhaps a GIF.
Preview = (
  tuple[np.ndarray, Mapping[str, float]]
  | tuple[np.ndarray, Mapping[str, float], pathlib.Path | None]
)
# Fields of a batch for people, not for the device.
HOST_FIELDS = ("index", "replaced")
MOST_CLIPS = 2**16  # of a batch: more than any pod takes
# Clips of a batch that an error names.
NAMED = 16


def train(
  *,
  loss_fn: train_step.LossFn,
  tx: optim.Optimizer,
  init: Callable[[jax.Array], Any],
  start: Callable[[], Any] | None = None,
  frozen: Any,
  data: Data,
  mesh: Mesh,
  workdir: str,
  steps: int,
  batch_size: int,
  seed: int = 0,
  ema_decay: float = 0.9999,
  ema_warmup: bool = True,
  accumulate: int = 1,
  offload: bool = False,
  log_every: int = 50,
  save_every: int = 1000,
  preview_every: int = 1000,
  keep: int = 2,
  writers: str = "tensorboard",
  preview: Callable[[int, Any], Preview] | None = None,
  begins: Callable[[int], None] = lambda step: None,
  clip_name: Callable[[int], str] = str,
  preempted: Callable[[int], bool] = lambda step: False,
  clock: goodput.Clock | None = None,
  profiled: bool = False,
) -> train_step.TrainState:
  """Trains to `steps`, from the newest checkpoint of the workdir when there is one.

  Args:
    loss_fn: mean loss over the clips of a batch.
    tx: optimizer, from `optim.make_optimizer`.
    init: key -> params.
    start: reads the params of a new run instead, for example of a pretrained network.
    frozen: weights that the loss reads and nobody trains.
    data: batches; its position is saved and restored. Each shape that they have is compiled once.
    mesh: the devices.
    workdir: where everything is written.
    steps: the step to end at.
    batch_size: clips a step, over all processes.
    seed: of the initial weights and of the loss.
    ema_decay: decay of the moving average of the weights; 0 for none.
    ema_warmup: whether the average forgets the first steps sooner; see `step.make_train_step`.
    accumulate: parts a batch is cut into to save memory.
    offload: whether average and optimizer state are kept in the host's memory between steps.
    log_every: steps between lines of progress; 0 for the last step alone, as for the next two.
    save_every: steps between checkpoints; the last step is always saved.
    preview_every: steps between previews; the last step always gets one.
    keep: checkpoints kept.
    writers: where metrics go beside metrics.jsonl: see `fbjax.tracker.writers`.
    preview: (step, EMA weights) -> arguments of `tracker.Tracker.preview` after `step`; run every
      `preview_every` steps.
    begins: called with the step that the run goes on from, once it has its state.
    clip_name: index in the data set -> name.
    preempted: number of the step, from 1 in each process that resumes -> whether to save and leave now;
      asked by every process at every step.
    clock: that has run since the training began; default: it begins here.
    profiled: whether a few steps are traced into the workdir; see `fbjax.train.profile`.

  Returns:
    The last state; its step is below `steps` when preempted.

  Raises:
    UserError: when loss, gradient or update is not finite; names the step and the batch's clips.
    UserError: when a checkpoint cannot be written, or none that is there can be read.
    UserError: when the batch does not divide by the accumulation and the mesh, or a number makes no
      sense.
  """
  check_numbers(steps=steps, batch_size=batch_size, accumulate=accumulate, keep=keep)
  check_numbers(log_every=log_every, save_every=save_every, preview_every=preview_every)
  check_numbers(ema_decay=ema_decay)
  check_divides(batch_size, accumulate, mesh)
  clock = clock or goodput.Clock()
  key = jax.random.key(seed)
  new_state = lambda key: train_step.init_state(init(key), tx)  # noqa: E731
  shapes = jax.eval_shape(new_state, key)
  state_sharding = train_step.placement(shapes, mesh, offload)
  with contextlib.ExitStack() as stack:
    stack.enter_context(processes.telling_of_lost_peers())
    checkpoints = stack.enter_context(contextlib.closing(checkpoint.Checkpoints(workdir, keep)))
    with clock.within("restoring"):
      restored = checkpoints.restore(sharding.placed(shapes, state_sharding))
    if restored:
      state, data.position = restored
      del restored  # The step below reuses its memory.
    elif start is None:
      state = jax.jit(new_state, out_shardings=state_sharding)(key)
    else:
      first = functools.partial(train_step.init_state, tx=tx)
      state = jax.jit(first, out_shardings=state_sharding, donate_argnums=0)(start())
    resumed = int(state.step)
    if resumed >= steps:
      logger.info("%s is already trained to step %d.", workdir, resumed)
      return state
    if resumed:
      logger.info("Resumed %s at step %d of %d.", workdir, resumed, steps)
    begins(resumed)

    prepared_from = time.perf_counter()
    made = train_step.make_train_step(
      loss_fn,
      tx,
      ema_decay=ema_decay,
      ema_warmup=ema_warmup,
      seed=seed,
      accumulate=accumulate,
      offload=offload,
      mesh=mesh,
    )
    programs = _Programs(made, state_sharding, mesh, clock)
    asked = f"Asked to stop while compiling, at step {resumed}; run the same command to go on."
    with processes.ending_when_asked(asked, processes.ASKED):
      with clock.within("data_wait"):
        host, batch = _next_batch(data, mesh)
      programs.make(state, frozen, batch)
    logger.info("First batch and compilation took %.0f s.", time.perf_counter() - prepared_from)
    log = stack.enter_context(
      contextlib.closing(
        tracker.Tracker(workdir, steps=steps, batch_size=batch_size, start=resumed, written=writers)
      )
    )
    step, saved = resumed, resumed
    began = sum(clock.seconds().values())

    def finish() -> None:
      try:
        with clock.within("saving"):
          checkpoints.wait()
      finally:
        log.time_spent(step, clock.seconds(), began)

    # Whatever ends the loop: first of all what is being saved gets on disk.
    stack.callback(finish)
    trace = profile.Trace(workdir, steps - resumed if profiled else 0, log.attempt)
    stack.callback(trace.close)
    stack.enter_context(processes.ending_when_stuck(lambda: _doing(clock)))
    stack.enter_context(jax.transfer_guard("disallow"))

    replaced = 0
    pending, metrics = None, None
    leave, ends = False, stack.enter_context(contextlib.closing(_Ends()))
    clock.enter("steps")
    while step < steps and not leave:
      program = programs.get(batch)
      if program is None:
        with jax.transfer_guard("allow"):
          program = programs.make(state, frozen, batch)
        log.restart_clock(step)
      step += 1
      with clock.within("reporting"):
        trace.reach(step - resumed, metrics)
      with profile.named(step):
        state, metrics = program.run(state, frozen, batch)
      ends.watch(metrics["loss"])
      log.computed(program.flops)
      # The next batch is fetched and the last step's loss read while this step runs.
      if pending is not None:
        _read_metrics(*pending, clip_name, checkpoints)
      checkpoints.check()
      pending = (step, metrics, host)
      replaced += int(np.sum(host.get("replaced", 0)))
      leave = preempted(step - resumed)
      due_log, due_save, due_preview = (
        step == steps or (every and step % every == 0)
        for every in (log_every, save_every, preview_every)
      )
      due_save = due_save or leave
      due_preview = due_preview and preview is not None and not leave
      if due_log or due_save or due_preview:
        values = _read_metrics(*pending, clip_name, checkpoints)
        pending = None
        if due_log:
          with clock.within("reporting"):
            log.write(step, values | {"replaced": replaced, "goodput": clock.goodput()})
        if due_save:
          # The batch of the next step is not drawn yet: the position is that of `step` batches.
          with clock.within("saving"), jax.transfer_guard("allow"):
            checkpoints.save(step, state, data.position)
          saved = step
        if due_preview:
          with (
            clock.within("reporting"),
            log.attempt("draw a preview"),
            jax.transfer_guard("allow"),
          ):
            log.preview(step, *preview(step, jax.device_put(state.ema, state_sharding.params)))
          log.restart_clock(step)
      if step < steps and not leave:
        with clock.within("data_wait"):
          fetched_from = time.perf_counter()
          host, batch = _next_batch(data, mesh)
          fetched = time.perf_counter() - fetched_from
          waited = min(fetched, ends.idle())
          clock.give(fetched - waited, "steps")
        log.waited(waited)
  if leave and step < steps:
    logger.info("Asked to stop: saved step %d of %d; run the same command to go on.", saved, steps)
  return state


def check_divides(batch_size: int, accumulate: int, mesh: Mesh) -> None:
  """Raises a UserError for a batch that cannot be split over the accumulation and the devices."""
  shares = sharding.clip_shares(mesh)
  if batch_size % (accumulate * shares):
    raise errors.UserError(
      f"config.train.batch_size={batch_size} must be a multiple of config.train.accumulate={accumulate} "
      f"times the {shares} parts that config.mesh.data and config.mesh.fsdp split it into"
    )


def check_numbers(**options: Any) -> None:
  """Raises a UserError for options of `train` whose number makes no sense; others are not looked at."""
  for name, value in options.items():
    if name in ("batch_size", "accumulate"):
      checks.whole(f"config.train.{name}", value, most=MOST_CLIPS)
    elif name in ("steps", "keep"):
      checks.whole(f"config.train.{name}", value)
    elif name in ("log_every", "save_every", "preview_every"):
      checks.whole(f"config.train.{name}", value, least=0)
    elif name == "ema_decay":
      checks.number(f"config.train.{name}", value, least=0, below=1)


class _Program(NamedTuple):
  """A compiled step, and its FLOPs, those of the whole mesh; 0 where they are not known."""

  run: Callable[[train_step.TrainState, Any, train_step.Batch], Any]
  flops: float


class _Programs:
  """The step, compiled once for each shape that batches have."""

  def __init__(self, step: Any, state_sharding: Any, mesh: Mesh, clock: goodput.Clock):
    self._clock = clock
    self._step = jax.jit(
      step, donate_argnums=0, out_shardings=(state_sharding, sharding.replicated(mesh))
    )
    self._made: dict[Any, _Program] = {}

  def get(self, batch: train_step.Batch) -> _Program | None:
    """That for batches of this shape, if there is one."""
    return self._made.get(_shapes(batch))

  def make(self, state: train_step.TrainState, frozen: Any, batch: train_step.Batch) -> _Program:
    began = time.perf_counter()
    with self._clock.within("compiling"):
      traced = self._step.trace(state, frozen, batch)
      work = flops.of(traced.jaxpr).model
      made = self._made[_shapes(batch)] = _Program(traced.lower().compile(), work)
    shapes = {name: "x".join(map(str, shape)) for name, shape, _ in _shapes(batch)}
    told = shapes.get("video") or ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    logger.info("Compiled the step for batches of %s in %.0f s.", told, time.perf_counter() - began)
    return made


def _doing(clock: goodput.Clock) -> tuple[int, str]:
  """What must change within minutes; nothing for what may take its time."""
  return clock.changes, {
    "steps": "in one step",
    "data_wait": "without data",
    "saving": "saving",
  }.get(clock.phase, "")


class _Ends:
  """When the device was done with the last step: a thread waits for it, and the loop goes on."""

  def __init__(self):
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="ends of steps")
    self._ended: concurrent.futures.Future[float] | None = None

  def watch(self, loss: jax.Array) -> None:
    """This is a result of the last step now."""

    def end() -> float:
      loss.block_until_ready()
      return time.perf_counter()

    self._ended = self._thread.submit(end)

  def idle(self) -> float:
    """Seconds since the device has had nothing to do; 0 while it works."""
    done = self._ended is not None and self._ended.done()
    return time.perf_counter() - self._ended.result() if done else 0.0

  def close(self) -> None:
    """Lets the thread end with the step that it waits for; who leaves after an error does not wait with it."""
    self._thread.shutdown(wait=False)


def _shapes(batch: train_step.Batch) -> tuple:
  return tuple((name, x.shape, x.dtype.name) for name, x in sorted(batch.items()))


def _next_batch(data: Data, mesh: Mesh) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
  batch = dict(next(data))
  host = {name: batch.pop(name) for name in HOST_FIELDS if name in batch}
  # With several processes this transfer is not told apart from an accidental one.
  with jax.transfer_guard("allow"):
    return host, sharding.put_batch(batch, mesh)


def _read_metrics(
  step: int,
  metrics: dict[str, jax.Array],
  host: dict[str, np.ndarray],
  clip_name: Callable[[int], str],
  checkpoints: checkpoint.Checkpoints,
) -> dict[str, float]:
  """The metrics of a step, once it has run.

  Raises:
    UserError: when the loss, its gradient or the update is not finite.
  """
  values = {name: float(value) for name, value in jax.device_get(metrics).items()}
  # The update too: what is saved is what it has made.
  finite = [name for name in ("loss", "grad_norm", "update_norm") if np.isfinite(values[name])]
  if len(finite) < 3:
    names = [clip_name(int(i)) for i in host.get("index", ())]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    checkpoints.wait()
    raise errors.UserError(
      f"loss {values['loss']}, gradient norm {values['grad_norm']}, update norm "
      f"{values['update_norm']} at step {step}, in a batch of "
      f"{', '.join(names[:NAMED]) or 'clips'}{more}: lower config.optim.lr, or look at these clips; "
      f"{checkpoints.intact()}"
    )
  if step == 1 and values["grad_norm"] == 0:
    logger.warning(
      "The gradient of all that trains is zero at step 1: nothing is learnt while it is. Frozen weights "
      "that nobody has pretrained do so: set config.weights, or train more (config.trainable)."
    )
  return values
