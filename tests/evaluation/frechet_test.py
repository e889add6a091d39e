import numpy as np
import pytest

import golden
from fbjax import errors
from fbjax.evaluation import frechet, metrics


def draw(n, d=12, shift=0.0, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + shift).astype(np.float32)


@pytest.mark.parametrize(("name", "accuracy"), [("tall", 1e-6), ("wide", 1e-5)])
def test_the_distance_is_the_published_one(shared, name, accuracy):
  """`wide` has fewer samples than dimensions, where scipy's matrix root is off by 4e-8."""
  arrays = golden.arrays(shared, "fvd_pair")
  a, b = (frechet.statistics(arrays[f"{name}.{x}"]) for x in "ab")
  for published in ("fvd_styleganv", "fvd_videogpt_f64"):
    (wanted,) = arrays[f"{name}.{published}"]
    assert frechet.distance(a, b) == pytest.approx(wanted, rel=accuracy)
    assert frechet.distance(b, a) == pytest.approx(wanted, rel=accuracy)


def test_of_gaussians_in_one_dimension_it_is_known():
  a, b = np.array([[0.0], [2.0]]), np.array([[10.0], [16.0]])
  found = frechet.distance(frechet.statistics(a), frechet.statistics(b), unbiased=False)
  assert found == pytest.approx((13 - 1) ** 2 + (3 - 1) ** 2)


@pytest.mark.parametrize(("n", "d", "scale"), [(500, 12, 1.0), (8, 400, 1.0), (300, 40, 1e4)])
def test_a_set_is_at_no_distance_from_itself(n, d, scale):
  features = scale * draw(n, d)
  own = frechet.statistics(features)
  turned = frechet.statistics(features[::-1])
  assert 0 <= frechet.distance(own, own) < 1e-9 * scale**2
  assert 0 <= frechet.distance(own, turned) < 1e-9 * scale**2


def test_statistics_of_parts_are_those_of_the_whole():
  whole, other = draw(300, shift=100.0), frechet.statistics(draw(200, seed=1))
  parts = frechet.merge(
    frechet.merge(frechet.statistics(whole[:3]), frechet.statistics(whole[3:170])),
    frechet.statistics(whole[170:]),
  )
  assert parts.count == 300
  expected = frechet.distance(frechet.statistics(whole), other)
  assert frechet.distance(parts, other) == pytest.approx(expected, rel=1e-10)


def test_the_error_bar_is_the_deviation_over_fresh_samples():
  rng = np.random.default_rng(0)
  real = rng.standard_normal((4000, 4))
  sets = [rng.standard_normal((400, 4)) + 0.5 for _ in range(40)]
  there = frechet.statistics(real)
  deviation = np.std([frechet.distance(there, frechet.statistics(x)) for x in sets], ddof=1)
  assert frechet.error_bar(real, sets[0], draws=40) == pytest.approx(deviation, rel=0.5)


def test_with_infinite_samples_the_bias_is_gone():
  rng = np.random.default_rng(0)
  real, made = rng.standard_normal((2, 600, 30))
  biased = frechet.distance(frechet.statistics(real), frechet.statistics(made))
  assert biased > 0.3
  assert abs(frechet.of_infinite_samples(real, made)) < 0.1 * biased


def test_two_samples_have_a_distance_and_nothing_to_extrapolate():
  real, made = np.random.default_rng(0).standard_normal((2, 3, 8))
  found = metrics.distance("fvd", made[:2], real[:2], unbiased=True)
  assert list(found) == ["fvd"] and found["fvd"].value > 0
  assert list(metrics.distance("fvd", made, real, unbiased=True)) == ["fvd", "fvd_infinite"]


@pytest.mark.parametrize(
  ("features", "sentence"),
  [(np.zeros((1, 3)), "there are 1"), (np.full((3, 3), np.nan), "some are not")],
)
def test_what_has_no_distance_is_one_sentence(features, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    frechet.statistics(features)
