import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.evaluation import images


def reference_ssim(x, y):
  """Window by window, in float64, as the paper has it."""
  place = np.arange(11) - 5
  weight = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / 4.5)
  weight /= weight.sum()
  found = []
  for c in range(3):
    for i in range(x.shape[0] - 10):
      for j in range(x.shape[1] - 10):
        a, b = (v[i : i + 11, j : j + 11, c].astype(np.float64) for v in (x, y))
        ma, mb = (weight * a).sum(), (weight * b).sum()
        va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
        both = (weight * (a - ma) * (b - mb)).sum()
        c1, c2 = 6.5025, 58.5225
        found.append((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
  return np.mean(found)


@pytest.fixture(scope="module")
def pair():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 256, (2, 3, 5, 6, 3)).repeat(4, axis=2).repeat(3, axis=3)
  made = np.clip(truth + rng.normal(0, 20, truth.shape), 0, 255)
  return made.astype(np.uint8), truth.astype(np.uint8)


def test_ssim_is_that_of_the_paper(pair):
  made, truth = pair
  found = jax.jit(images.ssim)(*map(jnp.asarray, pair))
  assert found.shape == (2, 3)
  assert float(found[1, 2]) == pytest.approx(reference_ssim(made[1, 2], truth[1, 2]), abs=1e-4)
  assert float(found.max()) < 0.97
  np.testing.assert_allclose(images.ssim(jnp.asarray(truth), jnp.asarray(truth)), 1, atol=1e-5)


def test_flat_bright_frames_lose_nothing():
  """Their variance is 1 of squares of 62,500: a difference of means of squares would lose it."""
  rng = np.random.default_rng(0)
  x, y = (250 + rng.integers(0, 2, (2, 16, 16, 3))).astype(np.uint8)
  found = float(images.ssim(jnp.asarray(x), jnp.asarray(y)))
  assert found == pytest.approx(reference_ssim(x, y), abs=1e-5)


def test_psnr_of_a_known_error():
  a = jnp.full((2, 4, 4, 3), 100, jnp.uint8)
  found = images.psnr(a + jnp.uint8(10), a)
  np.testing.assert_allclose(found, 10 * np.log10(255**2 / 100), rtol=1e-5)
  np.testing.assert_allclose(images.psnr(a, a), 100)
