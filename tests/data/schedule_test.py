import collections
import pickle

import numpy as np
import pytest

from fbjax.data import schedule


@pytest.mark.parametrize(
  ("counts", "batch"),
  [((40, 25), 4), ((7, 100, 3), 8), ((3, 2), 64), ((1000,), 16), ((5, 1), 1)],
)
def test_every_stream_goes_on_at_the_pace_of_its_clips(counts, batch):
  """After any epochs a clip has come as often as there were some, but for less than a batch."""
  order = schedule.Schedule(counts, batch, seed=3)
  epochs = 30
  ends = [epochs * count // batch for count in counts]
  found = [order(position) for position in range(sum(ends))]
  for stream, end in enumerate(ends):
    assert [number for which, number in found if which == stream] == list(range(end))
  if len(counts) > 1:  # and in the middle, too
    half = collections.Counter(which for which, _ in found[: len(found) // 2])
    for stream, end in enumerate(ends):
      assert abs(half[stream] - end / 2) <= counts[stream] / batch + 2


def test_an_order_is_of_its_seed_alone():
  def first(seed, positions=range(200)):
    order = schedule.Schedule((300, 200), 4, seed)
    return [order(position) for position in positions]

  assert first(1) == first(1)[:100] + first(1, range(100, 200))
  assert first(1)[::-1] == first(1, range(199, -1, -1))
  assert first(1) != first(2)
  assert len({tuple(w for w, _ in first(1)[i : i + 125]) for i in (0, 125)}) > 1
  order = pickle.loads(pickle.dumps(schedule.Schedule((300, 200), 4, 1)))
  assert [order(position) for position in range(200)] == first(1)


def test_streams_are_mixed_within_an_epoch():
  order = schedule.Schedule((400, 400), 4, seed=0)
  streams = np.array([order(position)[0] for position in range(200)])
  assert 60 < (streams[1:] != streams[:-1]).sum() < 140
