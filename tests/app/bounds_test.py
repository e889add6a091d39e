"""Who may ask the page for what, by headers that a browser sends and a website cannot change."""

import asyncio
import logging

import pytest

from fbjax.app import asked, bounds

OWN = "127.0.0.1:7860"
JOIN = "/gradio_api/queue/join"
EVIL = "http://evil.example"


async def answer(scope, receive, send):
  await send({"type": "http.response.start", "status": 200, "headers": []})
  await send({"type": "http.response.body", "body": b"made"})


def ask(method="POST", path=JOIN, at="127.0.0.1", app=answer, kind="http", **headers):
  """The messages that are answered to a request of a page that listens at an address."""
  given = {"host": OWN} | {key.replace("_", "-"): value for key, value in headers.items()}
  pairs = [(key.encode(), value.encode()) for key, value in given.items()]
  scope = {"type": kind, "method": method, "path": path, "headers": pairs}
  sent = []

  async def send(message):
    sent.append(message)

  asyncio.run(bounds.Bounds(app, at)(scope, None, send))
  return sent


def status(*args, **options):
  return ask(*args, **options)[0]["status"]


@pytest.mark.parametrize("path", [JOIN, "/gradio_api/upload", "/gradio_api/call/sample"])
def test_the_page_itself_and_programs_are_answered(path):
  assert status(path=path) == 200  # curl, gradio_client
  assert status(path=path, origin=f"http://{OWN}", sec_fetch_site="same-origin") == 200
  for host in ("localhost:99", "LOCALHOST", "[::1]:7860"):  # through a tunnel, too
    assert status(path=path, host=host, origin=f"http://{host}") == 200
  served = {"at": "0.0.0.0", "host": "gpu7"}
  assert status(path=path, origin="https://gpu7", **served) == 200  # behind what ends TLS


@pytest.mark.parametrize(
  "headers",
  [
    {"origin": EVIL},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:3000"},
    {"origin": "http://localhost:7860"},
    {"origin": f"http://{OWN}.evil.example"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},  # another port of localhost
    {"origin": f"http://{OWN}", "sec_fetch_site": "cross-site"},
  ],
  ids=str,
)
def test_another_website_is_refused(headers):
  for at in ("127.0.0.1", "0.0.0.0"):
    for path in (JOIN, "/gradio_api/upload", "/gradio_api/cancel", "/"):
      assert status(path=path, at=at, **headers) == 403
    assert status("GET", "/gradio_api/queue/data", at=at, **headers) == 403  # server-sent events
    (closed,) = ask(kind="websocket", at=at, **headers)
    assert closed["type"] == "websocket.close"


def test_another_website_may_link_to_the_page():
  assert status("GET", "/", sec_fetch_site="cross-site") == 200
  assert status("GET", "/config", sec_fetch_site="cross-site") == 403


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1.evil.example", "", "192.0.2.1"])
def test_a_name_that_was_pointed_to_this_machine_is_refused(host):
  """To the browser, who asks is then of the page's own origin."""
  same = {"host": host, "origin": f"http://{host}", "sec_fetch_site": "same-origin"}
  for at in ("127.0.0.1", "localhost", "127.0.0.2"):
    assert status("GET", "/", at=at, host=host) == status(at=at, **same) == 403
  assert status(at="127.0.0.2", host="127.0.0.2:7860") == 200
  assert status(at="0.0.0.0", **same) == 200  # whose names nobody knows


def test_what_is_large_is_refused_unread():
  most = asked.MOST_BYTES + bounds.SLACK
  for length, code in ((most, 200), (most + 1, 413), ("x", 413), ("-1", 413), ("²", 413)):
    assert status(content_length=str(length)) == code
  assert status(transfer_encoding="chunked") == 411


def test_all_answers_keep_a_browser_here():
  for headers in ({}, {"origin": EVIL}):
    assert set(bounds.ANSWERS) <= set(ask(**headers)[0]["headers"])


def test_what_is_not_understood_is_refused_in_one_line(caplog):
  async def fails(scope, receive, send):
    raise KeyError("a\nb" + "c" * 1000)

  start, body = ask(app=fails)
  assert start["status"] == 400 and b"KeyError" in body["body"] and len(body["body"]) < 300
  (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
  assert line.getMessage().startswith(f"Refused {JOIN}: no request of the page: KeyError")
  assert "\n" not in line.getMessage() and not line.exc_info
  with pytest.raises(KeyError):  # no fields were sent: it is a fault of ours
    ask("GET", "/", app=fails)


def test_what_fails_in_the_middle_of_an_answer_is_not_answered_twice():
  async def breaks(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ValueError

  with pytest.raises(ValueError):
    ask(app=breaks)
