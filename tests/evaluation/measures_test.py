import functools

import numpy as np
import pytest

from fbjax.evaluation import measures, metrics, numbers


@pytest.fixture(scope="module")
def moving():
  rng = np.random.default_rng(0)
  first = rng.integers(0, 256, (6, 1, 32, 32, 3), np.uint8)
  return np.concatenate([np.roll(first, 3 * t, axis=3) for t in range(4)], axis=1)


def mean_colours(clips):
  return clips.reshape(len(clips), -1, 3).mean(1)


COLOURS = {
  "fvd": measures.Metric(
    lambda batch: mean_colours(batch.clips),
    functools.partial(metrics.distance, "fvd", unbiased=False),
  )
}


def of(made, truth, batch=6, **options):
  measured = measures.Measures(**({"paired": True} | options))
  for i in range(0, len(truth), batch):
    measured.add(made[i : i + batch], truth[i : i + batch])
  return measured.numbers()


def test_the_truth_itself_is_perfect_and_the_still_image_does_not_move(moving):
  found = of(moving, moving, metrics=COLOURS)
  made, still = found["made"], found["still"]
  assert made["psnr"].value == 100 and made["ssim"].value == pytest.approx(1)
  assert made["motion_ratio"] == (1, 0) and made["static"].value == 0
  assert 0 <= made["fvd"].value < 1e-6
  assert still["motion_ratio"].value == 0 and still["static"].value == 1
  assert still["first_frame_psnr"].value == 100 > still["psnr"].value
  assert set(found["truth"]) == set(measures.OF_CLIPS)


def test_the_given_frame_does_not_count_as_made(moving):
  """Clips that are right in their first frame alone are as bad as if it were not there."""
  wrong = moving.copy()
  wrong[:, 1:] = 255 - wrong[:, 1:]
  both = np.where(np.arange(4).reshape(1, 4, 1, 1, 1) > 0, wrong, 255 - moving)
  first, none = (of(x, moving)["made"] for x in (wrong, both))
  assert first["psnr"] == none["psnr"] and first["ssim"] == none["ssim"]
  assert first["first_frame_psnr"].value == 100 > none["first_frame_psnr"].value


def test_batches_do_not_matter(moving):
  noise = np.random.default_rng(1).integers(0, 30, moving.shape, np.uint8)
  made = (moving // 2 + noise).astype(np.uint8)
  one, many = (of(made, moving, batch=batch, metrics=COLOURS) for batch in (6, 2))
  assert one == many


def test_without_pairs_only_the_sets_are_compared(moving):
  made = moving[::-1][:4]
  found = of(made, moving, paired=False, metrics=COLOURS)
  assert not {"psnr", "ssim", "first_frame_psnr"} & set(found["made"])
  assert found["made"]["motion_ratio"].value == pytest.approx(
    found["made"]["motion"].value / found["truth"]["motion"].value
  )
  alone = measures.Measures(paired=False)
  alone.add(made, None)
  assert set(alone.numbers()) == {"made"}


def test_a_network_is_shown_what_it_compares_with_and_else_says_nothing(moving):
  """Each row of a set with its own truth, given frame and caption; a metric without them has no number."""
  captions = [str(i) for i in range(6)]
  seen = []

  def of(batch):
    if batch.given is None or batch.captions is None:
      return None
    seen.append(batch)
    return np.array([float(caption) for caption in batch.captions])

  metric = measures.Metric(of, lambda own, _: {"caption": numbers.mean(own)})
  measured = measures.Measures(paired=True, metrics={"caption": metric})
  for rows in (slice(0, 4), slice(4, 6)):
    measured.add(255 - moving[rows], moving[rows], captions[rows], captions[rows])
  found = measured.numbers()
  assert all(found[name]["caption"].value == 2.5 for name in ("made", "still", "truth"))
  for batch in seen:
    row = int(batch.captions[0])
    np.testing.assert_array_equal(batch.given[0], moving[row, 0])
    assert batch.truth is None or (batch.truth[0] == moving[row]).all()
  sets = measures.Measures(paired=False, metrics={"caption": metric})
  sets.add(255 - moving, moving, captions, captions)
  assert "caption" not in sets.numbers()["made"] and "caption" in sets.numbers()["still"]


def test_errors_are_those_of_other_draws():
  """The stated error of a mean and of a ratio is the deviation over new sets of clips."""
  rng = np.random.default_rng(0)
  draws = [(rng.gamma(2, 1, 50), rng.gamma(3, 1, 50)) for _ in range(300)]
  means = [numbers.mean(a) for a, _ in draws]
  assert np.std([m.value for m in means]) == pytest.approx(means[0].error, rel=0.3)
  ratios = [numbers.ratio(a, b, paired=False) for a, b in draws[:100]]
  spread = np.std([r.value for r in ratios])
  assert spread == pytest.approx(np.mean([r.error for r in ratios]), rel=0.3)
  assert numbers.ratio(np.zeros(3), np.zeros(3), paired=True) == (1, 0)
