"""--mode=report: which runs, and where to."""

import json

import pytest
from absl.testing import flagsaver

import toy
from fbjax import errors, main, options
from fbjax.modes import report


@pytest.fixture
def runs(tmp_path):
  for name in "ab":
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps(toy.config()))
  return [str(tmp_path / name) for name in "ab"]


def test_runs_stand_behind_the_mode_or_in_its_flag(runs, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  one, two = runs
  for args, out in (
    ([one, two, "--out=beside.html"], tmp_path / "beside.html"),
    ([f"--workdirs={one},{two}"], tmp_path / "report.html"),
    ([one], tmp_path / "a" / "report.html"),
  ):
    with flagsaver.flagsaver():
      config, rest = main.parse_flags(["main", "--mode=report", *args])
      assert len(rest) == 1
      report.report(config, **options.taken("report"))
    assert ("b</b>" in out.read_text()) == (len(args) > 1 or "," in args[0])


@pytest.mark.parametrize(
  ("workdirs", "out", "sentence"),
  [
    ([], None, "takes 1 to 12 runs"),
    (["a", "a/"], None, "each once"),
    (["a", "nothing"], None, "holds no config.json"),
    (["a"], "page.pdf", "a name that ends in .html"),
    (["a"], "a/config.json/x.html", "it is no folder"),
  ],
)
def test_mistakes_are_one_sentence(workdirs, out, sentence, runs, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match=sentence):
    report.report(None, workdirs, out)


def test_a_config_is_none_of_its_business(runs):
  with pytest.raises(errors.UserError, match="leave --config out"):
    report.report(toy.config(), runs)
