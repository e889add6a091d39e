import pytest

from fbjax import errors


@pytest.mark.parametrize(
  "error",
  [OSError(28, "No space left on device"), ValueError("RESOURCE: No space left on device [os 28]")],
)
def test_a_failure_of_the_disk_is_a_sentence(error):
  with (
    pytest.raises(errors.UserError, match=r"cannot save \(no space left on device\): make room"),
    errors.of_the_disk("cannot save", lambda: "make room"),
  ):
    raise error


@pytest.mark.parametrize("error", [KeyError("prior"), ValueError("x"), errors.UserError("a, b")])
def test_other_failures_stay_what_they_are(error):
  with pytest.raises(type(error)) as caught, errors.of_the_disk("cannot save", lambda: "make room"):
    raise error
  assert caught.value is error
