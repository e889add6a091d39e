"""What the page answers: requests of its own, or of programs of whoever uses it, within bounds.

Any website that is open in a browser of this machine can send requests to localhost, and can read the
answers where its name has been pointed to 127.0.0.1 meanwhile. A browser tells who asks, in Origin and
Sec-Fetch-Site, and whom, in Host; a website cannot change that.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, NamedTuple

from fbjax.app import asked
from fbjax.data import text

logger = logging.getLogger(__name__)

SLACK = 2**20  # bytes of a request beside its image
HERE = ("localhost", "127.0.0.1", "[::1]")

# A browser that keeps to it asks nobody else for fonts, scripts or anything.
POLICY = (
  "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; "
  "frame-ancestors 'self'; base-uri 'self'"
)
# With no-referrer, a browser may call the page's own origin "null".
ANSWERS = (
  (b"content-security-policy", POLICY.encode()),
  (b"referrer-policy", b"same-origin"),
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refusal(NamedTuple):
  """An HTTP status, and the sentence that comes with it."""

  status: int
  told: str


class Bounds:
  """ASGI middleware: refuses foreign and large requests unread, and sets a Content-Security-Policy.

  The policy keeps a browser from loading anything of other origins.

  Attributes:
    app: what is asked otherwise.
    names: the hosts that may be asked for; any, where it is empty.
  """

  def __init__(self, app: Callable[..., Awaitable[None]], host: str):
    self.app = app
    self.names = frozenset((*HERE, host.lower())) if is_local(host) else frozenset()

  async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] not in ("http", "websocket"):
      await self.app(scope, receive, send)
      return
    is_answered = False

    async def told(message: Message) -> None:
      nonlocal is_answered
      if message["type"] == "http.response.start":
        is_answered = True
        message["headers"] = [*message["headers"], *ANSWERS]
      await send(message)

    if refused := refusal(scope, self.names):
      await refuse(scope, told, refused)
      return
    try:
      await self.app(scope, receive, told)
    except Exception as error:
      # Clips are made elsewhere: what fails here is Gradio's reading of what was sent.
      if is_answered or scope.get("method") != "POST":
        raise
      logger.debug("A request failed.", exc_info=True)
      await refuse(scope, told, Refusal(400, f"no request of the page: {one_line(error)}"))


async def refuse(scope: Message, send: Send, refused: Refusal) -> None:
  """Answers with a refusal, and logs it in one line."""
  logger.warning("Refused %s: %s.", text.printable(scope["path"])[:80], refused.told)
  if scope["type"] == "websocket":
    await send({"type": "websocket.close", "code": 1008})
    return
  headers = [(b"content-type", b"text/plain; charset=utf-8")]
  await send({"type": "http.response.start", "status": refused.status, "headers": headers})
  await send({"type": "http.response.body", "body": refused.told.encode()})


def refusal(scope: Message, names: Collection[str]) -> Refusal | None:
  """Why a request is not to be answered, or None.

  Args:
    scope: of ASGI.
    names: the hosts that may be asked for; any, where it is empty.
  """
  # Of ASGI, names are in lower case.
  headers = {name.decode("latin-1"): x.decode("latin-1") for name, x in scope["headers"]}
  host = headers.get("host", "").lower()
  if names and re.sub(r":\d*$", "", host) not in names:
    return Refusal(
      403, "the page is of this machine alone: open it as localhost or 127.0.0.1, or give --host"
    )
  origin = headers.get("origin", f"http://{host}").lower()
  site = headers.get("sec-fetch-site", "none")
  # A link of another website may open the page.
  is_visit = scope.get("method") in ("GET", "HEAD") and scope["path"] == "/"
  if origin not in (f"http://{host}", f"https://{host}") or (
    site not in ("none", "same-origin") and not is_visit
  ):
    return Refusal(
      403, "another website asks for this, and only the page itself may: open the page"
    )
  if "transfer-encoding" in headers:
    return Refusal(411, "an upload has no Content-Length: send its length ahead")
  length, most = headers.get("content-length", "0"), asked.MOST_BYTES + SLACK
  if not (length.isascii() and length.isdigit()) or int(length) > most:
    return Refusal(413, f"the request has more than {most / 2**20:.0f} MiB: send a smaller image")
  return None


def is_local(host: str) -> bool:
  """Whether who listens at an address is reached from its own machine alone."""
  return host.lower() == "localhost" or host.startswith("127.") or host == "::1"


def one_line(error: BaseException) -> str:
  """An error in at most 200 letters."""
  return text.printable(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
