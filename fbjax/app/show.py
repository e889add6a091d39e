"""What the page shows, as HTML with pictures and clips inlined as data URIs.

Prompts and file names come from outside and are escaped.
"""

import base64
import io
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from fbjax.data import video
from fbjax.markup import Html, tag
from fbjax.tracker import plots

Clip = UInt8[np.ndarray, "t h w 3"]

COLUMNS = 16  # frames of a clip on its sheet
SHEET = 1600  # pixels that a sheet is wide at most
KEPT = 8  # clips in the gallery of a session

STYLE = """
.fb-clips { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.fb-clip { flex: 1 1 320px; min-width: 0; max-width: 640px; }
.fb-clip video, .fb-clip > img.fb-look {
  width: 100%; max-width: 384px; display: block; border-radius: 6px; background: #8882;
}
.fb-small { image-rendering: pixelated; }
.fb-clip progress { width: 100%; max-width: 384px; height: 8px; display: block; margin: 8px 0 4px; accent-color: #ea580c; }
.fb-clip p, .fb-card p { margin: 4px 0; overflow-wrap: anywhere; }
.fb-clip pre {
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; font-size: 12px; padding: 8px;
  border-radius: 6px; background: #8882; margin: 4px 0;
}
.fb-sheet { width: 100%; display: block; margin: 8px 0; border-radius: 4px; }
.fb-links a { margin-right: 16px; }
.fb-note { opacity: 0.8; }
.fb-gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); gap: 16px; }
.fb-card { font-size: 12px; }
.fb-card img { width: 100%; display: block; border-radius: 6px; }
"""


class Made(NamedTuple):
  """A clip with all that its card in the gallery says."""

  clip: str  # data URI of a moving picture
  mp4: str
  gif: str
  name: str
  text: str
  is_small: bool


def uri(kind: str, data: bytes) -> str:
  """Data as a data URI; `kind` is the MIME type."""
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(image: UInt8[np.ndarray, "h w 3"]) -> str:
  """An image as the data URI of a PNG."""
  return _encoded([image], "PNG")


def moving(clip: Clip, fps: float) -> str:
  """A clip as the data URI of a lossless animated WebP."""
  more = {"save_all": True, "duration": round(1000 / fps), "loop": 0, "lossless": True, "method": 0}
  return _encoded(clip, "WEBP", **more)


def mp4(clip: Clip, fps: float, folder: str) -> str:
  """A clip as the data URI of an H.264 video; `folder` is for temporary files."""
  return _written(video.write_mp4, "clip.mp4", "video/mp4", clip, fps, folder)


def gif(clip: Clip, fps: float, folder: str) -> str:
  """A clip as the data URI of a GIF; `folder` as for `mp4`."""
  return _written(video.write_gif, "clip.gif", "image/gif", clip, fps, folder)


def sheet(clips: Sequence[Clip], captions: Sequence[str]) -> UInt8[np.ndarray, "height width 3"]:
  """A contact sheet: a row for each clip, such as one clip after successive evaluations.

  At most `COLUMNS` frames of each, evenly spaced, the first and the last among them.
  """
  frames = len(clips[0])
  few = np.linspace(0, frames - 1, min(frames, COLUMNS)).round().astype(int)
  cell = min(max(clips[0].shape[2], 64), SHEET // len(few))
  return plots.contact_sheet([{"": clip[few]} for clip in clips], captions, cell)


def growing(look: str, is_small: bool, row: int, rows: int, told: str) -> Html:
  """A clip in progress: its current look, evaluations done as a bar, and a line of text."""
  kind = f"fb-look{_small(is_small)}"
  picture = tag("img", class_=kind, alt="the clip so far", src=Html(look)) if look else Html()
  bar = tag("progress", value=row, max=rows)
  return tag("div", picture, bar, tag("p", told, class_="fb-told"), class_="fb-clip")


def done(made: Made, sheet: str, told: str, command: str, notes: Sequence[str]) -> Html:
  """A finished clip: a player, download links, its contact sheet and the command that makes it."""
  switches = dict.fromkeys(("autoplay", "loop", "muted", "controls", "playsinline"), "")
  alt = "the clip after each evaluation, frame by frame"
  return tag(
    "div",
    tag("video", class_=_small(made.is_small).strip(), src=Html(made.mp4), **switches),
    tag("p", told, class_="fb-told"),
    links(made),
    *(tag("p", note, class_="fb-note") for note in notes if note),
    tag("img", class_="fb-sheet", alt=alt, src=Html(sheet)),
    tag("pre", command),
    class_="fb-clip fb-done",
  )


def links(made: Made) -> Html:
  """Links to download a clip."""
  both = (("mp4", made.mp4), ("gif", made.gif))
  inner = (tag("a", kind, download=f"{made.name}.{kind}", href=Html(x)) for kind, x in both)
  return tag("p", *inner, class_="fb-links")


def beside(parts: Sequence[Html]) -> Html:
  """Clips next to each other."""
  return tag("div", *parts, class_="fb-clips")


def gallery(made: Sequence[Made]) -> Html:
  """The clips of a session, the newest first."""
  cards = [
    tag(
      "div",
      tag("img", class_=_small(each.is_small).strip(), alt="a clip", src=Html(each.clip)),
      tag("p", each.text),
      links(each),
      class_="fb-card",
    )
    for each in reversed(made)
  ]
  return tag("div", *cards, class_="fb-gallery") if cards else Html()


def _small(is_small: bool) -> str:
  return " fb-small" if is_small else ""


def _encoded(frames: Sequence[np.ndarray] | np.ndarray, kind: str, **more: object) -> str:
  first, *rest = map(PIL.Image.fromarray, frames)
  file = io.BytesIO()
  first.save(file, kind, **({"append_images": rest} if rest else {}), **more)
  return uri(f"image/{kind.lower()}", file.getvalue())


def _written(
  write: Callable[..., None], name: str, kind: str, clip: Clip, fps: float, folder: str
) -> str:
  with tempfile.TemporaryDirectory(dir=folder) as place:
    file = pathlib.Path(place) / name
    write(file, clip, fps=fps)
    return uri(kind, file.read_bytes())
