"""The model in the box, from its folder alone."""

import jax
import numpy as np
import pytest

import fbjax
from configs import quickstart
from fbjax import build, sharding
from fbjax import pipe as pipes
from fbjax.data import synthetic
from settings import ROOT

MODEL = ROOT / "zoo/quickstart"


@pytest.fixture(scope="module")
def pipe():
  one = sharding.make_mesh(1, 1, jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipes.build, "make_mesh", lambda config: one)
    yield fbjax.load(MODEL)


def test_the_object_goes_where_the_prompt_says(pipe):
  """All four ways, from one image, and with another noise."""
  source = build.make_source(pipe.config, "val")
  image, truth = source[0].video[0], source.truth(0)
  noun = source.caption(0).split(" moves")[0]
  sides = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
  prompts = [f"{noun} moves quickly {words}" for words in sides.values()]
  for seed in (0, 1):
    clips = pipe([image] * 4, prompts, seed=seed)
    assert clips.shape == (4, 8, 32, 32, 3)
    for side, clip in zip(sides, clips, strict=True):
      path = synthetic.displacement(synthetic.centroids(clip, truth.background))
      assert synthetic.nearest_direction(path) == side
    assert np.abs(clips[:, 0].astype(int) - image).mean() < 8  # a clip begins with its image


def test_its_config_is_the_one_that_trained_it(pipe):
  theirs = quickstart.get_config()
  for group in ("system", "bridge", "objective", "tokenizer", "data"):
    assert pipe.config[group] == json_like(theirs[group].to_dict()), group


def json_like(group):
  """Lists in place of tuples."""
  if isinstance(group, dict):
    return {key: json_like(value) for key, value in group.items()}
  return [json_like(x) for x in group] if isinstance(group, list | tuple) else group


def test_it_is_small_and_has_its_card():
  files = {x.name: x.stat().st_size for x in MODEL.iterdir()}
  assert set(files) == {"README.md", "config.json", "model.safetensors", "weights.json"}
  assert sum(files.values()) < 3e6
