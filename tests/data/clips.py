"""Small data sets of video files."""

import io
import pathlib
import tarfile
import tempfile

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


def write_tar(path, members):
  """A tar of (name, bytes), or of TarInfo in place of the name, in this order."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as tar:
    for name, data in members:
      info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def encoded(level=0, frames=12):
  """The bytes of a clip as `write_clip` has it."""
  with tempfile.TemporaryDirectory() as folder:
    write_clip(pathlib.Path(folder, "a.mp4"), level, frames)
    return pathlib.Path(folder, "a.mp4").read_bytes()


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
