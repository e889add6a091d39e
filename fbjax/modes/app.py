"""--mode=app: opens a page in the browser, on which one drops an image and sees it move.

Files that are uploaded lie in a folder of their own until the page is closed. Nothing leaves the machine;
with --host=0.0.0.0 others reach it, and may sample as one does oneself. What other websites ask of it is
refused (`app.bounds`).
"""

import logging
import shutil
import signal
import socket
import tempfile
import threading
from typing import Any

import jax

from fbjax import checks, errors
from fbjax import pipe as pipes
from fbjax.app import page, session
from fbjax.modes import sample

logger = logging.getLogger(__name__)

MODEL = "zoo/shapes"


def app(
  config: dict[str, Any] | None,
  workdir: str | None,
  *,
  model: str | None = None,
  step: int | None = None,
  ema: bool = True,
  host: str = "127.0.0.1",
  port: int = 7860,
) -> None:
  """Serves the page until it is interrupted or told to end.

  Args:
    config: None; the network has its own.
    workdir: of a trained run.
    model: a folder that --mode=pack wrote; without model and workdir, zoo/shapes.
    step, ema: which weights of the run, as `pipe.Pipe`.
    host: the address to listen at.
    port: of the address.

  Raises:
    UserError: for a network that is not there, an address that is taken, or without Gradio.
  """
  if config is not None:
    raise errors.UserError(
      "--mode=app takes --model or --workdir, which have a config: leave it out"
    )
  if jax.process_count() > 1:
    raise errors.UserError(f"--mode=app is one process, and there are {jax.process_count()}")
  page.check()
  check_free(host, port)
  model = model or (None if workdir else MODEL)
  pipe = pipes.Pipe(sample.resolve(None, workdir, model), workdir, step=step, ema=ema)
  chosen = {"model": model, "workdir": workdir, "step": step, "ema": None if ema else False}
  source = {name: value for name, value in chosen.items() if value is not None}
  folder = tempfile.mkdtemp(prefix="fbjax-app-")
  try:
    logger.info("Reads the weights and compiles the programs of a clip.")
    server = session.serve(pipe, source, folder)
    opened, address = page.launch(server, host, port)
    logger.info("The page is at %s until Ctrl-C.", address)
    wait()
    opened.close(verbose=False)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def check_free(host: str, port: int) -> None:
  """Raises a UserError unless one can listen there: known before a model is read."""
  checks.whole("--port", port, 1, 65535)
  try:
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind((host, port))
  except OSError as error:
    raise errors.UserError(
      f"cannot listen at {host}:{port} ({error.strerror or error}): give another --port, or --host"
    ) from None


def wait() -> None:
  """Blocks until Ctrl-C or SIGTERM."""
  asked = threading.Event()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: asked.set())
  asked.wait()
