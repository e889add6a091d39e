"""The page, in Gradio, which is imported when the page is built: it takes seconds, and may not be there."""

import contextlib
import importlib.util
import logging
import os
import typing
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import jax

from fbjax import checks, errors
from fbjax.app import asked, bounds, session, show

logger = logging.getLogger(__name__)

WAITING = 16  # clips that wait for their turn; who comes then is told that it is full
SESSIONS = 64  # whose gallery is kept
HOUR = 3600  # seconds for which an upload, and the gallery of a page that was closed, are kept


def check() -> None:
  """Raises a UserError where there is no Gradio."""
  if importlib.util.find_spec("gradio") is None:
    raise errors.UserError('the page needs another package: pip install "gradio>=6.31,<7"')


def launch(server: session.Server, host: str, port: int) -> tuple[Any, str]:
  """Opens the page.

  Returns:
    Gradio's Blocks, to `close`, and the address.

  Raises:
    UserError: where the address is taken.
  """
  page = build(server)
  try:
    _, address, _ = page.launch(
      server_name=host,
      server_port=port,
      prevent_thread_lock=True,
      quiet=True,
      share=False,
      ssr_mode=False,
      mcp_server=False,
      enable_monitoring=False,
      run_history=False,
      footer_links=[],
      max_file_size=asked.MOST_BYTES,
      state_session_capacity=SESSIONS,
      app_kwargs={"middleware": [(bounds.Bounds, (host,), {})]},
      theme=theme(),
      css=show.STYLE,
    )
  except OSError as error:
    page.close(verbose=False)
    raise errors.UserError(f"cannot open {host}:{port} ({error}): give another --port") from None
  return page, address


def theme() -> Any:
  """Gradio's own, in the fonts of the browser's machine."""
  import gradio

  return gradio.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
  )


def build(server: session.Server) -> Any:
  """The page of a network as Gradio's Blocks, with a field for each setting that it takes."""
  os.environ["GRADIO_TEMP_DIR"] = server.folder  # read as each field is made
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  import gradio

  ways = server.ways
  with gradio.Blocks(
    analytics_enabled=False, title="fbjax", delete_cache=(HOUR, HOUR), fill_width=True
  ) as page:
    gallery = gradio.State([], time_to_live=HOUR)
    named = " ".join(f"{key} {value}" for key, value in server.source.items())
    gradio.Markdown(f"## fbjax\n{_plain(named)}: {_plain(server.pipe.told())}")
    with gradio.Row():
      with gradio.Column(scale=1, min_width=320):
        with gradio.Row():
          image = _image(gradio, "First frame")
          last = _image(gradio, "Last frame") if ways.last else gradio.State(None)
        first = _fields(gradio, ways)
        two = gradio.Checkbox(False, label="Beside it, other settings")
        with gradio.Group(visible=False) as group:
          second = _fields(gradio, ways)
        with gradio.Row():
          go = gradio.Button("Sample", variant="primary")
          stop = gradio.Button("Stop")
      with gradio.Column(scale=2, min_width=320):
        stage = gradio.HTML(_EMPTY, elem_id="stage")
        gradio.Markdown(f"### The last {show.KEPT} clips of this session")
        shelf = gradio.HTML("", elem_id="shelf")

    names = list(first)

    @typing.no_type_check  # a checker's wrapper is no generator function, which Gradio asks for
    def sample(image: Any, last: Any, two: Any, kept: Any, *values: Any) -> Iterator[Any]:
      parts = [values[: len(names)], values[len(names) :]][: 2 if two is True else 1]
      fields = [dict(zip(names, part, strict=True)) for part in parts]
      before = kept
      with _telling(gradio):
        for shown in session.answer(server, image, last, fields, kept):
          new = shown.gallery != before
          before = shown.gallery
          yield (
            shown.stage,
            show.gallery(shown.gallery) if new else gradio.skip(),
            shown.gallery if new else gradio.skip(),
          )

    # `preprocess` would decode an image of any size, before anybody has looked at it.
    event = go.click(
      sample,
      [image, last, two, gallery, *first.values(), *second.values()],
      [stage, shelf, gallery],
      preprocess=False,
      api_name="sample",
      concurrency_limit=1,
      show_progress="minimal",
      show_progress_on=stage,
    )
    # Once the clip is cancelled, or its last look would be shown over this.
    stop.click(None, cancels=[event], api_visibility="private").then(
      lambda: _STOPPED,
      None,
      stage,
      queue=False,
      api_visibility="private",
      show_progress="hidden",
    )
    two.change(
      lambda shown, *values: (gradio.update(visible=shown is True), *values),
      [two, *first.values()],
      [group, *second.values()],
      queue=False,
      preprocess=False,
      api_visibility="private",
      show_progress="hidden",
    )
  for block in page.blocks.values():
    block.async_move_resource_to_block_cache = _local(block.async_move_resource_to_block_cache)
  page.preprocess_data = _understood(gradio, page.preprocess_data)
  return page.queue(max_size=WAITING, api_open=False)


_EMPTY = '<p class="fb-note">Drop an image and press Sample.</p>'
_STOPPED = '<p class="fb-note">Stopped: Sample begins anew.</p>'


def _local(move: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
  """Gradio's way of taking a file, for those of this machine: it would also download an address."""

  async def moved(path: Any) -> Any:
    if path is not None and "://" in str(path):
      raise ValueError("images are not fetched; upload it")
    return await move(path)

  return moved


def _understood(gradio: Any, take: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
  """Gradio's way of taking the fields of a request, of which it would log a traceback where they are wrong."""

  async def taken(*args: Any, **options: Any) -> Any:
    try:
      return await take(*args, **options)
    except Exception as error:
      logger.debug("A request failed.", exc_info=True)
      logger.warning("Refused a request: %s", bounds.one_line(error))
      sentence = "this is not what the page sends: open it anew, and upload the image again"
      raise gradio.Error(sentence, print_exception=False) from None

  return taken


def _image(gradio: Any, label: str) -> Any:
  return gradio.Image(
    label=label, type="filepath", sources=["upload", "clipboard"], height=220, buttons=[]
  )


def _fields(gradio: Any, ways: asked.Ways) -> dict[str, Any]:
  """A field for each setting that the network has; the others are left out of requests too."""
  fields: dict[str, Any] = {}
  if ways.prompt:
    fields["prompt"] = gradio.Textbox(
      label="Prompt",
      placeholder=f"what should happen in the clip, in at most {asked.MOST_LETTERS:,} letters",
      max_length=asked.MOST_LETTERS,
    )
  if ways.label:
    fields["label"] = gradio.Number(
      None, label=f"Class, 0 to {ways.label - 1}; none if empty", precision=0
    )
  with gradio.Row():
    if ways.steps is not None:
      most = max(asked.MOST_STEPS, ways.steps)
      fields["steps"] = gradio.Number(
        ways.steps, label="Steps", precision=0, minimum=1, maximum=most, min_width=80
      )
    if ways.guidance is not None:
      fields["guidance"] = gradio.Number(ways.guidance, label="Guidance", step=0.5, min_width=80)
    if ways.seed:
      fields["seed"] = gradio.Number(
        0, label="Seed", precision=0, minimum=0, maximum=checks.SEED, min_width=80
      )
    most = max(asked.MOST_FRAMES, ways.frames)
    fields["frames"] = gradio.Number(
      ways.frames, label="Frames", precision=0, minimum=1, maximum=most, min_width=80
    )
    if len(ways.samplers) > 1:
      fields["sampler"] = gradio.Dropdown(
        list(ways.samplers), value=ways.sampler, label="Sampler", min_width=100
      )
  return fields


@contextlib.contextmanager
def _telling(gradio: Any) -> Iterator[None]:
  """Turns what the user got wrong into a sentence on the page."""
  try:
    yield
  except errors.UserError as error:
    # The page's fields are called as the flags are.
    raise gradio.Error(_plain(str(error).replace("--", "")), print_exception=False) from None
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise gradio.Error("the device is out of memory: ask for fewer frames") from error


def _plain(text: str) -> str:
  """Text where Markdown and HTML are understood."""
  return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
