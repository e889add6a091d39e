"""The blind page: what it hides, and that answers are counted for the clip they were given to."""

import json
import pathlib

import numpy as np
import pytest

from fbjax import errors
from fbjax.data import video
from studies import blind


@pytest.fixture
def page(tmp_path):
  rng = np.random.default_rng(0)
  for folder in "ab":
    for i in range(8):
      clip = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
      video.write_gif(tmp_path / folder / f"{i}.gif", clip, fps=8)
  blind.main(["blind", *(f"--{name}={tmp_path}/{name}" for name in ("a", "b", "out"))])
  return tmp_path / "out"


def test_the_page_says_nothing_of_what_is_whose(page):
  text = (page / "page.html").read_text()
  key = json.loads((page / "key.json").read_text())
  assert str(page.parent) not in text and not any(name in text for name in key["names"])
  assert "src=" not in text.replace("img.src = ", "") and "http" not in text
  assert {"a", "b"} == set(key["left"])  # both come first now and then


def test_answers_count_for_the_clip_that_was_there(page):
  key = json.loads((page / "key.json").read_text())
  answers = ["left" if left == "a" else "right" for left in key["left"]]
  file = page / "results.json"
  file.write_text(json.dumps({"page": key["page"], "answers": [*answers[:-1], "neither"]}))
  said = blind.counted(str(page), [str(file)])
  assert f"{key['a']}: 7, {key['b']}: 0, neither: 1" in said and "100% of 7 (59% to 100%" in said
  file.write_text(json.dumps({"page": "other", "answers": answers}))
  with pytest.raises(errors.UserError, match="answers to another page"):
    blind.counted(str(page), [str(file)])


def test_folders_without_pairs_are_told(tmp_path):
  pathlib.Path(tmp_path / "x").mkdir()
  with pytest.raises(errors.UserError, match="have no clips .* of the same name"):
    blind.pairs(str(tmp_path / "x"), str(tmp_path / "x"))
  with pytest.raises(errors.UserError, match="--b=: there is no such folder"):
    blind.pairs(str(tmp_path / "x"), "")
