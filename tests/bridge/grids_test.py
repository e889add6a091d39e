"""Time grids: the published indices, and what every grid promises."""

import jax
import numpy as np
import pytest

from fbjax.bridge import grids, process

GRIDS = {
  "trailing": grids.trailing,
  "uniform": grids.uniform,
  "log_snr": lambda n: grids.log_snr(process.Gmax(), n),
  "log_snr_vp": lambda n: grids.log_snr(process.VP(), n),
  "karras": grids.karras,
  "shifted": lambda n: grids.shifted(n, 3.0),
}


def test_published_grids_of_fifty():
  np.testing.assert_array_equal(grids.trailing_indices(50), np.arange(999, 0, -20))
  np.testing.assert_array_equal(grids.uniform_indices(50), np.arange(981, 0, -20))
  latte = grids.latte_indices(50)
  assert list(latte[:2]) == [999, 979] and list(latte[-3:]) == [41, 20, 0] and len(latte) == 50


def test_trailing_rounds_half_to_even_as_published():
  np.testing.assert_array_equal(
    grids.trailing_indices(16)[:5], np.round(1000 - np.arange(5) * 62.5) - 1
  )
  assert len(grids.trailing_indices(7)) == 7 and grids.trailing_indices(7)[0] == 999


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", [1, 2, 7, 50, 200])
def test_a_grid_falls_inside_the_bridge(name, n):
  times = GRIDS[name](n)
  assert times.shape == (n,) and times.dtype == np.float64
  assert np.all(np.diff(times) < 0) and times[0] < 1 and times[-1] > 0


def test_grids_are_even_in_what_they_say():
  even = lambda x: np.testing.assert_allclose(np.diff(x, 2), 0, atol=1e-9)  # noqa: E731
  even(grids.uniform(20))
  even(process.Gmax().log_snr(grids.log_snr(process.Gmax(), 20)))
  even(grids.karras(20) ** (1 / 7))
  shifted = grids.shifted(20, 3.0)
  even(shifted / (3 - 2 * shifted))
  np.testing.assert_allclose(shifted[[0, -1]], [grids.FIRST, grids.LAST])


def test_index_and_time_are_inverse(dtype):
  index = np.arange(1000, dtype=dtype)
  np.testing.assert_allclose(grids.index_of(grids.time_of(index)), index, atol=2e-4)
  np.testing.assert_allclose(grids.time_of(np.array([0.0, 999.0])), [1 / 1001, 1000 / 1001])


def test_training_times_are_the_published_thousand():
  times = np.asarray(grids.draw(jax.random.key(0), 20000))
  index = grids.index_of(np.float64(times))
  np.testing.assert_allclose(index, np.round(index), atol=1e-4)
  assert index.min() < 0.5 and index.max() > 998.5 and abs(index.mean() - 499.5) < 10


def test_a_network_of_other_steps_is_sampled_at_times_it_was_trained_at():
  steps = 40
  drawn = np.asarray(grids.draw(jax.random.key(0), 2000, steps), np.float64)
  trained = np.unique(np.round(drawn, 6))
  assert len(trained) == steps
  for times in (
    grids.trailing(8, steps),
    grids.time_of(1.0 * grids.latte_indices(8, steps), steps),
  ):
    assert np.abs(times[:, None] - trained[None]).min(1).max() < 1e-6
  np.testing.assert_allclose(grids.index_of(grids.time_of(np.arange(40.0), 40), 40), np.arange(40))


def test_a_uniform_grid_that_leaves_the_range_is_refused():
  with pytest.raises(ValueError, match="use trailing"):
    grids.uniform_indices(1000)


def test_latte_indices_have_both_ends():
  with pytest.raises(ValueError, match="at least 2"):
    grids.latte_indices(1)
