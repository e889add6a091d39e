import json

import pytest

from fbjax import workdir as workdir_lib

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
