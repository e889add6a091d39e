"""Pages: whatever is put into them stays text, and nothing is fetched."""

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
