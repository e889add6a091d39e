"""The loop with a loss of one weight: everything but the networks."""

import contextlib
import gc
import logging
import os
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

from fbjax import checkpoint, errors, sharding, tracker
from fbjax.data import buckets, pipeline, synthetic, tokenizers
from fbjax.train import goodput, loop, optim


class Numbers:
  """Batches that are a function of the position."""

  def __init__(self, broken_at: int = -1):
    self.position = 0
    self.broken_at = broken_at

  def __next__(self):
    rng = np.random.default_rng(self.position)
    batch = {
      "x": rng.normal(size=(8, 4)).astype(np.float32),
      "index": np.arange(8) + 8 * self.position,
      "replaced": np.arange(8) < self.position % 2,
    }
    if self.position == self.broken_at:
      batch["x"][3] = np.nan
    self.position += 1
    return batch


def loss_fn(params, frozen, batch, keys):
  noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
  return jnp.mean((batch["x"] @ params["w"] + noise @ params["w"] - 1.0) ** 2), {}


def run(workdir, steps=10, data=None, mesh=None, loss_fn=loss_fn, **kwargs):
  sgd = optim.make_optimizer(name="sgd", lr=0.05, steps=100)
  return loop.train(
    loss_fn=loss_fn,
    init=lambda key: {"w": jax.random.normal(key, (4,))},
    frozen={},
    data=data or Numbers(),
    mesh=mesh or sharding.make_mesh(8, 1),
    workdir=str(workdir),
    steps=steps,
    batch_size=8,
    **({"tx": sgd, "log_every": 2, "save_every": 3} | kwargs),
  )


def logged(workdir) -> list[dict[str, float]]:
  """The rows of metrics of steps."""
  return [row for row in tracker.read_metrics(workdir / "metrics.jsonl") if "loss" in row]


def time_spent(workdir) -> dict[str, float]:
  """Seconds by phase, of the last run in a workdir."""
  *_, row = tracker.read_metrics(workdir / "metrics.jsonl")
  return {name.removeprefix("seconds/"): x for name, x in row.items() if name != "step"}


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_never_stopped(tmp_path):
  whole = run(tmp_path / "whole")
  run(tmp_path / "parts", steps=4)
  data = Numbers()
  resumed = run(tmp_path / "parts", data=data)
  assert data.position == 10
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def of_two_sizes():
  source = synthetic.Shapes(frames=2, size=8, clips=60)
  taken = buckets.parse(((2, 8, 8), (3, 8, 16)))
  parts = buckets.parts(source, taken, buckets.Hosts())
  return pipeline.Batches(source, tokenizers.Bytes(), batch_size=8, parts=parts, threads=1)


def brightness(params, frozen, batch, keys):
  noise = jax.vmap(lambda key: jax.random.normal(key, batch["video"].shape[1:2]))(keys)
  seen = batch["video"].mean((2, 3, 4)) / 255 + noise
  return jnp.mean((seen.sum(1) * params["w"].sum() - 1) ** 2), {}


def test_clips_of_two_sizes_compile_once_each_and_resume_to_the_bit(tmp_path, caplog):
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  kwargs = {"loss_fn": brightness, "mesh": one, "log_every": 1, "steps": 9}
  with jax.log_compiles(), caplog.at_level(logging.INFO):
    data = of_two_sizes()
    whole = run(tmp_path / "whole", data=data, **kwargs)
    data.close()
  compiled = [text for text in caplog.messages if "XLA compilation of jit(step)" in text]
  assert len(compiled) == 2
  told = [text.split(" in ")[0] for text in caplog.messages if text.startswith("Compiled the step")]
  assert sorted(told) == [f"Compiled the step for batches of 8x{s}x3" for s in ("2x8x8", "3x8x16")]
  data = of_two_sizes()
  run(tmp_path / "parts", data=data, **kwargs, preempted=lambda call: call == 5)
  data.close()
  data = of_two_sizes()
  resumed = run(tmp_path / "parts", data=data, **kwargs)
  data.close()
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  losses = [[row["loss"] for row in logged(tmp_path / name)] for name in ("whole", "parts")]
  assert losses[0] == losses[1] and len(set(losses[0])) == 9


def test_average_and_optimizer_state_may_wait_in_the_memory_of_the_host(tmp_path):
  seen = []

  def preview(step, ema):
    seen.append(ema["w"].sharding.memory_kind)
    return np.zeros((4, 4, 3), np.uint8), {}

  near = run(tmp_path / "near")
  run(tmp_path / "far", steps=4, offload=True, preview=preview)
  far = run(tmp_path / "far", offload=True)
  kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}  # noqa: E731
  assert kinds((far.ema, far.opt)) == {"pinned_host"} and kinds(far.params) == {"device"} == set(
    seen
  )
  jax.tree.map(np.testing.assert_array_equal, near, jax.device_get(far))
  jax.tree.map(np.testing.assert_array_equal, near, run(tmp_path / "far", steps=10))


def test_a_preempted_run_saves_and_goes_on_where_it_stopped(tmp_path, caplog):
  with caplog.at_level(logging.INFO, "fbjax"):
    state = run(tmp_path / "a", save_every=100, preempted=lambda step: step == 5)
  assert int(state.step) == 5
  assert "saved step 5 of 10; run the same command to go on" in caplog.text
  jax.tree.map(np.testing.assert_array_equal, run(tmp_path / "a"), run(tmp_path / "b"))


def test_metrics_cover_every_logged_step_once(tmp_path):
  run(tmp_path, steps=4)
  run(tmp_path, steps=9)
  rows = logged(tmp_path)
  assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]
  assert rows[1]["replaced"] == 2  # one clip in batches 1 and 3
  assert all(np.isfinite(row["grad_norm"]) for row in rows)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_clips(tmp_path):
  with pytest.raises(errors.UserError) as error:
    run(tmp_path, data=Numbers(broken_at=5), save_every=2, clip_name=lambda i: f"clip{i}")
  for part in ("at step 6, in a batch of clip40, ", "clip47", "checkpoint of step 4 is intact"):
    assert part in str(error.value)
  assert not list((tmp_path / "checkpoints").glob("6*"))  # nothing broken was saved


def test_weights_that_an_update_breaks_are_not_saved(tmp_path):
  """Loss and gradient are those before the update: the learning rate alone is at fault."""
  run(tmp_path, steps=4, save_every=4)
  broken = optim.make_optimizer(name="sgd", lr=1e38, steps=100)
  with pytest.raises(errors.UserError, match=r"update norm inf at step 5.*step 4 is intact"):
    run(tmp_path, steps=5, tx=broken)
  assert checkpoint.steps(str(tmp_path)) == [4]
  assert int(run(tmp_path, steps=5).step) == 5  # as the sentence says


def test_a_run_begins_once_it_has_all_that_it_needs(tmp_path):
  steps = []
  run(tmp_path, steps=4, begins=steps.append)
  run(tmp_path, steps=4, begins=steps.append)  # trained already
  run(tmp_path, steps=6, begins=steps.append)
  assert steps == [0, 4]


def test_nothing_in_the_way_of_logs_costs_a_checkpoint(tmp_path, caplog):
  """Folders for files, files for folders, previews that fail: all steps are trained and saved."""
  (tmp_path / "metrics.jsonl").mkdir()
  (tmp_path / "loss.png").mkdir()
  (tmp_path / "tensorboard").write_text("")

  def preview(step, ema):
    raise NotADirectoryError("samples is a file")

  with caplog.at_level(logging.WARNING, "fbjax"):
    state = run(tmp_path, preview=preview, preview_every=2, log_every=1)
  told = caplog.messages.copy()
  jax.tree.map(np.testing.assert_array_equal, run(tmp_path), state)
  assert len([message for message in told if "draw a preview" in message]) == 1
  assert len(told) == 4


def test_a_failing_log_leaves_the_save_in_flight_whole(tmp_path, monkeypatch):
  """However badly the log fails: what was asked to be saved is waited for first."""

  def close(self):
    raise RuntimeError("a bug")

  monkeypatch.setattr(tracker.Tracker, "close", close)
  with pytest.raises(RuntimeError, match="a bug"):
    run(tmp_path, steps=4, save_every=4)
  assert checkpoint.steps(str(tmp_path)) == [4]


def test_a_save_that_fails_ends_the_run_before_the_next_save(tmp_path, monkeypatch):
  """The disk fills up while a save runs in the background."""
  finalize = orbax.CheckpointManager._finalize

  def full(self, step, *args):
    finalize(self, step, *args)
    if step == 2:
      raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")

  monkeypatch.setattr(orbax.CheckpointManager, "_finalize", full)

  class Slow(Numbers):
    def __next__(self):
      time.sleep(0.3 if self.position > 1 else 0)
      return super().__next__()

  data = Slow()
  with pytest.raises(errors.UserError, match="step 2 could not be saved in .*no space left on dev"):
    run(tmp_path, steps=40, save_every=2, data=data)
  assert data.position < 30


def test_zero_means_at_the_end_alone(tmp_path):
  seen = []

  def preview(step, ema):
    seen.append(step)
    return np.zeros((4, 4, 3), np.uint8), {}

  run(tmp_path, steps=5, log_every=0, save_every=0, preview_every=0, preview=preview)
  assert seen == [5]
  assert checkpoint.steps(str(tmp_path)) == [5]
  assert [row["step"] for row in logged(tmp_path)] == [5]


@pytest.mark.parametrize(
  "wrong",
  [
    {"steps": 0},
    {"keep": 0},
    {"accumulate": 0},
    {"accumulate": -8},
    {"log_every": -1},
    {"save_every": -1},
    {"preview_every": -2},
    {"ema_decay": 2.0},
    {"ema_decay": float("nan")},
  ],
)
def test_numbers_that_make_no_sense_are_named_by_their_key(tmp_path, wrong):
  ((name, value),) = wrong.items()
  with pytest.raises(errors.UserError, match=rf"train\.{name} is {value}; expected a"):
    run(tmp_path, **wrong)
  assert not (tmp_path / "checkpoints").exists()


def test_a_resumed_run_reads_no_weights_to_start_from_and_keeps_none_twice(tmp_path):
  """The memory of a resumed run: the state that was read is the one that is trained."""
  run(tmp_path, steps=2)
  reads = []

  def start():
    reads.append(1)
    return {"w": jnp.ones(4)}

  def preempted(step):
    gc.collect()
    alive.append(sum(x.shape == (4,) and not x.is_deleted() for x in jax.live_arrays()))
    return False

  alive: list[int] = []
  before = sum(x.shape == (4,) and not x.is_deleted() for x in jax.live_arrays())
  run(tmp_path, steps=8, start=start, preempted=preempted)
  assert not reads
  assert max(alive) - before <= 2  # weights and their average


def test_many_saves_and_logs_keep_no_files_open(tmp_path):
  opened = []

  def preempted(step):
    opened.append(len(os.listdir("/proc/self/fd")))
    return False

  run(tmp_path, steps=40, save_every=1, log_every=1, preempted=preempted)
  # On average, since saves that are still being written hold files; one left open a step would make 24.
  assert np.mean(opened[30:]) <= np.mean(opened[5:15]) + 8


def test_a_checkpoint_that_is_damaged_costs_only_the_steps_behind_the_one_before(tmp_path, caplog):
  whole = run(tmp_path / "whole")
  run(tmp_path / "parts", steps=6)
  (tmp_path / "parts/checkpoints/6/state/manifest.ocdbt").write_bytes(b"")
  with caplog.at_level(logging.WARNING, "fbjax"):
    resumed = run(tmp_path / "parts")
  assert "going back to that of step 3" in caplog.text
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_previews_are_drawn_from_the_average_and_at_the_end(tmp_path):
  seen = []

  def preview(step, ema):
    seen.append((step, np.array(ema["w"])))
    return np.zeros((4, 4, 3), np.uint8), {}

  state = run(tmp_path, steps=7, preview_every=3, preview=preview, ema_decay=0.5)
  assert [step for step, _ in seen] == [3, 6, 7]
  np.testing.assert_array_equal(seen[-1][1], state.ema["w"])
  assert not np.array_equal(state.ema["w"], state.params["w"])


def test_one_device_and_eight_learn_the_same(tmp_path):
  one = run(tmp_path / "one", mesh=sharding.make_mesh(1, 1, devices=jax.devices()[:1]), log_every=1)
  eight = run(tmp_path / "eight", mesh=sharding.make_mesh(2, 4), log_every=1)
  losses = [[row["loss"] for row in logged(tmp_path / name)] for name in ("one", "eight")]
  np.testing.assert_allclose(*losses, rtol=1e-5)
  np.testing.assert_allclose(one.params["w"], eight.params["w"], rtol=1e-5)


def test_a_batch_that_the_mesh_does_not_divide_is_refused_at_once(tmp_path):
  with pytest.raises(
    ValueError, match="batch_size=8 must be a multiple of config.train.accumulate=2"
  ):
    run(tmp_path, accumulate=2)


def test_a_finished_run_is_left_alone(tmp_path, caplog):
  state = run(tmp_path, steps=4)
  with caplog.at_level(logging.INFO, "fbjax"):
    again = run(tmp_path, steps=4)
  assert "already trained to step 4" in caplog.text
  jax.tree.map(np.testing.assert_array_equal, state, again)


def test_the_rates_leave_out_previews(tmp_path, monkeypatch):
  now = types.SimpleNamespace(value=0.0)
  monkeypatch.setattr(tracker.time, "perf_counter", lambda: now.value)

  def preview(step, ema):
    now.value += 1000.0
    return np.zeros((4, 4, 3), np.uint8), {}

  class Clocked(Numbers):
    def __next__(self):
      now.value += 0.5
      return super().__next__()

  run(tmp_path, steps=8, data=Clocked(), preview=preview, preview_every=4, log_every=4)
  rows = tracker.read_metrics(tmp_path / "metrics.jsonl")
  assert rows[1]["steps_per_s"] == pytest.approx(2.0)


def test_a_training_that_learns_nothing_is_told(tmp_path, caplog):
  with caplog.at_level(logging.WARNING, "fbjax"):
    run(tmp_path / "alive", steps=2)
    assert not caplog.text
    dead = lambda params, *rest: loss_fn({"w": 0.0 * params["w"]}, *rest)  # noqa: E731
    run(tmp_path / "dead", steps=2, loss_fn=dead)
  assert caplog.text.count("The gradient of all that trains is zero at step 1") == 1


def test_the_time_of_a_run_is_told_by_phases_that_sum_to_it(tmp_path, caplog):
  began = time.perf_counter()
  clock = goodput.Clock(before=7.0)
  with caplog.at_level(logging.INFO, "fbjax"):
    run(
      tmp_path,
      preview=lambda step, ema: time.sleep(0.3) or (np.zeros((4, 4, 3), np.uint8), {}),
      clock=clock,
    )
  whole = 7 + time.perf_counter() - began
  spent = time_spent(tmp_path)
  assert list(spent) == list(goodput.PHASES)
  drawing = whole - sum(spent.values())  # of loss.png, behind the last word
  assert 0 <= drawing < 2 and min(spent.values()) >= 0
  assert spent["starting"] > 7 and spent["compiling"] > 0 and spent["saving"] > 0
  assert spent["reporting"] > 0.3
  (table,) = [
    text for text in caplog.messages if text.startswith("Where the time went, to step 10")
  ]
  shares = [float(line.split("%")[0].split()[-1]) for line in table.splitlines()[1:]]
  assert sum(shares[:-1]) == pytest.approx(shares[-1], abs=0.4) and shares[-1] == 100
  assert 0 < logged(tmp_path)[-1]["goodput"] < 1


class Slow(Numbers):
  """Every batch takes a tenth of a second."""

  def __next__(self):
    time.sleep(0.1)
    return super().__next__()


def test_a_slow_source_shows_as_waiting_but_for_what_the_device_works_meanwhile(
  tmp_path, monkeypatch
):
  run(tmp_path / "slow", data=Slow())
  slow = time_spent(tmp_path / "slow")["data_wait"]
  assert slow > 0.9 and logged(tmp_path / "slow")[-1]["data_wait"] > 0.1
  monkeypatch.setattr(loop._Ends, "idle", lambda self: 0.03)
  run(tmp_path / "beside", data=Slow(), steps=9)
  spent = time_spent(tmp_path / "beside")
  assert spent["data_wait"] < 0.4 + slow / 9  # that of the first batch counts whole
  assert spent["steps"] > 8 * 0.07


def test_a_device_is_idle_from_the_end_of_its_step_on():
  with contextlib.closing(loop._Ends()) as ends:
    assert ends.idle() == 0
    ends.watch(jnp.ones(()))
    for _ in range(100):
      time.sleep(0.05)
      if ends.idle() > 0.1:
        return
  raise AssertionError("nobody saw the end of the step")


def test_a_run_that_ends_in_an_error_leaves_no_thread_that_watches_its_steps(tmp_path):
  with pytest.raises(errors.UserError) as error:
    run(tmp_path, data=Numbers(broken_at=4))
  for _ in range(100):
    watching = [x for x in threading.enumerate() if x.name.startswith("ends of steps")]
    if not watching:
      return
    time.sleep(0.05)
  raise AssertionError(f"{watching} goes on, while {error.value} is looked at")


def test_a_resumed_run_shows_how_long_it_restored(tmp_path, monkeypatch):
  run(tmp_path, steps=4)
  assert time_spent(tmp_path)["restoring"] < 0.3
  restore = checkpoint.Checkpoints.restore
  monkeypatch.setattr(
    checkpoint.Checkpoints, "restore", lambda *args: time.sleep(0.4) or restore(*args)
  )
  run(tmp_path, steps=6)
  assert time_spent(tmp_path)["restoring"] > 0.4
