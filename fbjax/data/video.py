"""Clips and images on disk <-> uint8 arrays.

Clip    frames of one moment with what is known of it; pixels 0-255, channels last
stride  how many frames of the file one frame of the clip advances
"""

import fractions
import pathlib
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8


class Clip(NamedTuple):
  """A video and its labels; `label` is a class id, -1 where the data has no classes."""

  video: UInt8[np.ndarray, "t h w 3"]
  caption: str
  stride: int = 1
  label: int = -1


class BrokenClip(ValueError):
  """A clip that cannot be used; says which and why."""


class BrokenData(ValueError):
  """A data set that cannot be used; says which and why."""


def write_mp4(
  path: str | pathlib.Path, video: UInt8[np.ndarray, "t h w 3"], fps: float = 8, crf: int = 10
) -> None:
  """Writes H.264, 4:2:0, at nearly lossless quality; odd sizes repeat their last row or column.

  yuv420p because browsers, QuickTime and slide programs play nothing else.
  """
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  _, h, w, _ = video.shape
  video = np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
  with av.open(str(path), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1000))
    stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
    stream.options = {"crf": str(crf), "preset": "medium"}
    for frame in video:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
