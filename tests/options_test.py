"""What is made of the values of flags."""

import inspect

import pytest

from fbjax import options
from fbjax.modes import app, cache, doctor, evaluate, export, pack, plan, report, sample, train

MODES = (app, cache, doctor, evaluate, export, pack, plan, report, sample, train)


def test_a_tilde_is_the_home_folder(monkeypatch):
  monkeypatch.setenv("HOME", "/home/somebody")
  assert options.home("~/runs/x") == "/home/somebody/runs/x" and options.home(None) is None
  assert options.home(["~/a", "b"]) == ["/home/somebody/a", "b"]


def test_a_size_is_height_and_width():
  assert options.pixels("256x448") == (256, 448) and options.pixels(None) is None


@pytest.mark.parametrize("module", MODES, ids=lambda module: module.__name__.split(".")[-1])
def test_the_flags_of_a_mode_are_arguments_of_its_function(module):
  name = module.__name__.split(".")[-1]
  arguments = inspect.signature(getattr(module, name)).parameters
  given = {"fvd": "fvd_protocol"}
  # Those that a function hands on are keys of `Pipe.settings` and `config.sampling`.
  named = {given.get(flag, flag) for flag in options.TAKES[name]}
  assert named <= set(arguments) or "options" in arguments
  needed = {x.name for x in arguments.values() if x.default is x.empty and x.kind != x.VAR_KEYWORD}
  assert needed - {"config"} <= named
