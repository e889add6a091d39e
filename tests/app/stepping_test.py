"""A clip made evaluation by evaluation is the clip that the pipe makes at once."""

import itertools

import jax
import numpy as np
import pytest

from fbjax.app import stepping


@pytest.fixture(scope="module")
def steps(pipe):
  return stepping.Stepping(pipe)


def picture(seed=0):
  return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)


def thorough(options):
  return pytest.param(options, marks=pytest.mark.thorough)


@pytest.mark.parametrize(
  "options",
  [
    thorough({}),
    thorough({"sampler": "heun", "steps": 3, "seed": 1}),
    {"sampler": {"name": "sde", "start": "published"}},
    thorough({"guidance": 3.0, "sampler": "dbim", "steps": 3}),
    {"guidance": 3.0, "rescale": 0.5, "negative_prompt": "down"},
  ],
  ids=str,
)
def test_the_last_look_is_the_clip_of_the_pipe(pipe, steps, options):
  settings = pipe.settings(prompt="up", **options)
  looks = list(steps.clip(picture(), "up", settings))
  (clip,) = pipe.animate([picture()], ["up"], settings)
  assert [look.row for look in looks] == list(range(1, looks[0].rows + 1))
  assert looks[0].rows == (2 * 3 - 1 if options.get("sampler") == "heun" else settings.spec.steps)
  assert looks[-1].finite and np.abs(looks[-1].clip.astype(int) - clip).max() <= 1
  assert np.abs(looks[0].clip.astype(int) - clip).max() > 10  # not a clip that is there already


def test_steps_samplers_seeds_and_scales_share_a_program(pipe):
  own = stepping.Stepping(pipe)
  for options in (
    *({"steps": 2, "guidance": 2.0}, {"steps": 5, "guidance": 4.0, "seed": 3}),
    *({"sampler": "heun", "guidance": 1.5}, {"sampler": "dbim", "guidance": 7.0}),
  ):
    list(own.clip(picture(), "up", pipe.settings(prompt="up", **options)))
  (programs,) = own._programs.values()
  assert [program._cache_size() for program in programs] == [1, 1, 1]
  assert own.is_ready(pipe.settings(prompt="up", steps=9, guidance=3.0))
  assert not own.is_ready(pipe.settings(prompt="up", guidance=3.0, frames=2))


@pytest.mark.thorough
def test_the_programs_of_few_kinds_are_kept(pipe, monkeypatch):
  monkeypatch.setattr(stepping, "KINDS", 1)
  own, three, two = stepping.Stepping(pipe), pipe.settings(), pipe.settings(frames=2)
  for settings in (three, two):
    *_, last = own.clip(picture(), "up", settings)
    assert last.clip.shape[0] == settings.frames and own.is_ready(settings)
  assert not own.is_ready(three)


def test_few_of_many_steps_are_decoded_the_last_among_them(pipe, steps):
  looks = list(steps.clip(picture(), "up", pipe.settings(prompt="up", steps=30)))
  seen = [look.row for look in looks if look.clip is not None]
  assert len(looks) == 30 and len(seen) == stepping.LOOKS and seen[-1] == 30


def test_who_stops_looking_stops_the_work(pipe, monkeypatch):
  done = []
  own = stepping.Stepping(pipe)
  settings = pipe.settings(prompt="up", steps=9)
  list(itertools.islice(own.clip(picture(), "up", settings), 1))
  (programs,) = own._programs.values()

  def counted(*args):
    done.append(jax.device_get(args[5]))
    return programs.move(*args)

  own._programs = {key: programs._replace(move=counted) for key in own._programs}
  looks = own.clip(picture(), "up", settings)
  next(looks), next(looks)
  looks.close()
  assert len(done) == 2


def test_numbers_that_are_not_finite_are_told(pipe, steps):
  settings = pipe.settings(prompt="up", guidance=1000.0, steps=20)
  params, frozen = pipe.weights
  broken = stepping.Stepping(pipe)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(pipe.__dict__, "weights", (jax.tree.map(lambda x: x * np.nan, params), frozen))
    *_, last = broken.clip(picture(), "up", settings)
  assert not last.finite
