"""Curves: what a reader sees is where the numbers say."""

import re

import numpy as np
import pytest

from fbjax.reports import curves
from fbjax.reports.curves import Curve


def points(figure: str) -> np.ndarray:
  """Of the first line of a figure, in the picture's units, y downwards."""
  found = re.search(r'points="([^"]*)"', figure)[1]
  return np.array([pair.split(",") for pair in found.split()], float)


def test_a_point_is_where_its_step_and_value_are():
  x, y = points(curves.plot("x", [Curve("", np.array([0, 5, 10]), np.array([1.0, 2.0, 3.0]))])).T
  np.testing.assert_allclose(np.diff(x), np.diff(x)[0])
  np.testing.assert_allclose(np.diff(y), np.diff(y)[0], rtol=0.02)
  assert y[0] > y[-1] and x[0] == curves.LEFT


def test_decades_are_equally_far_apart_on_a_logarithmic_axis():
  values = np.array([1.0, 0.1, 0.01])
  y = points(curves.plot("x", [Curve("", np.arange(3), values)], log=True))[:, 1]
  np.testing.assert_allclose(np.diff(y), np.diff(y)[0], rtol=0.02)
  linear = points(curves.plot("x", [Curve("", np.arange(3), values - 0.01)], log=True))[:, 1]
  assert linear[1] - linear[0] > 5 * (linear[2] - linear[1])  # 0 has no logarithm


@pytest.mark.parametrize("values", [[0.0], [3.0], [2.0, 2.0], [-1e-9, 1e12], [1e-300, 1e300]])
@pytest.mark.parametrize("log", [False, True])
def test_any_finite_values_stay_inside(values, log):
  figure = curves.plot("x", [Curve("", np.arange(len(values)) * 7, np.array(values))], log=log)
  assert "nan" not in figure and "inf" not in figure
  x, y = points(figure).T
  assert ((x >= 0) & (x <= curves.WIDTH) & (y >= 0) & (y <= curves.HEIGHT)).all()


def test_long_curves_stay_small_and_keep_their_course():
  steps = np.arange(200_000)
  figure = curves.plot("x", [Curve("", steps, np.where(steps < 100_000, 1.0, 3.0), marked=True)])
  assert len(figure) < 8000
  y = points(figure)[:, 1]
  assert len(y) <= curves.POINTS and (np.diff(y) <= 0).all() and y[0] - y[-1] > 100


def test_ticks_are_round_and_within_the_axis():
  for low, high, log in [
    (0, 1, False),
    (0.013, 0.92, True),
    (3e-4, 3.1e-4, True),
    (0, 1.2e6, False),
  ]:
    ticks, first, last = curves.axis(low, high, log)
    assert 2 <= len(ticks) <= 8 and first <= min(ticks) and max(ticks) <= last
    assert all(float(f"{tick:.2g}") == pytest.approx(tick) for tick in ticks)
  assert [curves.short(x) for x in (0.02, 500, 20_000, 1.5e6)] == ["0.02", "500", "20k", "1.5M"]


def test_error_bars_are_as_long_as_the_errors():
  drawn = curves.bars([(10.0, 1.0, 0), (12.0, 2.0, 1)])
  ends = [[float(x) for x in pair] for pair in re.findall(r'x1="([\d.]+)".*?x2="([\d.]+)"', drawn)]
  assert ends[1][1] - ends[1][0] == pytest.approx(2 * (ends[0][1] - ends[0][0]), rel=0.01)
  assert "nan" not in curves.bars([(1.0, 0.0, 0)])
