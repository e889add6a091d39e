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
  [0, -8, 1.5, True, "256", "64x64", None, (), (64, 64, 3), (64, 0), (64, 1.5), (64, "64")],
)
def test_what_is_neither_one_number_nor_two_is_refused_by_its_key(value):
  with pytest.raises(errors.UserError) as e:
    checks.pair("data.size", value, "height and width")
  assert str(e.value) == (
    f"data.size is {value!r}; expected a whole number from 1 up, or two of them (height and width)."
  )


def test_one_number_counts_for_both():
  assert checks.pair("key", 3, "") == checks.pair("key", np.int32(3), "") == (3, 3)
  assert checks.pair("key", (3,), "") == (3, 3)
  assert checks.pair("key", [2, np.int64(5)], "") == (2, 5)


def test_a_whole_number_may_have_an_upper_end():
  assert checks.whole("key", 7, most=7) == 7
  with pytest.raises(errors.UserError, match="key is 8; expected a whole number from 1 to 7."):
    checks.whole("key", 8, most=7)


@pytest.mark.parametrize(
  ("value", "bounds", "told"),
  [
    (float("nan"), {}, "a finite number"),
    (float("inf"), {}, "a finite number"),
    ("1", {}, "a finite number"),
    (True, {}, "a finite number"),
    (None, {}, "a finite number"),
    (-0.1, {"least": 0}, "a number from 0 up"),
    (0, {"above": 0}, "a number above 0"),
    (1, {"least": 0, "below": 1}, "a number from 0 up, below 1"),
    (1.1, {"least": 0, "most": 1}, "a number from 0 up, at most 1"),
  ],
)
def test_a_number_out_of_its_bounds_is_refused_by_its_key(value, bounds, told):
  with pytest.raises(errors.UserError) as e:
    checks.number("optim.lr", value, **bounds)
  assert str(e.value) == f"optim.lr is {value!r}; expected {told}."


def test_a_number_within_its_bounds_is_a_float():
  assert checks.number("key", 0, least=0, below=1) == 0.0
  assert type(checks.number("key", np.float32(0.5), above=0, most=0.5)) is float


def test_a_string_by_itself_is_a_list_of_one_and_a_pattern_must_be_one():
  assert checks.strings("key", ["a", "b"]) == ("a", "b") and checks.patterns("key", ()) == ()
  assert checks.strings("key", "right") == ("right",) and checks.patterns("key", "a") == ("a",)
  for value in (3, (1,), None):
    with pytest.raises(errors.UserError, match="key is .*; expected a list"):
      checks.patterns("key", value)
  with pytest.raises(errors.UserError, match=r"key has '\(', which is no regular expression"):
    checks.patterns("key", ("a", "("))


def test_no_number_of_a_config_is_nan():
  checks.finite({"a": 1, "b": {"c": 0.5, "d": "nan"}})
  with pytest.raises(errors.UserError, match="config.b.c is inf; expected a finite number"):
    checks.finite({"a": 1, "b": {"c": float("inf")}})


def test_a_clip_has_an_end():
  checks.clip(49, (1080, 1920))
  with pytest.raises(
    errors.UserError, match="16 frames of 100000x100000 pixels are 160,000 megapix"
  ):
    checks.clip(16, (100_000, 100_000))
