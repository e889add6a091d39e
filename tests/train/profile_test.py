"""The trace that --profile writes."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from fbjax import sharding
from fbjax.train import loop, optim, profile


class Ones:
  """Batches of ones."""

  position = 0

  def __next__(self):
    self.position += 1
    return {"x": np.ones((8, 4), np.float32)}


def run(workdir, steps, **kwargs):
  loop.train(
    loss_fn=lambda params, frozen, batch, keys: (jnp.mean((batch["x"] @ params["w"] - 1) ** 2), {}),
    tx=optim.make_optimizer(name="sgd", lr=0.05, steps=100),
    init=lambda key: {"w": jax.random.normal(key, (4,))},
    frozen={},
    data=Ones(),
    mesh=sharding.make_mesh(8, 1),
    workdir=str(workdir),
    steps=steps,
    batch_size=8,
    log_every=0,
    save_every=0,
    **kwargs,
  )


def traced(workdir) -> tuple[list[int], set[str]]:
  """Numbers of the steps in the newest trace of a workdir, and the names of all its events."""
  file = max((workdir / "profile").rglob("*.xplane.pb"))
  planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
  events = [event for plane in planes for line in plane.lines for event in line.events]
  steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
  return sorted(steps), {event.name for event in events}


def test_a_trace_has_the_steps_behind_the_first_and_what_they_ran(tmp_path):
  run(tmp_path, 10, profiled=True)
  steps, names = traced(tmp_path)
  assert steps == list(range(profile.FIRST, profile.FIRST + profile.STEPS))
  assert any("dot" in name or "fusion" in name for name in names)  # of XLA
  assert not any("compile" in name.lower() for name in names)
  assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


def test_a_run_of_few_steps_traces_what_there_is_and_no_run_does_unasked(tmp_path):
  run(tmp_path, 3)
  assert not (tmp_path / "profile").exists()
  run(tmp_path, 4, profiled=True)
  assert traced(tmp_path)[0] == [4]


def test_a_trace_that_cannot_be_written_costs_no_training(tmp_path):
  (tmp_path / "profile").write_text("in the way")
  run(tmp_path, 10, profiled=True)
  assert (tmp_path / "checkpoints" / "10").exists()


def test_a_trace_is_ended_where_a_run_is(tmp_path):
  trace = profile.Trace(str(tmp_path), 100, lambda what: contextlib.nullcontext())
  with contextlib.closing(trace):
    for step in (1, 2, 3):
      trace.reach(step, None)
      with profile.named(step):
        jnp.ones(4).block_until_ready()
  assert traced(tmp_path)[0] == [2, 3]
