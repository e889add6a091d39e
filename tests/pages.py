"""What must hold of any page, whatever is put into it."""

import html.parser

from fbjax import markup

HOSTILE = (
  '</style></title><script>alert("1")</script><img src=http://a/b onerror="x">\' & \x00\x1b\udce9'
)


class Seen(html.parser.HTMLParser):
  """The elements of a page, with the attributes and the text of each, as a browser has them."""

  def __init__(self, page: str):
    super().__init__()
    self.elements: list[tuple[str, dict[str, str | None]]] = []
    self.text, self.open = "", []
    self.feed(page)
    self.close()

  def handle_starttag(self, name, attributes):
    self.elements.append((name, dict(attributes)))
    if name not in (*markup.VOID, "!doctype"):
      self.open.append(name)

  def handle_endtag(self, name):
    assert self.open.pop() == name

  def handle_data(self, data):
    self.text += data


def check_safe(page: str) -> Seen:
  """Raises unless a page is well formed, runs nothing and fetches nothing."""
  seen = Seen(page)
  assert not seen.open and page.isascii()
  for name, attributes in seen.elements:
    assert name not in ("script", "iframe", "object", "embed", "link", "base", "form")
    assert not [key for key in attributes if key.startswith("on")]
    for key in ("src", "href", "srcset", "data", "action"):
      assert attributes.get(key, "data:").startswith("data:")
    assert "url(" not in attributes.get("style", "")
  policy = next(a for _, a in seen.elements if a.get("http-equiv"))
  assert policy["content"].startswith("default-src 'none'")
  return seen
