"""Records of features on disk: whole or refused, damaged ones replaced and told."""

import logging
import pickle

import numpy as np
import pytest

from fbjax import errors
from fbjax.data import cache, pipeline
from fbjax.data import video as video_lib

FIELDS = {"clip/mean": ((2, 3), "float16"), "label": ((), "int32")}


def record(index, window=0):
  rng = np.random.default_rng((index, window))
  arrays = {
    "clip/mean": rng.standard_normal((2, 3)).astype(np.float16),
    "label": np.array(index, np.int32),
  }
  return cache.Record(arrays, {"index": index, "window": window, "caption": f"é {index}"})


def write(folder, clips=10, windows=1, least=4, broken=()):
  for i, own in enumerate(cache.shards(clips, least)):
    rows = [(c, w) for c in own for w in range(windows)]
    made = [
      cache.Record({}, {"index": c, "window": w, "error": f"clip {c} breaks off."})
      if c in broken
      else record(c, w)
      for c, w in rows
    ]
    cache.write(cache.shard_file(folder, "train", i), made)


def opened(folder, clips=10, windows=1, least=4):
  return cache.Cached(
    folder, "train", clips=clips, windows=windows, least=least, digest="x", fields=FIELDS
  )


def test_a_record_comes_back_and_any_flipped_bit_is_noticed():
  packed = cache.pack(record(3))
  back = cache.unpack(packed)
  assert back.about == record(3).about
  for name, x in record(3).arrays.items():
    assert back.arrays[name].dtype == x.dtype
    np.testing.assert_array_equal(back.arrays[name], x)
  for place in range(len(packed)):
    damaged = bytearray(packed)
    damaged[place] ^= 1 << (place % 8)
    with pytest.raises(ValueError, match="checksum"):
      cache.unpack(bytes(damaged))
  with pytest.raises(ValueError, match="checksum"):
    cache.unpack(packed[: len(packed) // 2])


@pytest.mark.parametrize(("clips", "least"), [(1, 256), (10, 4), (12, 4), (2_500_000, 256)])
def test_every_clip_is_in_one_shard_and_the_shards_are_not_too_many(clips, least):
  found = cache.shards(clips, least)
  assert len(found) <= cache.MOST_SHARDS and sum(map(len, found)) == clips
  assert all(a.stop == b.start for a, b in zip(found, found[1:], strict=False))
  assert found[0].start == 0 and all(len(x) == len(found[0]) for x in found[:-1])


def test_each_read_draws_one_of_a_clips_windows(tmp_path):
  write(tmp_path, windows=3)
  source = pickle.loads(pickle.dumps(opened(tmp_path, windows=3)))  # as worker processes get it
  assert len(source) == 10
  seen = {source.read(7, np.random.default_rng(s))["clip/mean"].tobytes() for s in range(30)}
  assert seen == {record(7, w).arrays["clip/mean"].tobytes() for w in range(3)}
  assert source.caption(7) == "é 7"


def stream(source, n=5, **options):
  batches = pipeline.Batches(source, None, batch_size=2, seed=1, threads=1, **options)
  out = [next(batches) for _ in range(n)]
  batches.close()
  return out


def test_batches_of_features_are_restartable_and_the_same_for_any_number_of_hosts(tmp_path):
  write(tmp_path, windows=2)
  whole = stream(opened(tmp_path, windows=2))
  assert set(whole[0]) == {"clip/mean", "label", "index", "replaced"}
  late = pipeline.Batches(opened(tmp_path, windows=2), None, batch_size=2, seed=1, threads=1)
  late.position = 3
  for name, x in next(late).items():
    np.testing.assert_array_equal(x, whole[3][name])
  late.close()
  halves = [stream(opened(tmp_path, windows=2), process_index=p, process_count=2) for p in range(2)]
  for k in range(5):
    joined = np.concatenate([half[k]["clip/mean"] for half in halves])
    np.testing.assert_array_equal(joined, whole[k]["clip/mean"])


def flip(file, record):
  data = bytearray(file.read_bytes())
  data[data.find(record.arrays["clip/mean"].tobytes())] ^= 1
  file.write_bytes(data)


def test_a_damaged_record_is_replaced_and_named_as_a_broken_clip_is(tmp_path, caplog):
  write(tmp_path, broken=(2,))
  flip(cache.shard_file(tmp_path, "train", 1), record(5))
  source = opened(tmp_path)
  for index in (4, 6):
    assert source.read(index, np.random.default_rng(0))["label"] == index
  with caplog.at_level(logging.WARNING):
    seen = np.concatenate([batch["label"] for batch in stream(source)])
  assert not set(seen) & {2, 5} and len(seen) == 10
  assert "clip 5 in " in caplog.text and "train-00001.records is damaged" in caplog.text
  assert "clip 2 breaks off. Another clip takes its place." in caplog.text


def test_a_shard_that_breaks_off_or_is_missing_ends_a_training_whose_clips_would_be_lost(tmp_path):
  write(tmp_path)
  file = cache.shard_file(tmp_path, "train", 2)
  file.write_bytes(file.read_bytes()[: 1 << 15])
  with pytest.raises(errors.UserError, match="train-00002.records is damaged as a whole"):
    for _ in stream(opened(tmp_path), 10):
      pass
  file.unlink()
  with pytest.raises(errors.UserError, match="lacks 1 of the 3 shards of train, train-00002"):
    opened(tmp_path)


def test_another_clips_record_in_its_place_is_damage(tmp_path):
  write(tmp_path)
  one, two = (cache.shard_file(tmp_path, "train", i) for i in range(2))
  two.write_bytes(one.read_bytes())
  with pytest.raises(video_lib.BrokenClip, match="another clip's"):
    opened(tmp_path).record(5, 0)


def test_a_shard_is_in_its_place_only_when_it_is_whole(tmp_path):
  def half():
    yield record(0)
    raise RuntimeError("killed")

  file = cache.shard_file(tmp_path, "train", 0)
  with pytest.raises(RuntimeError, match="killed"):
    cache.write(file, half())
  assert not file.exists()
  cache.write(file, [record(0), record(1)])
  assert [x.name for x in tmp_path.iterdir()] == [file.name]
