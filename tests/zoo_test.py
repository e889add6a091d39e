"""The model in the box, from its folder alone."""

import jax
import numpy as np
import pytest

import fbjax
from configs import shapes
from fbjax import build, sharding
from fbjax import pipe as pipes
from fbjax.data import synthetic
from settings import ROOT

MODEL = ROOT / "zoo/shapes"


@pytest.fixture(scope="module")
def pipe():
  one = sharding.make_mesh(1, 1, jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipes.build, "make_mesh", lambda config: one)
    yield fbjax.load(MODEL)


def test_the_object_goes_where_the_prompt_says(pipe):
  source = synthetic.Shapes(
    16, 64, split="val", motions=("right",), speeds=("quick",), textures=("plain",)
  )
  image, truth = source[0].video[0], source.truth(0)
  noun = source.caption(0).split(" moves")[0]
  prompts = [f"{noun} moves quickly to the {side}" for side in ("left", "right")]
  clips = pipe([image, image], prompts, seed=0)
  assert clips.shape == (2, 16, 64, 64, 3)
  left, right = (
    synthetic.displacement(synthetic.centroids(clip, truth.background))[0] for clip in clips
  )
  assert left < -0.1 and right > 0.1
  assert np.abs(clips[:, 0].astype(int) - image).mean() < 8  # a clip begins with its image


def test_its_config_is_the_one_that_trained_it(pipe):
  theirs = shapes.get_config().to_dict()
  for group in ("system", "bridge", "objective", "tokenizer", "data"):
    assert pipe.config[group] == theirs[group], group
  build.check(pipe.config)


def test_it_is_small():
  assert sum(x.stat().st_size for x in MODEL.iterdir()) < 10e6
  assert {x.name for x in MODEL.iterdir()} == {
    "README.md",
    "config.json",
    "model.safetensors",
    "weights.json",
  }
