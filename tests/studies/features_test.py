"""The networks that the studies look through see what they should."""

import json

import numpy as np
import pytest

from fbjax.data import synthetic
from fbjax.evaluation import frechet
from studies import features

CLIPS = 96


def clips():
  source = synthetic.Shapes(8, 16, split="val")
  return np.stack([source[i].video for i in range(CLIPS)])


def apart(of, a, b):
  return frechet.distance(frechet.statistics(of(a)), frechet.statistics(of(b)))


def test_the_distance_grows_with_what_is_wrong():
  of = features.trained()
  truth = clips()
  rng = np.random.default_rng(0)

  def noisy(deviation):
    return np.clip(truth + rng.normal(0, deviation, truth.shape), 0, 255).astype(np.uint8)

  still = np.repeat(truth[:, :1], truth.shape[1], axis=1)
  none, little, much = (apart(of, x, truth) for x in (truth, noisy(5), noisy(20)))
  assert none < 1e-6 < little < 0.5 * much
  assert apart(of, still, truth) > much


@pytest.mark.thorough
def test_a_random_network_tells_clips_apart_too():
  of = features.random()
  truth = clips()[:8]
  still = np.repeat(truth[:, :1], truth.shape[1], axis=1)
  found = of(truth)
  assert found.shape == (8, 1024) and found.std(0).mean() > 0.01
  assert apart(of, still, truth) > 1e-3 > apart(of, truth, truth)


def test_features_are_those_of_the_clip_alone_whatever_its_batch():
  of = features.trained()
  some = clips()[:70]
  np.testing.assert_allclose(of(some)[65:], of(some[65:]), atol=1e-5)


def test_the_card_says_how_much_of_held_out_clips_it_names():
  card = json.loads(features.FILE.with_suffix(".json").read_text())
  assert set(card["accuracy"]) == set(features.HEADS)
  assert features.FILE.stat().st_size < 2e6
