"""Small data sets of video files."""

import numpy as np

from fbjax.data import pipeline, tokenizers
from fbjax.data import video as video_lib


def write_clip(path, level=0, frames=12):
  video = np.full((frames, 16, 16, 3), level, np.uint8)
  video_lib.write_mp4(path, video)


def listed(source):
  return [source.name(i) for i in range(len(source))]


def touch(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def batches(source, **options):
  return pipeline.Batches(source, tokenizers.Bytes(64), **{"batch_size": 4} | options)
