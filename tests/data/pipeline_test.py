import logging

import numpy as np
import pytest

from fbjax.data import pipeline, synthetic, tokenizers
from fbjax.data import video as video_lib


class Patchy(synthetic.Shapes):
  """A source in which the clips of `broken` cannot be read."""

  broken: frozenset[int] = frozenset()

  def read(self, index, rng):
    rng.random()  # As a real source draws its start before it decodes.
    if index in self.broken:
      raise video_lib.BrokenClip(f"{self.name(index)} is broken.")
    return super().read(index, rng)


def patchy(broken=(), clips=11):
  source = Patchy(frames=2, size=8, clips=clips)
  source.broken = frozenset(broken)
  return source


def batches(source, **options):
  options = {"batch_size": 4, "seed": 5} | options
  return pipeline.Batches(source, tokenizers.Bytes(), **options)


def take(iterator, n):
  out = [next(iterator) for _ in range(n)]
  iterator.close()
  return out


def assert_equal(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for field in a:
      np.testing.assert_array_equal(a[field], b[field], err_msg=field)


def test_batches_have_the_promised_fields():
  batch = take(batches(patchy()), 1)[0]
  assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
    "video": ("uint8", (4, 2, 8, 8, 3)),
    "tokens": ("int32", (4, 16)),
    "stride": ("int32", (4,)),
    "label": ("int32", (4,)),
    "index": ("int64", (4,)),
    "replaced": ("bool", (4,)),
  }
  source = patchy()
  for i, video, label in zip(batch["index"], batch["video"], batch["label"], strict=True):
    np.testing.assert_array_equal(video, source[int(i)].video)
    assert label == source[int(i)].label


def test_every_epoch_shows_every_clip_in_another_order():
  order = np.concatenate([b["index"] for b in take(batches(patchy(clips=12)), 6)])
  first, second = order[:12], order[12:]
  assert sorted(first) == sorted(second) == list(range(12))
  assert first.tolist() != second.tolist() and first.tolist() != list(range(12))
  other = np.concatenate([b["index"] for b in take(batches(patchy(clips=12), seed=6), 3)])
  assert first.tolist() != other.tolist()


def test_unshuffled_batches_come_in_order():
  order = np.concatenate([b["index"] for b in take(batches(patchy(), shuffle=False), 3)])
  assert order.tolist() == [*range(11), 0]


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_sees_the_same_global_batches(hosts):
  whole = take(batches(patchy({1, 2, 3, 7})), 7)
  parts = [
    take(batches(patchy({1, 2, 3, 7}), process_index=p, process_count=hosts), 7)
    for p in range(hosts)
  ]
  joined = [
    {field: np.concatenate([part[k][field] for part in parts]) for field in whole[0]}
    for k in range(7)
  ]
  assert_equal(joined, whole)


def test_resuming_at_a_position_equals_never_having_stopped():
  source = patchy({0, 4})
  whole = take(batches(source), 9)
  resumed = batches(source)
  resumed.position = 6
  assert_equal(take(resumed, 3), whole[6:])
  assert resumed.position == 9
  resumed.position = 2
  assert_equal(take(resumed, 2), whole[2:4])


def test_worker_processes_give_what_threads_give_and_resume():
  source = patchy({1, 2, 3, 7})
  whole = take(batches(source), 6)
  workers = batches(source, workers=2)
  workers.position = 2
  assert_equal(take(workers, 4), whole[2:])
  assert workers.replaced == sum(int(b["replaced"].sum()) for b in whole[2:])


def test_broken_clips_are_replaced_counted_and_named_once(caplog):
  iterator = batches(patchy({1, 2, 3}), threads=1)
  with caplog.at_level(logging.WARNING):
    seen = take(iterator, 11)  # Four epochs.
  index = np.concatenate([b["index"] for b in seen])
  replaced = np.concatenate([b["replaced"] for b in seen])
  assert not set(index) & {1, 2, 3}
  assert replaced.sum() == 12 == iterator.replaced
  for i in (1, 2, 3):
    assert caplog.text.count(f"synthetic/train/0/{i} is broken.") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_in_which_nothing_decodes_stops_with_one_sentence(workers):
  iterator = batches(patchy(range(11)), workers=workers, tries=3)
  with pytest.raises(
    video_lib.BrokenData, match="3 clips in a row are broken; the last: synthetic"
  ):
    next(iterator)
  iterator.close()


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match="batch_size 4 must divide by 3 processes"):
    batches(patchy(), process_count=3)
  with pytest.raises(ValueError, match="empty"):
    batches(patchy(clips=0))


def test_a_fixed_batch_is_the_same_every_time():
  source = patchy({2})
  a = pipeline.read(source, tokenizers.Bytes(), [5, 2, 5])
  b = pipeline.read(source, tokenizers.Bytes(), [5, 2, 5])
  assert_equal([a], [b])
  assert a["index"][0] == a["index"][2] == 5 and a["replaced"].tolist() == [False, True, False]
