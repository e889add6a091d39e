import numpy as np
import pytest

from fbjax.evaluation import inception_score


def published(probabilities, splits=10):
  """As StyleGAN-V computes it, from probabilities."""
  p = probabilities.copy()
  np.random.RandomState(42).shuffle(p)
  scores, n = [], len(p)
  for i in range(splits):
    part = p[i * n // splits : (i + 1) * n // splits]
    kl = (part * (np.log(part) - np.log(part.mean(0, keepdims=True)))).sum(1).mean()
    scores.append(np.exp(kl))
  return np.mean(scores), np.std(scores, ddof=1)


@pytest.mark.parametrize("n", [10, 57, 200])
def test_the_score_is_the_published_one(n):
  logits = 3 * np.random.default_rng(0).standard_normal((n, 101))
  p = np.exp(logits)
  value, deviation = published(p / p.sum(1, keepdims=True))
  found = inception_score.score(logits.astype(np.float32))
  assert found.value == pytest.approx(value, rel=1e-5)
  assert found.error == pytest.approx(deviation / 10**0.5, rel=1e-4, abs=1e-9)


def test_sure_and_even_classes_score_their_number_and_equal_clips_one():
  sure = np.tile(1e4 * np.eye(5), (200, 1))
  assert inception_score.score(sure).value == pytest.approx(5, rel=0.05)
  assert inception_score.score(sure[:1].repeat(20, axis=0)) == (1, 0)
