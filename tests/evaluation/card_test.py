import json

import pytest

from fbjax import errors
from fbjax.evaluation import card
from fbjax.evaluation.numbers import Number

PROTOCOL = {"source": "ucf101", "clips": 256, "size": 256, "fvd": "styleganv"}


def made(value=100.0, error=3.0, **protocol):
  numbers = {"made": {"fvd": Number(value, error)}, "still": {"fvd": Number(400.0, 9.0)}}
  return card.make(PROTOCOL | protocol, {"steps": 50}, numbers, {"jax": "1"})


def test_a_card_comes_back_as_it_was_written_and_not_if_it_was_changed(tmp_path):
  file = tmp_path / "a.json"
  card.write(str(file), made())
  assert card.read(str(file)) == made()
  changed = json.loads(file.read_text())
  changed["numbers"]["made"]["fvd"][0] = 95.0
  file.write_text(json.dumps(changed))
  with pytest.raises(errors.UserError, match="a.json was changed after it was measured"):
    card.read(str(file))
  for text in ("{", "[]", '{"digest": 3}'):
    file.write_text(text)
    with pytest.raises(errors.UserError, match="a.json is no card"):
      card.read(str(file))
  with pytest.raises(errors.UserError, match="no card .*b.json"):
    card.read(str(tmp_path / "b.json"))


def test_other_versions_and_times_do_not_change_the_digest():
  one = made()
  assert (
    card.make(one["protocol"], one["subject"], {}, {"jax": "1"})["digest"]
    == (card.make(one["protocol"], one["subject"], {}, {"jax": "2"})["digest"])
  )
  assert one["digest"] != made(101.0)["digest"] != made(clips=2048)["digest"]


def test_two_cards_are_compared_with_their_errors():
  table = card.compare(made(), made(150.0, 4.0), ("a", "b"))
  (row,) = [line for line in table.splitlines() if line.startswith("fvd")]
  assert "100 +- 3" in row and "150 +- 4" in row and "50 +- 5  *" in row and "400 +- 9" in row
  near = card.compare(made(), made(104.0), ("a", "b"))
  assert "  *" not in near.splitlines()[1]


@pytest.mark.parametrize("field", [{"clips": 2048}, {"fvd": "videogpt"}, {"stride": 3}])
def test_numbers_of_two_protocols_are_not_compared(field):
  ((name, value),) = field.items()
  with pytest.raises(errors.UserError, match=f"cannot be compared: {name} is .* and {value!r} in"):
    card.compare(made(), made(**field), ("a", "b"))


def test_what_was_measured_is_named_before_the_digest_that_follows_from_it():
  with pytest.raises(errors.UserError, match="cannot be compared: truth is"):
    card.compare(made(digest="a", truth="clips"), made(digest=None), ("a", "b"))


def test_a_measure_that_one_card_lacks_does_not_matter_and_one_of_other_weights_does():
  fvd, fid = {"i3d": "a", "protocol": "styleganv"}, {"inception": "b"}
  one, two = made(metrics={"fvd": fvd}), made(150.0, metrics={"fvd": fvd, "fid": fid})
  assert "150 +- 3" in card.compare(one, two, ("a", "b"))
  other = made(metrics={"fvd": fvd | {"i3d": "c"}})
  with pytest.raises(errors.UserError, match="fvd.i3d is 'a' in the one and 'c' in the other"):
    card.compare(one, other, ("a", "b"))
