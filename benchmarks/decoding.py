"""Clips a second that one core reads from video files, and the share of it that is decoding.

python -m benchmarks.decoding --path=<folder of videos> [--frames=16] [--size=256] [--reads=100] [--out=x.json]

Each read is a random stretch of a file, as in training: 16 frames at strides 1 to 6, 256x256. In turn with it
FFmpeg alone decodes the same frames, from the same keyframe, and throws them away.
"""

import json
import time
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from fbjax.data import folder, playback, video

PATH = flags.DEFINE_string("path", None, "Folder of videos", required=True)
FRAMES = flags.DEFINE_integer("frames", 16, "Frames of a clip")
SIZE = flags.DEFINE_integer("size", 256, "Height and width of a clip")
READS = flags.DEFINE_integer("reads", 100, "Clips to read")
OUT = flags.DEFINE_string("out", None, "File to write the figures to")
STRIDES = (1, 6)


def main(_: list[str]) -> None:
  files = [file for file in map(str, folder.video_files(PATH.value)) if usable(file)]
  rng = np.random.default_rng(0)
  reading = decoding = decoded = 0.0
  for i in range(READS.value):
    file, seed = files[i % len(files)], int(rng.integers(2**31))
    with playback.opened(file) as opened:
      index = playback.read_index(opened)
    wanted, _ = video.evenly(len(index.pts), FRAMES.value, STRIDES, np.random.default_rng(seed))
    start = time.perf_counter()
    read(file, np.random.default_rng(seed))
    between = time.perf_counter()
    decoded += decode(file, index, wanted)
    end = time.perf_counter()
    reading, decoding = reading + between - start, decoding + end - between
  figures = {
    "files": len(files),
    "clips_per_s": READS.value / reading,
    "decoding_share": decoding / reading,
    "frames_decoded_a_clip": decoded / READS.value,
  }
  print(
    f"{figures['clips_per_s']:.1f} clips/s on one core, {figures['frames_decoded_a_clip']:.0f} frames decoded "
    f"for each; decoding alone is {figures['decoding_share']:.0%} of the time"
  )
  if OUT.value:
    with open(OUT.value, "w") as out:
      json.dump(figures, out, indent=2)


def usable(file: str) -> bool:
  """Whether the file has an index and enough frames; remembers the index, as training does."""
  try:
    with playback.opened(file) as opened:
      index = playback.read_index(opened)
    return index is not None and len(index.pts) >= FRAMES.value
  except playback.Unplayable:
    return False


def read(file: str, rng: np.random.Generator) -> None:
  video.read_clip(file, FRAMES.value, (SIZE.value, SIZE.value), STRIDES, rng)


def decode(file: str, index: playback.Index, wanted: Sequence[int]) -> int:
  """Decodes from the last keyframe before the first frame to the last; returns how many frames."""
  key = index.keys[np.searchsorted(index.keys, index.pts[wanted[0]], "right") - 1]
  count = 0
  with playback.opened(file) as (container, stream, _):
    container.seek(int(key), stream=stream)
    for frame in container.decode(stream):
      count += 1
      if frame.pts >= index.pts[wanted[-1]]:
        break
  return count


if __name__ == "__main__":
  app.run(main)
