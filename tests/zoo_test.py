"""The models in the box, from their folders alone."""

import jax
import numpy as np
import pytest

import fbjax
from configs import quickstart, shapes
from fbjax import build, sharding
from fbjax import pipe as pipes
from fbjax.data import synthetic
from settings import ROOT

ZOO = ROOT / "zoo"
MODELS = {"quickstart": quickstart, "shapes": shapes}
MEGABYTES = {"quickstart": 3, "shapes": 12}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
  return request.param


@pytest.fixture(scope="module")
def pipe(name):
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipes.build, "make_mesh", lambda config: one)
    yield fbjax.load(ZOO / name)


def test_the_object_goes_where_the_prompt_says(pipe):
  """All four ways, from one image, and with another noise."""
  source = build.make_source(pipe.config, "val")
  size = (source.frames, source.height, source.width, 3)
  index = next(i for i in range(99) if source.truth(i).direction)
  image, truth = source[index].video[0], source.truth(index)
  noun = source.caption(index).split(" moves")[0]
  sides = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
  prompts = [f"{noun} moves quickly {words}" for words in sides.values()]
  for seed in (0, 1)[: 1 if source.frames > 8 else 2]:
    clips = pipe([image] * 4, prompts, seed=seed)
    assert clips.shape == (4, *size)
    for side, clip in zip(sides, clips, strict=True):
      path = synthetic.displacement(synthetic.centroids(clip, truth.background))
      assert synthetic.nearest_direction(path) == side
    assert np.abs(clips[:, 0].astype(int) - image).mean() < 8  # a clip begins with its image


def test_its_config_is_the_one_that_trained_it(pipe, name):
  theirs = MODELS[name].get_config()
  for group in ("system", "bridge", "objective", "tokenizer", "data"):
    assert pipe.config[group] == json_like(theirs[group].to_dict()), group


def json_like(group):
  """Lists in place of tuples."""
  if isinstance(group, dict):
    return {key: json_like(value) for key, value in group.items()}
  return [json_like(x) for x in group] if isinstance(group, list | tuple) else group


def test_it_is_small_and_has_its_card(name):
  files = {x.name: x.stat().st_size for x in (ZOO / name).iterdir()}
  pictures = {"shapes": {"star.png"}}.get(name, set())
  assert set(files) == {"README.md", "config.json", "model.safetensors", "weights.json"} | pictures
  assert sum(files.values()) < MEGABYTES[name] * 1e6
