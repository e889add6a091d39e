import errno
import json
import multiprocessing
import os
import signal

import pytest

from fbjax import errors, places
from fbjax import workdir as workdir_lib

CONFIG = {
  "system": {"name": "latte", "latte": {"width": 8}, "dtype": "float32"},
  "objective": {"name": "bridge", "predict": "psi", "drop_text": 0.1},
  "bridge": {"name": "gmax"},
  "data": {"name": "folder", "path": "a", "size": 16},
  "optim": {"name": "adamw", "lr": 0.1, "clip": [1, 2]},
  "train": {"steps": 5, "batch_size": 4},
  "weights": "ported/a",
  "seed": 0,
}


def with_key(key, value):
  config = json.loads(json.dumps(CONFIG))
  *groups, last = key.split(".")
  here = config
  for group in groups:
    here = here[group]
  here[last] = value
  return config


def claim(workdir, config=CONFIG, step=0, **origin):
  """A run that goes on from `step` and saves the next one."""
  with workdir_lib.claim(str(workdir), config, origin) as record:
    record(step)
    (workdir / f"checkpoints/{step + 1}").mkdir(parents=True)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("system.latte.width", 16),
    ("bridge.name", "vp"),
    ("bridge.beta_max", 20.0),
    ("objective.predict", "v"),
    ("optim.name", "sgd"),
  ],
)
def test_another_network_is_refused_and_its_keys_named(tmp_path, key, value):
  claim(tmp_path)
  with pytest.raises(errors.UserError, match=rf"these keys differ: {key}: .* there, {value!r} now"):
    claim(tmp_path, with_key(key, value))
  assert workdir_lib.read_config(str(tmp_path)) == CONFIG


@pytest.mark.parametrize(
  ("key", "value", "another"),
  [
    ("optim.lr", 0.01, False),
    ("data.path", "b", False),
    ("train.steps", 9, False),
    ("system.dtype", "bfloat16", False),
    ("weights", "ported/b", False),
    ("train.batch_size", 8, True),
    ("data.size", 32, True),
    ("seed", 1, True),
  ],
)
def test_what_does_not_change_the_network_may_change_and_is_kept_with_its_step(
  tmp_path, caplog, key, value, another
):
  claim(tmp_path)
  caplog.set_level("INFO")
  claim(tmp_path, with_key(key, value), step=3)
  (row,) = map(json.loads, (tmp_path / "changes.jsonl").read_text().splitlines())
  assert (row["step"], row["key"], row["now"]) == (3, key, value)
  assert f"{key}: " in caplog.text and "from step 3 on" in caplog.text
  assert ("no longer the one that was begun" in caplog.text) == another
  assert workdir_lib.read_config(str(tmp_path)) == with_key(key, value)


@pytest.mark.parametrize("name", ["weights", "prior_run"])
def test_other_values_in_the_same_folder_are_another_network(tmp_path, name):
  claim(tmp_path, **{name: "aa"})
  claim(tmp_path, step=1, **{name: "aa"})
  with pytest.raises(errors.UserError, match=f"{name}: other values there"):
    claim(tmp_path, **{name: "bb"})
  (tmp_path / "origin.json").unlink()  # which does without this check
  claim(tmp_path, step=2, **{name: "bb"})


def test_other_clips_at_the_same_place_are_told(tmp_path, caplog):
  claim(tmp_path, data="aa")
  claim(tmp_path, with_key("data.path", "moved"), data="aa", step=2)
  assert "the clips of data" not in caplog.text
  claim(tmp_path, with_key("data.path", "moved"), data="bb", step=4)
  assert "the clips of data: 'aa' before, 'bb' from step 4 on." in caplog.text


def hold(workdir, ready):
  with workdir_lib.claim(workdir, CONFIG, {}):
    ready.set()
    signal.pause()


def test_two_cannot_train_in_one_workdir_and_a_killed_one_leaves_it_free(tmp_path):
  context = multiprocessing.get_context("spawn")
  ready = context.Event()
  first = context.Process(target=hold, args=(str(tmp_path), ready))
  first.start()
  assert ready.wait(60)
  os.kill(first.pid, signal.SIGSTOP)  # one that hangs holds its workdir as well
  with pytest.raises(errors.UserError, match="another process is training in .*take another"):
    claim(tmp_path)
  first.kill()
  first.join()
  claim(tmp_path)


def test_a_workdir_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="cannot write to workdir .*choose another --workdir"):
    claim(tmp_path / "file" / "run")
  (tmp_path / ".lock").symlink_to("/nobody/has/this")  # as one that belongs to somebody else
  with pytest.raises(errors.UserError, match="cannot write to workdir .*choose another --workdir"):
    claim(tmp_path)


def test_an_empty_workdir_has_no_config(tmp_path):
  with pytest.raises(errors.UserError, match="nothing was trained there"):
    workdir_lib.check(str(tmp_path), CONFIG)


@pytest.mark.parametrize(
  "damage", [b"", b'{"system": ', b"\xff\x00\x10", b"[1, 2]", b"{}", b"null"]
)
def test_a_damaged_config_is_one_sentence(tmp_path, damage):
  claim(tmp_path)
  (tmp_path / "config.json").write_bytes(damage)
  for use in (workdir_lib.read_config, lambda _: claim(tmp_path, step=1)):
    with pytest.raises(errors.UserError, match="config.json is damaged"):
      use(str(tmp_path))


def test_checkpoints_without_their_config_are_not_gone_on_with(tmp_path):
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  assert workdir_lib.newest_step(str(tmp_path)) == 4
  with pytest.raises(errors.UserError, match="has checkpoints, but config.json is gone"):
    claim(tmp_path, step=4)


def test_a_start_that_was_killed_before_its_first_checkpoint_leaves_the_workdir_free(tmp_path):
  with workdir_lib.claim(str(tmp_path), CONFIG, {"weights": "aa"}) as record:
    record(0)
  other = with_key("system.latte.width", 16)
  claim(tmp_path, other)
  assert workdir_lib.read_config(str(tmp_path)) == other
  assert not (tmp_path / "changes.jsonl").exists()


def test_a_run_that_is_refused_leaves_the_workdir_as_it_was(tmp_path):
  claim(tmp_path)
  with (
    pytest.raises(ZeroDivisionError),
    workdir_lib.claim(str(tmp_path), with_key("optim.lr", 0.01), {}),
  ):
    raise ZeroDivisionError  # such as for what cannot be restored
  assert workdir_lib.read_config(str(tmp_path)) == CONFIG
  assert not (tmp_path / "changes.jsonl").exists()


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
  def full(file, text):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(places, "write_json", full)
  with pytest.raises(
    errors.UserError, match=r"cannot write to workdir .*no space left.*choose another --workdir"
  ):
    claim(tmp_path)
