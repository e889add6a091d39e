"""What is shown holds its own data, and nothing of what others have written is understood as HTML."""

import base64
import html.parser
import io
import re

import av
import numpy as np
import PIL.Image
import pytest

from fbjax.app import show

EVIL = "<img src=x onerror=alert(1)>\"'&"


def clip(frames=3, size=16):
  return np.random.default_rng(0).integers(0, 256, (frames, size, size, 3), np.uint8)


def data(uri: str) -> bytes:
  return base64.b64decode(uri.partition(",")[2])


def made(**changes):
  each = show.Made("data:,a", "data:,b", "data:,c", "cat-0", "up", True)
  return each._replace(**changes)


class Tags(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.found, self.text = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text.append(data)


def test_a_moving_picture_is_the_clip_itself():
  uri = show.moving(clip(), fps=8)
  with PIL.Image.open(io.BytesIO(data(uri))) as image:
    frames = []
    for i in range(image.n_frames):
      image.seek(i)
      frames.append(np.asarray(image.convert("RGB")))
  np.testing.assert_array_equal(frames, clip())
  assert uri.startswith("data:image/webp;base64,")


def test_downloads_are_files_that_play(tmp_path):
  for encode, kind in ((show.mp4, "video/mp4"), (show.gif, "image/gif")):
    uri = encode(clip(5), 8, str(tmp_path))
    assert uri.startswith(f"data:{kind};base64,")
    with av.open(io.BytesIO(data(uri))) as container:
      assert sum(1 for _ in container.decode(video=0)) == 5
  assert not list(tmp_path.iterdir())


def test_a_sheet_has_a_row_for_each_look_and_few_of_many_frames():
  sheets = [show.sheet([clip(n)] * rows, ["x"] * rows) for n, rows in ((16, 1), (16, 3), (100, 3))]
  one, three, many = (sheet.shape for sheet in sheets)
  assert three[0] > 2 * one[0] and three == many and many[1] <= 1.05 * show.SHEET


@pytest.mark.parametrize("place", ["told", "command", "notes", "name", "text"])
def test_what_others_wrote_is_text(place):
  each = made(**{place: EVIL}) if place in made()._fields else made()
  given = {"told": "x", "command": "x", "notes": ["x"]}
  given |= {place: [EVIL] if place == "notes" else EVIL} if place in given else {}
  shown = (
    show.done(each, "data:,d", **given) + show.gallery([each]) + show.growing("", True, 1, 2, EVIL)
  )
  plain = show.done(made(), "data:,d", "x", "x", ["x"]) + show.gallery([made()])
  tags = Tags(shown)
  assert [tag for tag, _ in tags.found] == [
    tag for tag, _ in Tags(plain + show.growing("", True, 1, 2, "x")).found
  ]
  assert not any("onerror" in attrs for _, attrs in tags.found)
  assert EVIL in "".join(tags.text)


def test_nothing_is_loaded_from_elsewhere():
  shown = show.done(made(), "data:,d", "x", "x", []) + show.gallery([made()] * 3)
  addresses = [
    value for _, attrs in Tags(shown).found for k, value in attrs.items() if k in ("src", "href")
  ]
  assert len(addresses) == 2 + 2 + 3 * 3 and all(x.startswith("data:") for x in addresses)
  assert not re.search(r"url\(|@import", show.STYLE)
