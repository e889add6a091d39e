"""Pages: whatever is put into them stays text, and nothing is fetched."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from fbjax import markup
from pages import HOSTILE, check_safe


def test_what_is_put_into_a_page_stays_text():
  body = [
    markup.tag("p", HOSTILE, title=HOSTILE),
    markup.table([HOSTILE], [[HOSTILE, 1.5]]),
    markup.preformatted(f"{HOSTILE}\nsecond"),
    markup.folded(HOSTILE, HOSTILE),
    markup.picture(b"GIF89a", "gif", alt=HOSTILE),
  ]
  seen = check_safe(markup.page(HOSTILE, *body))
  assert [name for name, _ in seen.elements].count("img") == 1
  shown = HOSTILE.replace("\x00", r"\x00").replace("\x1b", r"\x1b").replace("\udce9", r"\udce9")
  assert seen.text.count(shown) == 7
  assert [a["title"] for _, a in seen.elements if "title" in a] == [shown]


def test_what_a_tag_has_made_is_not_escaped_again():
  inner = markup.tag("b", "a < b")
  assert markup.tag("p", inner, " & ", class_="x", stroke_width=2, id=None) == (
    '<p class="x" stroke-width="2"><b>a &lt; b</b> &amp; </p>'
  )


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
@pytest.mark.parametrize("scheme, paper", [("light", "#fff"), ("dark", "#141519")])
def test_a_wide_table_scrolls_by_itself_on_a_phone_and_shows_it(tmp_path, scheme, paper):
  playwright = pytest.importorskip("playwright.sync_api")
  wide = markup.table(["", *"abcdef"], [["loss", *["0.123 of something"] * 6]] * 3)
  narrow = markup.table([], [["loss", "0.1"]])
  (tmp_path / "page.html").write_text(markup.page("runs", wide, narrow, markup.tag("p", "x" * 99)))
  with playwright.sync_playwright() as started:
    browser = started.chromium.launch(
      executable_path=shutil.which("chromium"), args=["--no-sandbox"], headless=True
    )
    phone = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    phone.goto(f"file://{tmp_path}/page.html")
    tables = [phone.locator(".wide").nth(i) for i in range(2)]

    def shadows(table):
      """Whether its left and its right edge are shaded from top to bottom."""
      with Image.open(io.BytesIO(table.screenshot())) as image:
        edges = np.asarray(image.convert("RGB"))[:, [1, -2]]
      same = edges == np.asarray(Image.new("RGB", (1, 1), paper))
      return list(~same.all(-1).any(0))

    assert shadows(tables[0]) == [False, True] and shadows(tables[1]) == [False, False]
    tables[0].evaluate("table => table.scrollLeft = 1e6")
    assert shadows(tables[0]) == [True, False]
    phone.evaluate("scrollTo(1e6, 0)")
    assert phone.evaluate("[scrollX, document.documentElement.scrollWidth]") == [0, 390]
    browser.close()
