"""The page in a real browser; skipped without Gradio, Playwright or a Chromium of this machine.

pip install "gradio>=6.31,<7" playwright, and Debian's package chromium.
"""

import base64
import http.server
import io
import os
import shutil
import socket
import threading
import time

import av
import pytest

from fbjax.app import page

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium")
SECOND = 1000  # of Playwright's


@pytest.fixture(scope="module")
def address(server):
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  opened, address = page.launch(server, "127.0.0.1", port)
  yield address
  opened.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
  with playwright.sync_playwright() as started:
    opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], headless=True)
    yield opened
    opened.close()


@pytest.fixture
def visit(browser, address):
  """Opens the page for another user; `.asked` are the addresses that it has loaded from."""
  contexts = []

  def visit():
    contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
    user = contexts[-1].new_page()
    user.set_default_timeout(90 * SECOND)
    user.asked = []
    user.on("request", lambda request: user.asked.append(request.url))
    user.goto(address)
    user.get_by_role("button", name="Sample").wait_for()
    return user

  yield visit
  for context in contexts:
    context.close()


def upload(user, file):
  user.locator("input[type=file]").first.set_input_files(file)
  user.get_by_label("First frame").locator("img").or_(
    user.locator(".image-frame img")
  ).first.wait_for()


def sample(user, prompt="up", **numbers):
  user.get_by_label("Prompt").first.fill(prompt)
  for label, number in numbers.items():
    user.get_by_label(label).first.fill(str(number))
    user.get_by_label(label).first.blur()
  user.get_by_role("button", name="Sample").click()


def test_an_image_is_dropped_sampled_played_and_taken_along(visit, image, address):
  user = visit()
  upload(user, image)
  sample(user, Steps=4, Seed=5)
  user.locator("#stage .fb-done").wait_for()
  play = (
    "video => new Promise(done => { video.ontimeupdate = () => video.currentTime > 0 && done(1) })"
  )
  assert user.locator("#stage video").evaluate(play)
  size = "image => [image.naturalWidth, image.naturalHeight]"
  width, height = user.locator("#stage .fb-sheet").evaluate(size)
  assert width >= 3 * 64 and height >= 4 * 64  # a frame a column, an evaluation a row
  assert "--steps=4" in user.locator("#stage pre").inner_text()
  for kind in ("mp4", "gif"):
    link = user.locator("#stage .fb-links a", has_text=kind)
    assert link.get_attribute("download") == f"cat-5.{kind}"
    data = base64.b64decode(link.get_attribute("href").partition(",")[2])
    with av.open(io.BytesIO(data)) as container:
      assert sum(1 for _ in container.decode(video=0)) == 3
  assert user.locator("#shelf .fb-card").count() == 1
  elsewhere = [x for x in user.asked if not x.startswith((address, "data:", "blob:"))]
  assert not elsewhere


def test_a_page_of_another_origin_uploads_nothing(browser, address, server):
  before = sorted(os.listdir(server.folder))
  handler = http.server.BaseHTTPRequestHandler  # whose page of an error is a page
  with (
    http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other,
    browser.new_context() as context,
  ):
    threading.Thread(target=other.serve_forever, daemon=True).start()
    user = context.new_page()
    user.goto(f"http://127.0.0.1:{other.server_port}")
    post = """address => {
      const form = new FormData()
      form.append("files", new Blob(["a"]), "a.png")
      fetch(address, { method: "POST", body: form, mode: "no-cors" })
    }"""
    with user.expect_response("**/upload") as answered:
      user.evaluate(post, f"{address.rstrip('/')}/gradio_api/upload")
    assert answered.value.status == 403
    other.shutdown()
  assert sorted(os.listdir(server.folder)) == before


def test_two_settings_are_seen_side_by_side(visit, image):
  user = visit()
  upload(user, image)
  user.get_by_label("Beside it, other settings").check()
  user.get_by_label("Seed").nth(1).fill("9")
  user.get_by_label("Prompt").nth(1).fill("down")
  sample(user)
  user.locator("#stage .fb-done").nth(1).wait_for()
  left, right = (user.locator("#stage .fb-done").nth(i).bounding_box() for i in range(2))
  assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
  assert "--seed=9" in user.locator("#stage pre").nth(1).inner_text()


def test_a_bad_upload_is_a_sentence_and_the_page_goes_on(visit, image, tmp_path):
  user = visit()
  sample(user)
  user.get_by_text("there is no image: drop one").first.wait_for()
  (tmp_path / "x.png").write_text("no image")
  user.locator("input[type=file]").first.set_input_files(tmp_path / "x.png")
  user.wait_for_timeout(2 * SECOND)
  sample(user)
  user.get_by_text("x.png is not an image of a format that is read").first.wait_for()
  user = visit()
  upload(user, image)
  sample(user)
  user.locator("#stage .fb-done").wait_for()


def test_a_clip_that_is_stopped_is_told_and_the_next_begins(visit, image):
  user = visit()
  upload(user, image)
  sample(user, Steps=200)
  user.get_by_text("of 200").first.wait_for()
  user.get_by_role("button", name="Stop").click()
  user.get_by_text("Stopped: Sample begins anew").wait_for()
  sample(user, Steps=3)
  user.locator("#stage .fb-done").wait_for()


def test_the_second_settings_begin_as_the_first(visit, image):
  user = visit()
  user.get_by_label("Prompt").first.fill("down")
  user.get_by_label("Beside it, other settings").check()
  user.get_by_label("Prompt").nth(1).wait_for()
  user.wait_for_function(
    "[...document.querySelectorAll('textarea')].filter(x => x.value === 'down').length === 2"
  )


def test_two_users_at_once_get_a_clip_each(visit, image):
  users = [visit(), visit()]
  for user in users:
    upload(user, image)
  for seed, user in enumerate(users):
    sample(user, Seed=seed + 1, Steps=6)
  for seed, user in enumerate(users):
    user.locator("#stage .fb-done").wait_for()
    assert f"--seed={seed + 1}" in user.locator("#stage pre").inner_text()
    assert user.locator("#shelf .fb-card").count() == 1


def test_of_a_browser_that_goes_away_nothing_more_is_computed(visit, image, server, monkeypatch):
  rows = []
  clip = server.steps.clip

  def counted(*args):
    for look in clip(*args):
      rows.append(look.row)
      time.sleep(0.1)
      yield look

  monkeypatch.setattr(server.steps, "clip", counted)
  gone, stays = visit(), visit()
  upload(gone, image)
  upload(stays, image)
  sample(gone, Steps=200)
  gone.get_by_text("of 200").first.wait_for()
  gone.context.close()
  sample(stays, Steps=3)
  stays.locator("#stage .fb-done").wait_for()
  assert max(rows) < 200 and rows[-3:] == [1, 2, 3]
