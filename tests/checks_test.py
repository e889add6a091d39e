import numpy as np
import pytest

from fbjax import checks, errors


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, float("nan"), True, "3", "", None, [3], (3,)])
def test_what_is_no_whole_number_is_refused_by_its_key(value):
  with pytest.raises(errors.UserError) as e:
    checks.whole("data.frames", value)
  assert str(e.value) == f"data.frames is {value!r}; expected a whole number from 1 up."


def test_whole_numbers_of_any_library_become_ints():
  for value in (3, np.int64(3), np.uint8(3)):
    assert type(checks.whole("key", value)) is int and checks.whole("key", value) == 3
  assert checks.whole("key", 0, least=0) == 0


@pytest.mark.parametrize(
  "value",
  [0, -8, 1.5, True, "256", "64x64", None, (), (64,), (64, 64, 3), (64, 0), (64, 1.5), (64, "64")],
)
def test_what_is_neither_one_number_nor_two_is_refused_by_its_key(value):
  with pytest.raises(errors.UserError) as e:
    checks.pair("data.size", value, "height and width")
  assert str(e.value) == (
    f"data.size is {value!r}; expected a whole number from 1 up, or two of them (height and width)."
  )


def test_one_number_counts_for_both():
  assert checks.pair("key", 3, "") == checks.pair("key", np.int32(3), "") == (3, 3)
  assert checks.pair("key", [2, np.int64(5)], "") == (2, 5)
