import jax.numpy as jnp
import numpy as np
import pytest

from fbjax import sampling


def test_without_guidance_one_branch_runs():
  branches, combine = sampling.guide(1.0, None, 0.0)
  assert branches == [(False, False)]
  np.testing.assert_array_equal(combine([jnp.ones((1, 2))], jnp.zeros(1)), np.ones((1, 2)))


def test_text_guidance_keeps_the_image():
  branches, combine = sampling.guide(3.0, None, 0.0)
  assert branches == [(False, False), (True, False)]
  out = combine([jnp.full((1, 2), 2.0), jnp.ones((1, 2))], jnp.zeros(1))
  np.testing.assert_allclose(out, 1 + 3 * (2 - 1))


@pytest.mark.parametrize(("text", "image"), [(1.0, 1.0), (7.5, 2.0)])
def test_two_scales_go_from_nothing_to_the_image_to_the_text(text, image):
  branches, combine = sampling.guide(text, image, 0.0)
  assert branches == [(False, False), (True, False), (True, True)]
  both, shown, neither = (jnp.full((1, 2), v) for v in (5.0, 3.0, 2.0))
  out = combine([both, shown, neither], jnp.zeros(1))
  np.testing.assert_allclose(out, 2 + image * (3 - 2) + text * (5 - 3))
