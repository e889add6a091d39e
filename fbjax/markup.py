"""Self-contained HTML pages: no scripts, no external resources, light or dark as the system is.

Whatever is put into an element is escaped, unless `tag` or `Html` made it.
"""

import base64
import html
from collections.abc import Iterable

from fbjax.data import text

# Of the browser, so that a mistake in a page cannot run or fetch anything either.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
VOID = ("meta", "img", "br")
STYLE = """
:root { color-scheme: light dark; --ink: #1c1d21; --paper: #fff; --faint: #6b7080; --line: #e3e5ea;
  --card: #f7f8fa; --c0: #1f6fd6; --c1: #d1495b; --c2: #2e8b57; --c3: #b5730b; --c4: #7a4fbf; --c5: #0b8fa3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --paper: #141519; --faint: #9aa0ae;
  --line: #2e3038; --card: #1c1e24; --c0: #6aa9ff; --c1: #ff7d8c; --c2: #5fcf92; --c3: #f0b04f; --c4: #b795f5;
  --c5: #4fcfe0; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p { margin: .4rem 0; }
.faint { color: var(--faint); }
.wide { overflow-x: auto; background: linear-gradient(to right, var(--paper) 40%, transparent) left / 3rem 100% local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% local,
  linear-gradient(to right, #8888, transparent) left / .8rem 100%,
  linear-gradient(to left, #8888, transparent) right / .8rem 100%; background-repeat: no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; font-weight: inherit;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
thead th { color: var(--faint); }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; background: var(--card); padding: .8rem; border-radius: .4rem; }
figure { margin: .5rem 0; }
figcaption { font-size: 13px; color: var(--faint); }
img { max-width: 100%; height: auto; }
summary { cursor: pointer; }
"""


class Html(str):
  """Text that is HTML already."""

  __slots__ = ()


def escape(x: object) -> Html:
  """Anything as one line of text; control characters are spelt out."""
  return x if isinstance(x, Html) else Html(html.escape(text.printable(str(x))))


def tag(name: str, /, *inside: object, **attributes: object) -> Html:
  """An element: `tag("td", "a < b", class_="wide")`.

  Args:
    name: of the element.
    inside: its content, concatenated.
    attributes: a trailing `_` is dropped, others become hyphens; attributes of None are left out.
  """
  told = "".join(
    f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
    for key, value in attributes.items()
    if value is not None
  )
  opened = f"<{name}{told}>"
  return Html(opened if name in VOID else f"{opened}{join(inside)}</{name}>")


def join(parts: Iterable[object]) -> Html:
  """The parts, escaped where they are not `Html`, concatenated."""
  return Html("".join(map(escape, parts)))


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> Html:
  """A table, which scrolls by itself where the page is narrower; the first cell of a row names it.

  A side at which more of it is hidden has a shadow, which paper that moves along covers at the end.
  """
  head = list(head)
  top = [tag("thead", tag("tr", *(tag("th", cell) for cell in head)))] if head else []
  body = [
    tag("tr", *(tag("td" if i else "th", cell) for i, cell in enumerate(row))) for row in rows
  ]
  return tag("div", tag("table", *top, tag("tbody", *body)), class_="wide")


def preformatted(lines: str) -> Html:
  """Text whose lines stay as they are."""
  return tag("pre", Html("\n".join(escape(line) for line in lines.splitlines())))


def folded(title: object, *inside: object) -> Html:
  """Collapsed content under a title, which opens on a click."""
  return tag("details", tag("summary", title), *inside)


def picture(data: bytes, kind: str, **attributes: object) -> Html:
  """An image in the page itself; `kind` is gif, jpeg or png."""
  # Of letters, digits, + and /: there is nothing to escape, which takes its time with megabytes.
  source = Html(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
  return tag("img", src=source, **({"alt": ""} | attributes))


def page(title: object, *body: object, style: str = "") -> str:
  """A whole document in ASCII; other characters become character references."""
  head = [
    tag("meta", charset="utf-8"),
    tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
    tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    tag("title", title),
    tag("style", Html(STYLE + style)),
  ]
  document = f"<!doctype html>{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"
  return document.encode("ascii", "xmlcharrefreplace").decode()
