"""Clips and images on disk <-> uint8 arrays.

  Clip    frames of one moment with what is known of it; pixels 0-255, channels last
  stride  how many frames of the file one frame of the clip advances

Frames count in the order in which they are shown; their times play no part, so a variable frame
rate needs no care.
"""

import contextlib
import fractions
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import av.video.reformatter
import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from fbjax import errors

Path = str | os.PathLike

EXTENSIONS = (
  *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"),
  *(".ts", ".3gp"),
)
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class Clip(NamedTuple):
  """A video and its labels; `label` is a class id, -1 where the data has no classes."""

  video: UInt8[np.ndarray, "t h w 3"]
  caption: str
  stride: int = 1
  label: int = -1


class BrokenClip(errors.UserError):
  """A clip that cannot be used; says which and why."""


class BrokenData(errors.UserError):
  """A data set, image or folder that cannot be used; says which and why."""


class Index(NamedTuple):
  """What a file holds, found by reading its packets without decoding them."""

  frames: int
  pts: np.ndarray | None  # time stamps in the order shown; None where the file has none to trust
  keyframes: np.ndarray  # time stamps at which decoding can begin


def choose_frames(
  count: int, frames: int, strides: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
  """Returns (first frame, stride) of a clip of `frames` out of `count`.

  The stride is uniform in `strides`, both ends included, but at most what the video has room for;
  the start is uniform. The stride returned is the one used.
  """
  stride = int(rng.integers(strides[0], strides[1] + 1))
  if frames > 1:
    stride = min(stride, (count - 1) // (frames - 1))
  if stride < 1:
    raise BrokenClip(f"has {count} frames, fewer than the {frames} of a clip")
  return int(rng.integers(count - stride * (frames - 1))), stride


def read_clip(
  path: Path,
  frames: int,
  size: tuple[int, int],
  strides: tuple[int, int],
  rng: np.random.Generator,
  data: bytes | None = None,
) -> tuple[UInt8[np.ndarray, "t h w 3"], int]:
  """Returns a random stretch of a video and its stride; BrokenClip where the file has none.

  `data` is the content of a file that is not on disk; `path` then only says in errors which it is.
  """
  with _open(path, data) as container:
    index = _index(container)
    start, stride = choose_frames(index.frames, frames, strides, rng)
    wanted = range(start, start + stride * (frames - 1) + 1, stride)
    images = _frames_from_keyframe(container, index, wanted, size)
    if images is None:
      images = _frames_from_start(container, wanted, size)
    return np.stack(images), stride


def frame_rate(path: Path) -> float:
  """Frames a second of a video, 0 where it does not say.

  BrokenClip where it is broken, as far as its packets and its first frame show.
  """
  with _open(path) as container:
    _index(container)
    container.seek(0)
    if next(container.decode(video=0), None) is None:
      raise BrokenClip("has no frames")
    return float(container.streams.video[0].average_rate or 0)


@contextlib.contextmanager
def _open(path: Path, data: bytes | None = None) -> Iterator:
  """A container with a video stream; what is wrong with it, also later, ends in a BrokenClip."""
  try:
    with av.open(os.fspath(path) if data is None else io.BytesIO(data)) as container:
      if not container.streams.video:
        raise BrokenClip("has no video stream")
      yield container
  except BrokenClip as e:
    raise BrokenClip(f"{path} {e}.") from None
  except FileNotFoundError:
    raise BrokenClip(f"{path} does not exist.") from None
  except (av.error.FFmpegError, OSError) as e:
    empty = os.path.isfile(path) and not os.path.getsize(path)
    reason = "is empty" if empty else f"cannot be decoded: {e.strerror}"
    raise BrokenClip(f"{path} {reason}.") from None


def _index(container) -> Index:
  stream = container.streams.video[0]
  packets = [p for p in container.demux(stream) if p.size]
  if len(packets) < 0.9 * stream.frames:
    raise BrokenClip(f"breaks off: {len(packets)} of its {stream.frames} frames are there")
  shown = [p for p in packets if not p.is_discard]
  pts = [p.pts for p in shown]
  trusted = None not in pts and len(set(pts)) == len(pts)
  keyframes = [p.pts for p in packets if p.is_keyframe and p.pts is not None]
  return Index(len(shown), np.sort(pts) if trusted else None, np.sort(keyframes))


def _frames_from_keyframe(container, index: Index, wanted: range, size) -> list | None:
  """The wanted frames, found by their time stamps from the last keyframe before the first of them.

  None where the file does not keep what its packets promised. Spares decoding what lies before:
  half of a long video on average.
  """
  if index.pts is None:
    return None
  stamps = {int(index.pts[i]) for i in wanted}
  first, last = min(stamps), max(stamps)
  before = index.keyframes[index.keyframes <= first]
  if not len(before):
    return None
  stream, images = container.streams.video[0], []
  resizer = _Resizer(size)
  container.seek(int(before[-1]), stream=stream)
  for frame in container.decode(stream):
    if frame.pts is None or (not images and frame.pts > first):
      return None
    if frame.pts in stamps:
      images.append(resizer(frame))
    if frame.pts >= last:
      break
  return images if len(images) == len(stamps) else None


def _frames_from_start(container, wanted: range, size) -> list:
  container.seek(0)
  resizer, images, i = _Resizer(size), [], -1
  for i, frame in enumerate(container.decode(container.streams.video[0])):
    if i in wanted:
      images.append(resizer(frame))
    if i == wanted[-1]:
      return images
  raise BrokenClip(f"ends after {i + 1} frames, before frame {wanted[-1]}")


class _Resizer:
  """Decoded frame -> upright array of the wanted size; keeps the colour converter between frames."""

  def __init__(self, size: tuple[int, int]):
    self._size, self._to_rgb = size, av.video.reformatter.VideoReformatter()

  def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    image = self._to_rgb.reformat(frame, format="rgb24").to_ndarray()
    # Players turn by this flag, counter-clockwise; decoders do not.
    image = np.rot90(image, round(frame.rotation / 90) % 4)
    return resize_crop(image, self._size)


def resize_crop(
  image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Scales the image until it just covers `size` (height, width) and keeps the centre.

  One antialiased bilinear resampling of the exact centre, so the aspect ratio is kept to a fraction
  of a pixel. Images and clips share it: what is sampled from must look like what was trained on.
  """
  height, width = image.shape[:2]
  if (height, width) == tuple(size):
    return np.ascontiguousarray(image)
  scale = max(size[0] / height, size[1] / width)
  dy, dx = (height - size[0] / scale) / 2, (width - size[1] / scale) / 2
  resized = PIL.Image.fromarray(np.ascontiguousarray(image)).resize(
    (size[1], size[0]), PIL.Image.Resampling.BILINEAR, box=(dx, dy, width - dx, height - dy)
  )
  return np.asarray(resized)


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
  """An image file as upright RGB: grey, palette, CMYK and 16 bits converted, alpha over white."""
  try:
    with PIL.Image.open(path) as file:
      image = PIL.ImageOps.exif_transpose(file)
      if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # PIL clips these to 255 instead of scaling them.
        values = np.asarray(image, np.float64)
        values = values / 257 if image.mode != "F" else values
        image = PIL.Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
      if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
      return np.asarray(image.convert("RGB"))
  except FileNotFoundError:
    raise BrokenData(f"no image at {path}.") from None
  except PIL.UnidentifiedImageError:
    raise BrokenData(f"{path} is not an image.") from None
  except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as e:
    raise BrokenData(f"the image {path} cannot be read: {e}.") from None


def write_mp4(
  path: Path, video: UInt8[np.ndarray, "t h w 3"], fps: float = 8, crf: int = 10
) -> None:
  """Writes H.264, 4:2:0, at nearly lossless quality; odd sizes repeat their last row or column.

  yuv420p because browsers, QuickTime and slide programs play nothing else.
  """
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  _, h, w, _ = video.shape
  video = np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
  with av.open(os.fspath(path), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1000))
    stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
    stream.options = {"crf": str(crf), "preset": "medium"}
    for frame in video:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())


def pair(value: int | Sequence[int]) -> tuple[int, int]:
  """A size or a range given as one number or two."""
  return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
