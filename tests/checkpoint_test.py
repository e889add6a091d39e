import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax import checkpoint, sharding


class State(NamedTuple):
  step: jax.Array
  params: dict
  ema: dict


@pytest.fixture
def state():
  weights = {"layers": {0: jnp.arange(64.0).reshape(8, 8), 1: jnp.ones(3)}}
  return State(jnp.int32(7), weights, jax.tree.map(lambda x: 2 * x, weights))


def saved(path, state, position=7):
  checkpoints = checkpoint.Checkpoints(str(path))
  checkpoints.save(7, state, position)
  checkpoints.close()
  return checkpoint.Checkpoints(str(path))


def test_a_state_comes_back_bitwise_with_its_position(tmp_path, state):
  checkpoints = saved(tmp_path, state, position=11)
  restored, position = checkpoints.restore(checkpoints.latest, state)
  assert position == 11
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert isinstance(restored, State)


def test_a_state_restores_onto_another_mesh(tmp_path, state):
  checkpoints = saved(tmp_path, state)
  mesh = sharding.make_mesh(1, 8)
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  params = {
    "layers": {0: jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=split), 1: jnp.ones(3)}
  }
  restored, _ = checkpoints.restore(7, state._replace(params=params))
  assert restored.params["layers"][0].sharding == split
  np.testing.assert_array_equal(restored.params["layers"][0], state.params["layers"][0])


def test_a_part_of_the_state_restores_alone(tmp_path, state):
  checkpoints = saved(tmp_path, state)
  part = checkpoints.restore_part(7, {"ema": state.ema})
  assert set(part) == {"ema"}
  jax.tree.map(np.testing.assert_array_equal, part["ema"], state.ema)


def test_a_donated_state_is_saved_as_it_was(tmp_path, state):
  """The step after an asynchronous save reuses the state's memory."""
  spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  expected = jax.tree.map(np.array, state)
  checkpoints.save(7, state, 0)
  spoil(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore(7, checkpoint.abstract(expected))
  jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_only_the_newest_are_kept(tmp_path, state):
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=2)
  for step in (1, 2, 3):
    checkpoints.save(step, state, step)
  checkpoints.close()
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_an_unfinished_checkpoint_is_not_restored(tmp_path, state):
  """A run killed while saving leaves a temporary folder; the next start removes it."""
  saved(tmp_path, state).close()
  unfinished = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
  unfinished.mkdir()
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  assert checkpoints.latest == 7
  for _ in range(100):  # removed in the background
    if not unfinished.exists():
      break
    time.sleep(0.1)
  assert not unfinished.exists()
