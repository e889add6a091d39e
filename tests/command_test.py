"""The command `fbjax` and its help, from wherever it is called."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from fbjax import command, main, options
from settings import BARE, CACHE, FAST_COMPILATION, ROOT


def run(*args, cwd):
  """`fbjax` as an installed checkout runs it."""
  environment = os.environ | {"PYTHONPATH": f"{ROOT}:{BARE}", "XLA_FLAGS": FAST_COMPILATION}
  environment["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
  program = [sys.executable, "-c", "from fbjax.command import cli; cli()", *args]
  return subprocess.run(
    program, cwd=cwd, env=environment, capture_output=True, text=True, check=False
  )


def test_the_overview_names_every_command_and_every_experiment():
  shown = command.overview()
  for name in (*options.MODES, "quickstart", "webvid_saf"):
    assert f"  {name} " in shown or f"  fbjax {name} " in shown
  assert "common" not in shown and all(len(line) <= 100 for line in shown.splitlines())


@pytest.mark.parametrize("name", options.MODES)
def test_a_command_lists_the_flags_that_its_mode_takes_and_no_others(name):
  shown = command.of_command(name)
  others = set().union(*options.TAKES.values()) - set(options.TAKES[name])
  for flag in options.TAKES[name]:
    assert f"--{flag}=" in shown or f"--[no-]{flag} " in shown
  assert not [flag for flag in others if f"--{flag}=" in shown or f"]{flag} " in shown]
  assert ("--config=" in shown) == (name not in ("pack", "report", "app"))
  assert "sample: " not in shown.partition("\n")[2]


def test_a_config_is_found_from_anywhere(tmp_path):
  for config in ("quickstart:smoke", "configs/quickstart.py:smoke", "quickstart.py:smoke"):
    assert main.load_config(config).train.steps == 2
  done = run("train", "--config=quickstart:fast", f"--workdir={tmp_path}/x", cwd=tmp_path.parent)
  assert done.returncode == 1 and "'fast'; expected nothing or smoke" in done.stderr


def test_the_folder_of_a_config_may_have_colons_in_its_name(tmp_path):
  file = tmp_path / "12:30" / "own.py"
  file.parent.mkdir()
  file.write_text(
    "from ml_collections import ConfigDict\n\n\n"
    "def get_config(arg=''):\n  return ConfigDict({'told': arg})\n"
  )
  for argument in ("", "a+b", "/data/c:d"):
    assert main.load_config(f"{file}:{argument}").told == argument
  assert main.load_config(str(file)).told == ""


def test_help_is_a_word_like_any_other_in_what_a_flag_takes(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["fbjax", "sample", "--prompt", "help"])
  called = []
  monkeypatch.setattr(main, "cli", called.append)
  command.cli()
  assert called == [["fbjax", "--mode=sample", "--prompt", "help"]]


def test_help_and_mistakes(tmp_path):
  done = run("sample", "--help", cwd=tmp_path)
  assert done.returncode == 0 and "--negative_prompt" in done.stdout and not done.stderr
  for args, sentence in (
    (
      ["fly"],
      "has no command 'fly'; it has train, sample, evaluate, plan, doctor, cache, port, export, pack, "
      "report, app",
    ),
    (
      ["pack", "--seed=1"],
      "--seed is a flag of --mode=sample and --mode=evaluate; this is --mode=pack",
    ),
  ):
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkout_that_nobody_has_installed_says_so(monkeypatch, capsys):
  def missing(package):
    raise importlib.metadata.PackageNotFoundError(package)

  monkeypatch.setattr(importlib.metadata, "version", missing)
  monkeypatch.setattr(sys, "argv", ["fbjax", "--version"])
  command.cli()
  assert capsys.readouterr().out == "fbjax not installed\n"


def test_the_mode_is_not_said_twice(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["fbjax", "train", "--mode=sample"])
  with pytest.raises(SystemExit, match="leave --mode out"):
    command.cli()
