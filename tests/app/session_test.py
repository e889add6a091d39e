"""From the fields of a request to what is shown of it, without a browser."""

import os
import re

import jax
import numpy as np
import pytest

from fbjax import errors
from fbjax.app import session, show


def ask(server, image, *fields, gallery=()):
  given = {"path": image, "orig_name": "my cat.png"}
  return list(session.answer(server, given, None, fields or [{"prompt": "up"}], gallery))


def test_a_clip_grows_and_is_done_and_on_the_shelf(server, image):
  shown = ask(server, image, {"prompt": "up", "steps": 3, "seed": 7})
  told = [re.search(r'fb-told">(.*?)<', each.stage)[1] for each in shown]
  assert told[0] == "Begins." and told[1:3] == ["evaluation 1 of 3", "evaluation 2 of 3"]
  assert told[3].startswith("3 evaluations, ") and "fb-done" in shown[-1].stage
  assert len({each.stage for each in shown}) == len(shown) == 4
  assert [len(each.gallery) for each in shown] == [0, 0, 0, 1]
  (made,) = shown[-1].gallery
  assert made.text == "up, steps 3, seed 7" and made.name == "my cat-7" and made.is_small
  command = re.search("<pre>(.*?)</pre>", shown[-1].stage)[1]
  assert "--workdir=runs/wild" in command and "--seed=7" in command and "my cat.png" in command


def test_the_first_clip_finds_its_programs_compiled(pipe, tmp_path, image):
  own = session.serve(pipe, {}, os.path.dirname(image))
  ask(own, image, {"prompt": "up", "steps": 5, "sampler": "heun"})
  (programs,) = own.steps._programs.values()
  assert [program._cache_size() for program in programs] == [1, 1, 1]


def test_two_settings_stand_side_by_side_and_are_told_apart(server, image):
  last = ask(server, image, {"prompt": "up"}, {"prompt": "down", "seed": 1})[-1]
  assert last.stage.count("fb-done") == 2 == len(last.gallery)
  assert len({made.name for made in last.gallery}) == 2  # files that are taken along
  assert last.gallery[0].clip != last.gallery[1].clip
  assert last.stage.index("--prompt=up") < last.stage.index("--prompt=down")


def test_words_that_the_network_does_not_know_are_told(server, image):
  assert "none of: кот." in ask(server, image, {"prompt": "кот"})[-1].stage
  assert "There is no prompt" in ask(server, image, {})[-1].stage


def test_a_shelf_keeps_the_newest(server, image):
  made = show.Made("data:,a", "data:,b", "data:,c", "old", "old", True)
  kept = ask(server, image, gallery=[made] * show.KEPT)[-1].gallery
  assert len(kept) == show.KEPT and kept[-1].name == "my cat-0" and kept[-2] == made


def test_mistakes_come_before_anything_is_computed(server, image):
  for given, fields, sentence in (
    (None, {}, "there is no image: drop one"),
    ({"path": image}, {"steps": -1}, "steps is -1"),
    ({"path": image}, {"guidance": 3}, "it is told nothing: give --prompt"),
  ):
    with pytest.raises(errors.UserError, match=sentence):
      next(session.answer(server, given, None, [{"prompt": "up"}, fields], ()))


def test_no_file_is_left_behind(server, image):
  before = sorted(os.listdir(server.folder))
  ask(server, image)
  assert sorted(os.listdir(server.folder)) == before


def test_a_clip_that_is_not_finite_is_one_sentence(server, image, monkeypatch):
  params, frozen = server.pipe.weights
  spoilt = jax.tree.map(lambda x: x * np.nan, params)
  monkeypatch.setitem(server.pipe.__dict__, "weights", (spoilt, frozen))
  with pytest.raises(errors.UserError, match="the numbers became infinite"):
    ask(server, image)
