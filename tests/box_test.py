"""What comes with the package, from wherever it is asked for."""

import pathlib

from fbjax import box
from settings import ROOT


def test_a_model_is_found_from_anywhere_and_one_that_is_here_goes_before(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert box.find("zoo/shapes") == str(ROOT / "zoo/shapes")
  assert box.find(pathlib.Path("zoo/shapes/star.png")) == str(ROOT / "zoo/shapes/star.png")
  (tmp_path / "zoo/shapes").mkdir(parents=True)
  assert box.find("zoo/shapes") == "zoo/shapes"


def test_what_is_not_in_the_box_stays_what_it_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in ("zoo/nothing", "fbjax/main.py", "runs/x", "", "gs://zoo/shapes", "/zoo/shapes"):
    assert box.find(path) == path
