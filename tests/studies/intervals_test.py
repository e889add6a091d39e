"""Intervals hold what they say."""

import numpy as np
import pytest

from studies import intervals


def test_the_interval_of_a_mean_holds_it_in_95_of_100_draws():
  rng = np.random.default_rng(0)
  found = [intervals.mean(rng.standard_normal(3)) for _ in range(2000)]
  assert np.mean([x.low <= 0 <= x.high for x in found]) == pytest.approx(0.95, abs=0.015)


def test_a_ratio_is_taken_seed_by_seed():
  rng = np.random.default_rng(0)
  easy = np.exp(rng.standard_normal(3))  # seeds differ by much more than the arms
  found = intervals.ratio(0.5 * easy, easy)
  assert found.value == pytest.approx(0.5) and found.high - found.low < 1e-6
  assert intervals.ratio([2.0], [4.0]).value == 0.5 and np.isnan(intervals.ratio([2.0], [4.0]).low)


def test_figures_have_three_digits():
  assert str(intervals.Interval(0.12345, 0.1, 1234.5)) == "0.123 (0.1 to 1234)"
