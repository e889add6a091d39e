"""The page before it opens: what is wrong is known before anything is compiled."""

import socket
import subprocess
import sys

import pytest

from fbjax import errors
from fbjax.app import page
from fbjax.modes import app


@pytest.fixture(autouse=True)
def gradio(monkeypatch):
  """As if Gradio were there, which CI has not."""
  monkeypatch.setattr(page, "check", lambda: None)


def free() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def test_a_port_in_use_is_one_sentence():
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    sentence = rf"cannot listen at 127.0.0.1:{port} \(Address already in use\): give another --port"
    with pytest.raises(errors.UserError, match=sentence):
      app.app(None, None, port=port)


def test_an_address_that_there_is_not_is_one_sentence():
  for address, sentence in (
    ({"host": "192.0.2.1"}, "cannot listen at 192.0.2.1:"),
    ({"port": 70000}, "--port is 70000; expected a whole number from 1 to 65535"),
  ):
    with pytest.raises(errors.UserError, match=sentence):
      app.app(None, None, **({"port": free()} | address))


def test_a_network_that_is_not_there_is_one_sentence(tmp_path):
  (tmp_path / "empty").mkdir()
  for given, sentence in (
    ({"workdir": f"{tmp_path}/empty"}, "empty"),
    ({"workdir": f"{tmp_path}/none"}, "none"),
    ({"workdir": None, "model": f"{tmp_path}/empty"}, "holds no model that --mode=pack wrote"),
    ({"workdir": "runs/x", "model": "zoo/shapes"}, "--model has its own config and weights"),
  ):
    with pytest.raises(errors.UserError, match=sentence):
      app.app(None, port=free(), **given)
  with pytest.raises(errors.UserError, match="--mode=app takes --model or --workdir"):
    app.app({}, None)


def test_without_gradio_it_is_said_what_to_install(monkeypatch):
  monkeypatch.undo()
  monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match='pip install "gradio>=6.31,<7"'):
    app.app(None, None, port=free())


def test_no_page_and_no_mode_imports_gradio():
  """Which takes seconds, and may not be there."""
  program = "import sys; from fbjax import command; sys.exit('gradio' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
