import collections
import logging
import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import settings
from fbjax import checkpoint, errors, sharding


class State(NamedTuple):
  step: jax.Array
  params: dict
  ema: dict


def make_state(seed: int = 7) -> State:
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  weights = {"layers": {0: draw(8, 8), 1: draw(3)}, "wide": draw(40, 50)}
  return State(jnp.int32(seed), weights, jax.tree.map(lambda x: 2 * x, weights))


@pytest.fixture
def state():
  return make_state()


def saved(workdir, *steps, keep=5):
  """A workdir with checkpoints of steps; the state of step n is `make_state(n)`."""
  checkpoints = checkpoint.Checkpoints(str(workdir), keep)
  for step in steps or (7,):
    checkpoints.save(step, make_state(step), position=10 * step)
  checkpoints.close()
  return workdir / "checkpoints"


def restored(workdir, like=None):
  """(state, position) as a training gets them."""
  checkpoints = checkpoint.Checkpoints(str(workdir))
  try:
    return checkpoints.restore(like or make_state())
  finally:
    checkpoints.close()


def same(actual, expected) -> bool:
  return all(
    np.array_equal(np.asarray(x), np.asarray(y))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  )


def test_a_state_comes_back_bitwise_with_its_position(tmp_path, state):
  saved(tmp_path)
  found, position = restored(tmp_path)
  assert position == 70
  assert isinstance(found, State) and same(found, state)


def test_a_workdir_without_checkpoints_has_nothing_to_restore(tmp_path):
  assert restored(tmp_path) is None
  with pytest.raises(errors.UserError, match="holds no checkpoint yet; train it first"):
    checkpoint.load(str(tmp_path / "other"), {"ema": make_state().ema})


def split(mesh, shape, dtype=jnp.float32):
  spec = jax.sharding.PartitionSpec("fsdp")
  return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))


def test_a_state_restores_onto_another_mesh(tmp_path, state):
  saved(tmp_path)
  mesh = sharding.make_mesh(1, 8)
  params = state.params | {"wide": split(mesh, (40, 50))}
  found, _ = restored(tmp_path, state._replace(params=params))
  assert found.params["wide"].sharding == params["wide"].sharding
  assert same(found, state)


def test_a_part_of_the_state_is_read_alone_and_in_another_dtype(tmp_path, state):
  saved(tmp_path)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), state.ema)
  step, part = checkpoint.load(str(tmp_path), {"ema": like})
  assert step == 7 and set(part) == {"ema"}
  assert same(part["ema"], jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.ema))


def test_other_arrays_than_were_saved_are_named_and_no_damage(tmp_path, state):
  saved(tmp_path, 2, 7)
  other = {"layers": {0: jnp.ones((8, 9)), 2: jnp.ones(3)}}
  with pytest.raises(errors.UserError) as error:
    checkpoint.load(str(tmp_path), {"ema": other})
  assert "no ema/layers/2, a ema/layers/0 of shape (8, 8) instead of (8, 9)" in str(error.value)
  with pytest.raises(errors.UserError, match="a ema/layers/0, which nothing here takes"):
    restored(tmp_path, state._replace(ema={}))
  assert checkpoint.steps(str(tmp_path)) == [2, 7]


def test_a_donated_state_is_saved_as_it_was(tmp_path, state):
  """The step after an asynchronous save reuses the state's memory."""
  spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  expected = jax.tree.map(np.array, state)
  checkpoints.save(7, state, 0)
  spoil(state)
  checkpoints.close()
  assert same(restored(tmp_path, expected)[0], expected)


def test_only_the_newest_are_kept(tmp_path):
  folder = saved(tmp_path, 1, 2, 3, keep=2)
  assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_many_saves_open_no_more_files_than_few(tmp_path):
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  small, opened = {"w": jnp.ones(8)}, []
  for step in range(1, 31):
    checkpoints.save(step, small, step)
    checkpoints.wait()
    opened.append(len(os.listdir("/proc/self/fd")))
  checkpoints.close()
  assert max(opened[-10:]) <= max(opened[:10])


# Damage. Everything below restores what was saved, or says that it does not.


def flipped(path: pathlib.Path, bit: int) -> None:
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


def test_no_flipped_bit_becomes_a_weight(tmp_path, state):
  """In files by their size, and in each file as often, so that small ones have their turn too."""
  folder = saved(tmp_path)
  mesh = sharding.make_mesh(1, 8)
  wide = state.ema | {"wide": split(mesh, (40, 50))}
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
  rng = random.Random(0)
  results = collections.Counter()
  for trial in range(60):
    weights = [path.stat().st_size if trial % 2 else 1 for path in files]
    path = rng.choices(files, weights)[0]
    content = path.read_bytes()
    flipped(path, rng.randrange(8 * len(content)))
    for like in (state, {"ema": wide}):
      whole = isinstance(like, State)
      try:
        seal, found = checkpoint._newest_intact(checkpoint.folder(str(tmp_path)), like, whole)
      except errors.UserError:
        results[whole, "refused"] += 1
      else:
        expected = state if whole else {"ema": state.ema}
        assert same(found, expected) and seal.position == 70, path
        results[whole, "harmless"] += 1
    path.write_bytes(content)
  # How many do harm varies: Orbax names its files at random.
  assert results[True, "refused"] > 15 and results[False, "refused"] > 5


def empty(folder):
  for path in folder.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def to_data(change):
  """A change of all files that hold arrays: which of them hold the same bytes is Orbax's affair."""

  def damage(folder):
    for path in sorted((folder / "state").rglob("d/*")):
      change(path)

  return damage


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
  "nothing left": empty,
  "no seal": lambda folder: shutil.rmtree(folder / "seal"),
  "seal cut": lambda folder: cut(folder / "seal/metadata"),
  "seal emptied": lambda folder: (folder / "seal/metadata").write_bytes(b""),
  "seal of a list": lambda folder: (folder / "seal/metadata").write_text("[1, 2]"),
  "seal binary": lambda folder: (folder / "seal/metadata").write_bytes(b"\xff\x00\x80"),
  "no state": lambda folder: shutil.rmtree(folder / "state"),
  "state emptied": lambda folder: empty(folder / "state"),
  "no tree": lambda folder: (folder / "state/_METADATA").unlink(),
  "tree cut": lambda folder: cut(folder / "state/_METADATA"),
  "tree emptied": lambda folder: (folder / "state/_METADATA").write_bytes(b""),
  "no manifest": lambda folder: (folder / "state/manifest.ocdbt").unlink(),
  "manifest cut": lambda folder: cut(folder / "state/manifest.ocdbt"),
  "manifest emptied": lambda folder: (folder / "state/manifest.ocdbt").write_bytes(b""),
  "no data": to_data(lambda path: path.unlink()),
  "data cut": to_data(cut),
  "data emptied": to_data(lambda path: path.write_bytes(b"")),
  "data zeroed": to_data(lambda path: path.write_bytes(bytes(path.stat().st_size))),
  "no index": lambda folder: shutil.rmtree(folder / "state/ocdbt.process_0"),
  "all emptied": lambda folder: [p.write_bytes(b"") for p in folder.rglob("*") if p.is_file()],
  "another step's": lambda folder: (
    shutil.rmtree(folder),
    shutil.copytree(folder.parent / "2", folder),
  ),
  "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage):
  folder = saved(tmp_path, 2, 4)
  DAMAGES[damage](folder / "4")
  before = sorted(path for path in folder.rglob("*"))
  with caplog.at_level(logging.WARNING, "fbjax"):
    step, part = checkpoint.load(str(tmp_path), {"ema": make_state().ema})
  assert step == 2 and same(part["ema"], make_state(2).ema)
  assert (
    "The checkpoint of step 4 in" in caplog.text and "going back to that of step 2" in caplog.text
  )
  assert sorted(path for path in folder.rglob("*")) == before  # a reader changes nothing

  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=2)
  found, position = checkpoints.restore(make_state())
  assert same(found, make_state(2)) and position == 20
  checkpoints.save(4, make_state(4), 40)  # the training comes by there again
  checkpoints.close()
  assert same(restored(tmp_path)[0], make_state(4))
  assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "4.damaged"]


def test_an_empty_folder_of_a_later_step_is_no_checkpoint(tmp_path):
  folder = saved(tmp_path, 2, 4)
  (folder / "99").mkdir()
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=2)
  assert same(checkpoints.restore(make_state())[0], make_state(4))
  checkpoints.save(6, make_state(6), 60)
  checkpoints.close()
  assert checkpoint.steps(str(tmp_path)) == [4, 6]


def test_when_none_is_intact_one_sentence_says_which_and_why(tmp_path):
  folder = saved(tmp_path, 2, 4)
  empty(folder / "2")
  to_data(cut)(folder / "4")
  for read in (lambda: restored(tmp_path), lambda: checkpoint.load(str(tmp_path), {"ema": {}})):
    with pytest.raises(errors.UserError) as error:
      read()
  for part in (str(folder), "step 2: its seal is missing", "step 4: ", "put back a copy of one"):
    assert part in str(error.value)
  assert "\n" not in str(error.value)
  assert checkpoint.steps(str(tmp_path)) == [2, 4]


# Two at once.


def test_a_reader_leaves_a_save_in_flight_alone(tmp_path):
  folder = saved(tmp_path)
  unfinished = folder / "9.orbax-checkpoint-tmp"
  (unfinished / "state").mkdir(parents=True)
  assert checkpoint.load(str(tmp_path), {"ema": make_state().ema})[0] == 7
  time.sleep(0.3)
  assert (unfinished / "state").exists()


def test_the_next_writer_clears_away_what_was_left_unfinished(tmp_path):
  unfinished = saved(tmp_path) / "9.orbax-checkpoint-tmp"
  unfinished.mkdir()
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  assert same(checkpoints.restore(make_state())[0], make_state())
  for _ in range(100):  # removed in the background
    if not unfinished.exists():
      break
    time.sleep(0.1)
  assert not unfinished.exists()
  checkpoints.close()


TRAINING = """
import sys
sys.path[:0] = ["tests"]
import checkpoint_test
from fbjax import checkpoint
checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=1)
for step in range(2, 30):
  checkpoints.save(step, checkpoint_test.make_state(step), 10 * step)
checkpoints.close()
"""


def test_a_reader_keeps_up_with_a_training_that_removes_old_checkpoints(tmp_path, caplog):
  """Whatever it finds gone while it reads, it ends with a whole checkpoint and no false alarm."""
  saved(tmp_path, 1)
  training = subprocess.Popen([sys.executable, "-c", TRAINING, str(tmp_path)], cwd=settings.ROOT)
  seen: list[int] = []
  with caplog.at_level(logging.WARNING, "fbjax"):
    while training.poll() is None:
      step, part = checkpoint.load(str(tmp_path), {"ema": make_state().ema})
      assert same(part["ema"], make_state(step).ema)
      seen.append(step)
  assert training.returncode == 0
  assert seen == sorted(seen) and len(set(seen)) > 3
  assert "damaged" not in caplog.text


def test_a_checkpoint_that_is_removed_while_it_is_read_is_not_missed(tmp_path, monkeypatch):
  folder = saved(tmp_path, 2)
  read = checkpoint._read

  def overtaken(path, wanted, whole):
    if path.name == "2":
      saved(tmp_path, 4)
      shutil.rmtree(folder / "2")
    return read(path, wanted, whole)

  monkeypatch.setattr(checkpoint, "_read", overtaken)
  step, part = checkpoint.load(str(tmp_path), {"ema": make_state().ema})
  assert step == 4 and same(part["ema"], make_state(4).ema)


# A disk that refuses.

FULL = """
import sys
import jax
from absl import logging
logging.set_verbosity(logging.ERROR)
from fbjax import checkpoint, errors
checkpoints = checkpoint.Checkpoints(sys.argv[1])
try:
  for step in range(1, 9):
    size = 100_000 if step < 3 else 1_000_000
    checkpoints.save(step, {"w": jax.random.normal(jax.random.key(step), size)}, step)
    checkpoints.wait()
    print("saved", step, flush=True)
except errors.UserError as error:
  print("told:", error)
finally:
  checkpoints.close()
"""


@pytest.fixture
def small_disk(tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
  if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("may not mount a small disk here")
  yield disk
  subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_at_that_save(small_disk):
  done = subprocess.run(
    [sys.executable, "-c", FULL, str(small_disk / "w")],
    cwd=settings.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[:2] == ["saved 1", "saved 2"]
  told = done.stdout.splitlines()[-1]
  for part in ("told: step 3", "no space left on device", "the checkpoint of step 2 is intact"):
    assert part in told
  assert "Traceback" not in done.stderr
  found = checkpoint.load(str(small_disk / "w"), {"w": jnp.ones(100_000)})
  assert found[0] == 2


def test_a_workdir_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="cannot keep checkpoints in .*file/run/checkpoints"):
    checkpoint.Checkpoints(str(tmp_path / "file" / "run"))


@pytest.mark.filterwarnings("ignore:.*was never awaited")
def test_a_machine_that_cannot_open_files_is_not_a_damaged_checkpoint(tmp_path):
  """Otherwise a run would go back a checkpoint, and set the newest one aside."""
  folder = saved(tmp_path, 7, 9)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1, hard))
  try:
    with pytest.raises(errors.UserError, match=r"cannot read .*9 \(too many open files\)"):
      checkpoint.load(str(tmp_path), {"ema": make_state().ema})
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  assert sorted(x.name for x in folder.iterdir()) == ["7", "9"]
  assert same(restored(tmp_path)[0], make_state(9))
