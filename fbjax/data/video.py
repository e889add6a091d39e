"""Clips and images on disk <-> uint8 arrays.

  Clip    frames of one moment with what is known of it; pixels 0-255, channels last
  stride  how many frames of the file one frame of the clip advances

Frames count in the order in which they are shown; their times play no part, so a variable frame
rate needs no care.
"""

import contextlib
import fractions
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from fbjax import checks, errors, places
from fbjax.data import playback

# Pillow warns of images that are refused here anyway.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)

Path = str | os.PathLike

EXTENSIONS = (
  *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"),
  *(".ts", ".3gp"),
)
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Named, as Pillow would start Ghostscript for PostScript, and parses much else.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_IMAGE_PIXELS = 64 * 10**6


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


def choose_frames(
  count: int, frames: int, strides: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
  """Draws (first frame, stride) of a clip of `frames` frames out of a video of `count`.

  The stride is uniform in `strides`, both ends included, then cut to what the video has room for;
  the start is uniform. BrokenClip where the video has fewer than `frames` frames.
  """
  stride = int(rng.integers(strides[0], strides[1] + 1))
  if frames > 1:
    stride = min(stride, (count - 1) // (frames - 1))
  if count < frames:
    raise BrokenClip(f"has {count} frames, fewer than the {frames} of a clip")
  return int(rng.integers(count - stride * (frames - 1))), stride


# (frames of the video, of the clip, least and most stride, rng) -> frames to take, and their stride.
Choose = Callable[
  [int, int, tuple[int, int], np.random.Generator], tuple[Sequence[int] | range, int]
]


def evenly(
  count: int, frames: int, strides: tuple[int, int], rng: np.random.Generator
) -> tuple[range, int]:
  """Frames a constant stride apart; see `choose_frames`."""
  start, stride = choose_frames(count, frames, strides, rng)
  return range(start, start + stride * (frames - 1) + 1, stride), stride


def the_first(
  count: int, frames: int, strides: tuple[int, int], rng: np.random.Generator
) -> tuple[range, int]:
  """The first frames, at the least stride: a clip is then what follows its first image."""
  del rng
  stride = strides[0]
  if count <= stride * (frames - 1):
    raise BrokenClip(f"has {count} frames, fewer than the {frames} of a clip at stride {stride}")
  return range(0, stride * (frames - 1) + 1, stride), stride


def in_window(
  count: int, frames: int, strides: tuple[int, int], rng: np.random.Generator
) -> tuple[list[int], int]:
  """Frames spread over a window of stride x frames, as the released UCF-101 code draws them.

  Their distance drifts between the stride and one more; a shorter video is compressed.
  """
  if count < frames:
    raise BrokenClip(f"has {count} frames, fewer than the {frames} of a clip")
  stride = strides[0]
  window = stride * frames
  start = int(rng.integers(max(count - window, 1)))
  end = min(start + window, count)
  return np.linspace(start, end - 1, frames).astype(int).tolist(), stride


def read_clip(
  path: Path,
  frames: int,
  size: tuple[int, int],
  strides: tuple[int, int],
  rng: np.random.Generator,
  data: bytes | None = None,
  choose: Choose | None = None,
) -> tuple[UInt8[np.ndarray, "t h w 3"], int]:
  """Returns a random stretch of a video and its stride; BrokenClip where the file has none.

  `data` is the content of a file that is not on disk; `path` then only says in errors which it is.
  `choose` picks the frames; by default they are `evenly` spaced.
  """
  choose = choose or evenly

  def fit(picture: playback.Picture) -> np.ndarray:
    return resize_crop(picture.image, size, picture.aspect)

  with _named(path):
    with playback.opened(path, data) as video:
      identity, index = video.identity, playback.read_index(video)
      if index is not None:
        state = rng.bit_generator.state
        wanted, stride = choose(len(index.pts), frames, strides, rng)
        images = list(map(fit, playback.from_keyframe(video, index, wanted)))
        if len(images) == frames:
          return np.stack(images), stride
        rng.bit_generator.state = state
    wanted, stride = choose(playback.count_frames(path, data, identity), frames, strides, rng)
    images = list(map(fit, playback.from_start(path, data, wanted)))
    if len(images) < frames:
      raise BrokenClip(f"ends before frame {wanted[-1]}")
    return np.stack(images), stride


def read_all(path: Path) -> UInt8[np.ndarray, "t h w 3"]:
  """All frames of a video at its own size, in square pixels.

  BrokenClip where it has none, or more than `checks.MAX_CLIP_PIXELS` pixels in all.
  """
  images = []
  with _named(path):
    for picture in playback.from_start(path, None, range(checks.MAX_CLIP_PIXELS)):
      height, width = picture.image.shape[0], round(picture.image.shape[1] * picture.aspect)
      count = len(images) + 1
      if count * height * width > checks.MAX_CLIP_PIXELS:
        raise BrokenClip(f"has {count} frames of {width}x{height} or more, beyond what a clip has")
      images.append(resize_crop(picture.image, (height, width), picture.aspect))
    if not images:
      raise BrokenClip("has no frames")
  return np.stack(images)


def frame_rate(path: Path, data: bytes | None = None) -> float:
  """Frames a second of a video, 0 where it does not say.

  BrokenClip where it is broken, as far as its packets and its first frame show. `data` as in
  `read_clip`.
  """
  with _named(path):
    with playback.opened(path, data) as video:
      playback.read_index(video)
      rate = video.stream.average_rate
    if next(playback.from_start(path, data, range(1)), None) is None:
      raise BrokenClip("has no frames")
    return float(rate or 0)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
  """Says of what goes wrong which file it is."""
  try:
    yield
  except (BrokenClip, playback.Unplayable) as e:
    raise BrokenClip(f"{path} {e}.") from None


def resize_crop(
  image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], aspect: float = 1
) -> UInt8[np.ndarray, "h2 w2 3"]:
  """Resizes the image to cover `size` (height, width) at its aspect ratio, and centre-crops it.

  One antialiased bilinear resampling of the exact centre, so the aspect ratio is kept to a fraction
  of a pixel. Images and clips share it: what is sampled from must look like what was trained on.
  `aspect` is the pixel aspect ratio (width / height) of the image; pixels of the result are square.
  """
  height, width = image.shape[:2]
  if abs(aspect - 1) < 0.01:
    aspect = 1  # Such ratios, as 2540:2533, come of rounding the size; there is nothing to see.
  if (height, width) == tuple(size) and aspect == 1:
    return np.ascontiguousarray(image)
  scale = max(size[0] / height, size[1] / (width * aspect))
  dy, dx = (height - size[0] / scale) / 2, (width - size[1] / scale / aspect) / 2
  # Pillow takes 32-bit floats, and none outside the image, be it by rounding.
  box = np.array([dx, dy, width - dx, height - dy], np.float32)
  box = box.clip(0, np.array([width, height, width, height], np.float32))
  resized = PIL.Image.fromarray(np.ascontiguousarray(image)).resize(
    (size[1], size[0]), PIL.Image.Resampling.BILINEAR, box=tuple(box.tolist())
  )
  return np.asarray(resized)


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
  """An image file as upright RGB: grey, palette, CMYK and 16 bits converted, alpha over white.

  Takes `IMAGE_FORMATS` whatever the file is called, the first picture of an animation, and up to
  `MAX_IMAGE_PIXELS`, which is known before anything is decoded; BrokenData for all else.
  """
  try:
    with playback.open_regular(path) as file:
      return np.asarray(_rgb(file))
  except FileNotFoundError:
    raise BrokenData(f"no image at {path}.") from None
  except PIL.UnidentifiedImageError:
    formats = ", ".join(IMAGE_FORMATS)
    raise BrokenData(f"{path} is not an image of a format that is read: {formats}.") from None
  except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
    limit = f"{MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"
    raise BrokenData(f"the image {path} has more than {limit}; make it smaller.") from None
  except Exception as e:  # Pillow's parsers raise nearly anything.
    why = getattr(e, "strerror", None) or str(e) or type(e).__name__
    raise BrokenData(f"the image {path} cannot be read: {why}.") from None


def _rgb(file: BinaryIO) -> PIL.Image.Image:
  """Nothing but calls of Pillow: what they raise, the file has caused."""
  with PIL.Image.open(file, formats=IMAGE_FORMATS) as image:
    if image.width * image.height > MAX_IMAGE_PIXELS:
      raise PIL.Image.DecompressionBombError
    return rgb(image)


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
  """A picture upright and in RGB, as `read_image` has it."""
  image = PIL.ImageOps.exif_transpose(image)
  if image.mode in ("I", "F") or image.mode.startswith("I;16"):
    # PIL clips these to 255 instead of scaling them.
    values = np.asarray(image)
    if image.mode == "F":
      values = _of_floats(values)
    else:
      values = (np.clip(values, 0, 65535).astype(np.uint32) + 128) // 257
    return PIL.Image.fromarray(values.astype(np.uint8)).convert("RGB")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image).convert("RGB")
  image.load()
  return image if image.mode == "RGB" else image.convert("RGB")


def _of_floats(values: np.ndarray) -> np.ndarray:
  """Grey values from 0 to 1, or from 0 to 255, as the latter; those that are no numbers are black."""
  values = np.nan_to_num(values, posinf=0, neginf=0)
  least, most = values.min(), values.max()
  if least < -1 or most > 256:  # What rounding and sharpening add is no other scale.
    raise ValueError(
      f"its values are floats from {least:g} to {most:g}; expected 0 to 1, or 0 to 255"
    )
  return np.round(values * 255 if most < 2 else values).clip(0, 255)


def write_mp4(
  path: Path, video: UInt8[np.ndarray, "t h w 3"], fps: float = 8, crf: int = 10
) -> None:
  """Writes H.264, 4:2:0, at nearly lossless quality; odd sizes repeat their last row or column.

  yuv420p because browsers, QuickTime and slide programs play nothing else.
  """
  write_frames(path, video, video.shape[1:3], fps=fps, crf=crf)


def write_frames(
  path: Path,
  frames: Iterable[UInt8[np.ndarray, "h w 3"]],
  size: tuple[int, int],
  *,
  fps: float,
  crf: int,
  gop: int = 250,
) -> None:
  """As `write_mp4`, one frame of `size` (height, width) at a time.

  `gop` is the most frames from one keyframe to the next.
  """
  h, w = size
  with (
    places.written(os.fspath(path)) as part,
    av.open(f"file:{part}", "w", format="mp4") as container,
  ):
    stream = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1000))
    stream.width, stream.height, stream.pix_fmt = w + w % 2, h + h % 2, "yuv420p"
    stream.options = {"crf": str(crf), "preset": "medium", "g": str(gop)}
    for frame in frames:
      frame = np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())


def write_gif(path: Path, video: UInt8[np.ndarray, "t h w 3"], fps: float = 8) -> None:
  """Writes a GIF that repeats for ever, its 256 colours chosen for all of the clip.

  Times are multiples of 10 ms in a GIF: a frame is rounded to them, its clip is not. At most 50
  frames a second, as browsers slow down what is faster.
  """
  # One palette: with one for each frame, colours would flicker.
  few = video[np.linspace(0, len(video) - 1, min(len(video), 16)).round().astype(int)]
  palette = PIL.Image.fromarray(few.reshape(-1, *few.shape[2:])).quantize(
    256, PIL.Image.Quantize.MEDIANCUT, kmeans=1
  )
  images = [PIL.Image.fromarray(frame).quantize(palette=palette) for frame in video]
  ends = np.round(np.arange(len(video) + 1) * 100 / min(fps, 50)) * 10
  with places.written(os.fspath(path)) as part:
    images[0].save(
      part,
      "GIF",
      save_all=True,
      append_images=images[1:],
      duration=np.diff(ends).astype(int).tolist(),
      loop=0,
    )
