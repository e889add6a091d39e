"""A clock of phases, by a time that is made up."""

import os
import types

import pytest

from fbjax.train import goodput


@pytest.fixture
def now(monkeypatch):
  time = types.SimpleNamespace(value=100.0)
  monkeypatch.setattr(goodput.time, "perf_counter", lambda: time.value)
  return time


def test_a_moment_belongs_to_one_phase_and_all_sum_to_the_whole(now):
  clock = goodput.Clock(before=3.0)
  now.value += 1
  with clock.within("compiling"):
    now.value += 5
  clock.enter("steps")
  now.value += 20
  with clock.within("reporting"):
    now.value += 2
    with clock.within("compiling"):
      now.value += 4
    now.value += 1
  now.value += 10
  with clock.within("data_wait"):
    now.value += 8
    clock.give(6, "steps")
    assert clock.seconds()["data_wait"] == 2
  assert clock.phase == "steps"
  spent = {name: seconds for name, seconds in clock.seconds().items() if seconds}
  assert spent == {"starting": 4, "compiling": 9, "data_wait": 2, "reporting": 3, "steps": 36}
  assert sum(spent.values()) == 3 + now.value - 100
  assert clock.goodput() == 36 / 54


def test_a_phase_ends_also_where_something_fails(now):
  clock = goodput.Clock()
  with pytest.raises(OSError), clock.within("saving"):
    now.value += 2
    raise OSError
  now.value += 3
  assert clock.seconds()["saving"] == 2 and clock.seconds()["starting"] == 3


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="not told here")
def test_a_process_knows_its_age():
  first = goodput.process_age()
  assert 0.05 < first <= goodput.process_age() < 10 * 86_400


def test_where_the_age_is_not_told_it_is_zero(monkeypatch):
  def missing(*args):
    raise FileNotFoundError

  monkeypatch.setattr(goodput, "open", missing, raising=False)
  assert goodput.process_age() == 0
