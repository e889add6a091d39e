"""The page as a server, asked without a browser; CI, which has no Gradio, skips this file.

Gradio 6.31 holds Pillow below 13 and brings 20 packages, among them pandas, so it is in no file of
requirements: pip install "gradio>=6.31,<7".
"""

import concurrent.futures
import http.client
import json
import os
import re
import secrets
import socket
import threading
import urllib.parse

import pytest

from fbjax import errors
from fbjax.app import asked, bounds, page, show
from fbjax.modes import app

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

FIELDS = {"prompt": "up", "steps": 2, "guidance": 1, "seed": 0, "frames": 3, "sampler": "sde"}


@pytest.fixture(scope="module")
def address(server):
  opened, address = page.launch(server, "127.0.0.1", app_port())
  yield address
  opened.close(verbose=False)


def app_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def request(address, method, path, body=None, **headers):
  there = http.client.HTTPConnection(urllib.parse.urlparse(address).netloc, timeout=60)
  there.request(
    method, path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
  )
  answer = there.getresponse()
  return answer.status, answer.headers, answer.read().decode(errors="replace")


def job(address, image, two=False, **changes):
  client = gradio_client.Client(address, verbose=False)
  values = (FIELDS | changes).values()
  return client.submit(image, two, *values, *FIELDS.values(), api_name="/sample")


def joined(address, path):
  """What the page says to a request that names a file as its upload; Gradio's client would upload it."""
  given = {"path": path, "meta": {"_type": "gradio.FileData"}}
  config = json.loads(request(address, "GET", "/config")[2])
  index = next(d["id"] for d in config["dependencies"] if d["api_name"] == "sample")
  data = [given, None, False, None, *FIELDS.values(), *FIELDS.values()]
  body = json.dumps({"data": data, "fn_index": index, "session_hash": secrets.token_hex(4)})
  status, _, text = request(
    address, "POST", "/gradio_api/queue/join", body, content_type="application/json"
  )
  assert status == 200, text
  session = json.loads(body)["session_hash"]
  return request(address, "GET", f"/gradio_api/queue/data?session_hash={session}")[2]


def test_a_clip_is_sampled(address, image):
  looks = []
  made = job(address, gradio_client.handle_file(image), steps=3)
  for stage, shelf in made:
    looks.append((stage, shelf))
  stage, shelf = looks[-1]
  assert len(looks) >= 3 and "fb-done" in stage and "--image=cat.png" in stage
  assert shelf.count("fb-card") == 1


def test_settings_side_by_side(address, image):
  stage, shelf = job(address, gradio_client.handle_file(image), two=True, prompt="down").result()
  assert stage.count("fb-done") == shelf.count("fb-card") == 2


def test_a_mistake_is_a_sentence(address, image, tmp_path):
  (tmp_path / "x.png").write_text("no image")
  for given, changes, sentence in (
    (image, {"steps": 10**6}, "steps is 1000000; expected a whole number from 1 to 250"),
    (f"{tmp_path}/x.png", {}, "x.png is not an image of a format that is read"),
  ):
    with pytest.raises(Exception, match=sentence):
      job(address, gradio_client.handle_file(given), **changes).result()


def test_browsers_are_told_to_stay_here(address):
  status, headers, text = request(address, "GET", "/")
  assert status == 200 and headers["content-security-policy"] == bounds.POLICY
  assert "fonts.googleapis.com/css" not in text


@pytest.mark.parametrize(
  "headers",
  [
    {"origin": "http://evil.example"},
    {"sec_fetch_site": "cross-site"},
    {"host": "evil.example", "origin": "http://evil.example"},
  ],
  ids=str,
)
def test_other_websites_change_nothing(address, server, image, headers):
  before = sorted(os.listdir(server.folder))
  body = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\na\r\n--x--\r\n"
  kind = {"content_type": "multipart/form-data; boundary=x"}
  assert request(address, "POST", "/gradio_api/upload", body, **kind, **headers)[0] == 403
  for path in ("queue/join", "call/sample", "call/v2/sample", "run/sample", "cancel", "reset"):
    assert request(address, "POST", f"/gradio_api/{path}", "{}", **headers)[0] == 403
  assert request(address, "GET", "/gradio_api/queue/data?session_hash=x", **headers)[0] == 403
  assert sorted(os.listdir(server.folder)) == before
  assert request(address, "POST", "/gradio_api/upload", body, **kind)[0] == 200


def test_the_gallery_says_how_many_it_keeps(server, monkeypatch):
  monkeypatch.setattr(show, "KEPT", 3)
  told = [block["props"].get("value") for block in page.build(server).config["components"]]
  assert "### The last 3 clips of this session" in told


@pytest.mark.parametrize(
  "data",
  [[], [1, 2], ["x", False, *FIELDS.values(), *FIELDS.values()], [{"path": 1}] * 14, [None] * 99],
  ids=str,
)
def test_wrong_fields_are_refused_in_one_line(address, caplog, capfd, data):
  body, kind = json.dumps({"data": data}), {"content_type": "application/json"}
  status, _, text = request(address, "POST", "/gradio_api/call/sample", body, **kind)
  assert status == 200
  event = json.loads(text)["event_id"]
  told = request(address, "GET", f"/gradio_api/call/sample/{event}")[2]
  assert "event: error" in told and ("not what the page sends" in told or "no image" in told)
  assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text
  assert len(caplog.messages) <= 1


def test_a_route_with_wrong_fields_is_refused_in_one_line(address, caplog, capfd):
  kind = {"content_type": "application/json"}
  for path, body in (
    ("call/nothing", {"data": []}),
    ("call/v2/sample", {"x": 1}),
    ("queue/join", {"data": [], "session_hash": "x", "fn_index": 99}),
  ):
    caplog.clear()
    answer = request(address, "POST", f"/gradio_api/{path}", json.dumps(body), **kind)
    assert answer[0] == 400 and answer[2].startswith("no request of the page: ")
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text
    assert [m[:16] for m in caplog.messages] == ["Refused /gradio_"]


def test_large_requests_are_refused_unread(address):
  length = str(asked.MOST_BYTES + bounds.SLACK + 1)
  assert request(address, "POST", "/gradio_api/upload", content_length=length)[0] == 413
  assert request(address, "POST", "/gradio_api/upload", b"", transfer_encoding="chunked")[0] == 411


@pytest.mark.parametrize("path", ["/etc/passwd", __file__, f"{os.getcwd()}/pyproject.toml"])
def test_no_other_file_is_served_or_read(address, server, path, monkeypatch):
  read = []
  monkeypatch.setattr(asked.video, "read_image", read.append)
  for way in (path, f"{server.folder}/../{path}", urllib.parse.quote(path, safe="")):
    status, _, text = request(address, "GET", f"/gradio_api/file={way}")
    assert status in (403, 404) and "root:" not in text and "[project]" not in text
  told = joined(address, path)
  assert "process_completed" in told and '"success":false' in told.replace(" ", "")
  assert not read


def test_no_address_is_fetched(address, monkeypatch):
  from gradio import processing_utils

  fetched = []
  monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetched.append)
  told = joined(address, "https://example.org/x.png")
  assert "process_completed" in told and '"success":false' in told.replace(" ", "")
  assert not fetched


def test_who_comes_when_it_is_full_is_told(server, image, monkeypatch):
  free = threading.Event()
  clip = server.steps.clip

  def held(*args):
    free.wait(60)
    yield from clip(*args)

  monkeypatch.setattr(page, "WAITING", 1)
  monkeypatch.setattr(server.steps, "clip", held)
  opened, address = page.launch(server, "127.0.0.1", app_port())
  try:
    jobs = [job(address, gradio_client.handle_file(image)) for _ in range(3)]
    # One is held, one waits, and the third hears of it at once.
    concurrent.futures.wait(jobs, 60, concurrent.futures.FIRST_COMPLETED)
    free.set()
    told = []
    for each in jobs:
      try:
        told.append(each.result(timeout=60)[0])
      except Exception as error:
        told.append(str(error))
    assert sum("fb-done" in x for x in told) >= 1
    assert any(re.search("queue is full", x, re.IGNORECASE) for x in told), told
  finally:
    free.set()
    opened.close(verbose=False)


def test_a_port_that_is_taken_is_one_sentence(address):
  port = urllib.parse.urlparse(address).port
  with pytest.raises(errors.UserError, match=f"cannot listen at 127.0.0.1:{port} .*--port"):
    app.check_free("127.0.0.1", port)
