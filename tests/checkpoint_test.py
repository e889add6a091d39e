import json
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax import checkpoint, sharding
from fbjax import workdir as workdir_lib


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


CONFIG = {"optim": {"lr": 0.1, "clip": (1, 2)}, "train": {"steps": 5}}


def test_a_workdir_keeps_the_config_it_was_trained_with(tmp_path):
  workdir_lib.claim(str(tmp_path / "run"), CONFIG)
  workdir_lib.claim(str(tmp_path / "run"), CONFIG)
  assert json.loads((tmp_path / "run" / "config.json").read_text())["optim"]["lr"] == 0.1


def test_another_config_is_refused_and_its_keys_named(tmp_path):
  workdir_lib.claim(str(tmp_path), CONFIG)
  other = {"optim": {"lr": 0.2, "clip": (1, 2), "new": None}, "train": {"steps": 9}}
  with pytest.raises(ValueError) as error:
    workdir_lib.claim(str(tmp_path), other, free=("train",))
  for expected in ("optim.lr: 0.1 there, 0.2 now", "optim.new: '(absent)' there, None now"):
    assert expected in str(error.value)
  assert "train.steps" not in str(error.value)
  assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 0.1


def test_a_free_key_may_change_and_is_recorded(tmp_path):
  workdir_lib.claim(str(tmp_path), CONFIG)
  longer = CONFIG | {"train": {"steps": 9}}
  workdir_lib.claim(str(tmp_path), longer, free=("train.steps",))
  assert workdir_lib.read_config(str(tmp_path))["train"]["steps"] == 9


def test_a_workdir_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(
    ValueError, match="cannot write to workdir .*file/run.*choose another --workdir"
  ):
    workdir_lib.claim(str(tmp_path / "file" / "run"), CONFIG)


def test_an_empty_workdir_has_no_config(tmp_path):
  with pytest.raises(ValueError, match="nothing was trained there"):
    workdir_lib.check(str(tmp_path), CONFIG)
