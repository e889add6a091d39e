import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data import clips

import settings
from fbjax import errors
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


def test_batches_have_the_promised_fields():
  batch = clips.take(batches(patchy()), 1)[0]
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
  order = np.concatenate([b["index"] for b in clips.take(batches(patchy(clips=12)), 6)])
  first, second = order[:12], order[12:]
  assert sorted(first) == sorted(second) == list(range(12))
  assert first.tolist() != second.tolist() and first.tolist() != list(range(12))
  other = np.concatenate([b["index"] for b in clips.take(batches(patchy(clips=12), seed=6), 3)])
  assert first.tolist() != other.tolist()


def test_unshuffled_batches_come_in_order():
  order = np.concatenate([b["index"] for b in clips.take(batches(patchy(), shuffle=False), 3)])
  assert order.tolist() == [*range(11), 0]


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_sees_the_same_global_batches(hosts):
  whole = clips.take(batches(patchy({1, 2, 3, 7})), 7)
  parts = [
    clips.take(batches(patchy({1, 2, 3, 7}), process_index=p, process_count=hosts), 7)
    for p in range(hosts)
  ]
  joined = [
    {field: np.concatenate([part[k][field] for part in parts]) for field in whole[0]}
    for k in range(7)
  ]
  clips.assert_equal(joined, whole)


def test_resuming_at_a_position_equals_never_having_stopped():
  source = patchy({0, 4})
  whole = clips.take(batches(source), 9)
  resumed = batches(source)
  resumed.position = 6
  clips.assert_equal(clips.take(resumed, 3), whole[6:])
  assert resumed.position == 9
  resumed.position = 2
  clips.assert_equal(clips.take(resumed, 2), whole[2:4])


def test_worker_processes_give_what_threads_give_and_resume():
  source = patchy({1, 2, 3, 7})
  whole = clips.take(batches(source), 6)
  workers = batches(source, workers=2)
  workers.position = 2
  clips.assert_equal(clips.take(workers, 4), whole[2:])
  assert workers.replaced == sum(int(b["replaced"].sum()) for b in whole[2:])


def test_broken_clips_are_replaced_counted_and_named_once(caplog):
  iterator = batches(patchy({1, 2, 3}), threads=1)
  with caplog.at_level(logging.WARNING):
    seen = clips.take(iterator, 11)  # Four epochs.
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


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_is_killed_ends_in_one_sentence_at_once(victim):
  """Also where the others have batches left, and leaves no process behind."""
  iterator = batches(patchy(), workers=2, prefetch=3)
  next(iterator)
  processes = sorted(multiprocessing.active_children(), key=lambda process: process.pid)
  os.kill(processes[victim].pid, signal.SIGKILL)
  processes[victim].join()
  began = time.monotonic()
  with pytest.raises(errors.UserError, match="was ended by signal SIGKILL, as happens when memory"):
    next(iterator)
  assert time.monotonic() - began < 5
  assert not multiprocessing.active_children()
  assert iterator.position == 1


def test_after_a_worker_was_killed_the_stream_goes_on_where_it_was():
  whole = clips.take(batches(patchy({1, 2})), 4)
  iterator = batches(patchy({1, 2}), workers=1)
  clips.assert_equal([next(iterator)], whole[:1])
  os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
  with pytest.raises(errors.UserError):
    [next(iterator) for _ in range(9)]
  iterator.position = 1
  clips.assert_equal(clips.take(iterator, 3), whole[1:])


def test_signals_to_the_group_are_for_the_process_that_trains():
  """What a scheduler or a terminal sends to all must not cost the last checkpoint its batches."""
  iterator = batches(patchy(), workers=1, prefetch=1)
  next(iterator)
  for sent in (signal.SIGTERM, signal.SIGINT):
    os.kill(multiprocessing.active_children()[0].pid, sent)
  assert len(clips.take(iterator, 4)) == 4


# Says which processes read for it, and is killed in the middle.
TRAINER = """
import multiprocessing, os, sys
from fbjax.data import pipeline, synthetic, tokenizers
if __name__ == "__main__":
  source = synthetic.Shapes(frames=2, size=8)
  stream = pipeline.Batches(source, tokenizers.Bytes(), batch_size=2, workers=2)
  next(stream)
  print(*[process.pid for process in multiprocessing.active_children()], flush=True)
  if len(sys.argv) > 1:
    os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.mark.parametrize("ended_by", [[], [str(int(signal.SIGKILL))]])
def test_no_reading_process_outlives_the_training(tmp_path, ended_by):
  (tmp_path / "trainer.py").write_text(TRAINER)
  done = subprocess.run(
    [sys.executable, tmp_path / "trainer.py", *ended_by],
    env=os.environ | {"PYTHONPATH": f"{settings.ROOT}:{settings.BARE}"},
    capture_output=True,
    text=True,
    check=False,
  )
  readers = done.stdout.split()
  assert len(readers) == 2 and done.stderr == ""
  deadline = time.monotonic() + 20
  while any(os.path.exists(f"/proc/{reader}") for reader in readers):
    assert time.monotonic() < deadline, "a reading process is left"
    time.sleep(0.1)


class Buggy(synthetic.Shapes):
  def read(self, index, rng):
    return {}["a bug"]


def test_a_bug_in_a_worker_keeps_its_class_and_says_where_it_was():
  iterator = batches(Buggy(frames=2, size=8), workers=1)
  with pytest.raises(KeyError, match="a bug") as e:
    next(iterator)
  iterator.close()
  assert 'return {}["a bug"]' in "".join(e.value.__notes__)


def test_what_no_text_can_hold_is_escaped_in_the_log(caplog):
  """File names are bytes: they may be no UTF-8, or hold a line's end."""

  class Odd(Patchy):
    def name(self, index):
      return "caf\udce9\n.mp4"

  source = Odd(frames=2, size=8, clips=3)
  source.broken = frozenset({1})
  with caplog.at_level(logging.WARNING):
    clips.take(batches(source), 3)
  assert caplog.messages == [r"caf\udce9\n.mp4 is broken. Another clip takes its place."]


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match="batch_size 4 must divide by 3 processes"):
    batches(patchy(), process_count=3)
  source = patchy()
  source.clips = 0
  with pytest.raises(errors.UserError, match="the data set is empty"):
    batches(source)


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("workers", -1, "config.loader.workers is -1; expected a whole number from 0 to 1024"),
    ("threads", 0, "config.loader.threads is 0; expected a whole number from 1 to 1024"),
    ("prefetch", 0, "config.loader.prefetch is 0; expected a whole number from 1 to 1024"),
    ("tries", 0, "config.loader.tries is 0; expected a whole number from 1 to 1024"),
    ("batch_size", 0, "config.train.batch_size is 0; expected a whole number from 1 up"),
  ],
)
def test_numbers_that_make_no_sense_are_refused_by_their_key(key, value, words):
  with pytest.raises(errors.UserError) as e:
    batches(patchy(), **{key: value})
  assert str(e.value) == words + "."


def test_any_sensible_number_of_threads_and_batches_ahead_gives_the_same(caplog):
  whole = clips.take(batches(patchy()), 4)
  for threads, prefetch in ((1, 1), (8, 2), (2, 8)):
    clips.assert_equal(clips.take(batches(patchy(), threads=threads, prefetch=prefetch), 4), whole)


def test_a_fixed_batch_is_the_same_every_time():
  source = patchy({2})
  a = pipeline.read(source, tokenizers.Bytes(), [5, 2, 5])
  b = pipeline.read(source, tokenizers.Bytes(), [5, 2, 5])
  clips.assert_equal([a], [b])
  assert a["index"][0] == a["index"][2] == 5 and a["replaced"].tolist() == [False, True, False]
