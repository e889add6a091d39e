import numpy as np
import pytest

from fbjax.port import files, keys, limits


def test_names_reach_a_terminal_as_text_of_one_line():
  assert files.printable("a.weight") == "a.weight"
  assert files.printable("größe.猫") == "größe.猫"
  assert files.printable("x\x1b[2J\x1b]0;owned\x07\nerror") == r"x\x1b[2J\x1b]0;owned\x07\nerror"
  assert files.printable("\u202eabc\ud800\x85") == r"\u202eabc\ud800\x85"
  assert len(files.printable("\n" * 10**7)) < 1000


@pytest.mark.parametrize(
  "wrapped",
  [
    "_orig_mod.middle_block.0.in_layers.2.weight",
    "module.middle_block.0.in_layers.2.weight",
    "module._orig_mod.middle_block.0.in_layers.2.weight",
    "_forward_module.module.middle_block._orig_mod.0.in_layers.2.weight",
    "middle_block.0._fsdp_wrapped_module._checkpoint_wrapped_module.in_layers.2.weight",
  ],
)
def test_wrappers_are_taken_off_wherever_they_are(wrapped):
  assert list(keys.unwrap({wrapped: 1})) == ["middle_block.0.in_layers.2.weight"]


def test_names_that_only_resemble_a_wrapper_stay():
  names = ["my_module.weight", "module", "a.module", "submodule.module_list.0"]
  assert list(keys.unwrap(dict.fromkeys(names))) == names


def test_two_tensors_never_become_one():
  for names in (["a", "module.a"], ["module.a", "a"], ["module.a", "_orig_mod.a"]):
    assert len(keys.unwrap({name: np.zeros(1) for name in names})) == 2
  assert keys.unwrap({"a": 1, "module.a": 2})["a"] == 1


@pytest.mark.parametrize("name", ["", "../../x", "a\0b", "x" * 300, "\ud800"])
def test_names_that_no_folder_can_have_are_refused(name):
  with pytest.raises(limits.Refused, match="calls a tensor"):
    keys.checked(name)
