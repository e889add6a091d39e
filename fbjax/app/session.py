"""Handles requests for clips: from the fields of a request to the HTML that shows its clips."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fbjax import errors, markup
from fbjax import pipe as pipes
from fbjax.app import asked, show, stepping

SMALL = 200  # pixels of a clip's width below which they are shown as squares


class Server(NamedTuple):
  """What all sessions share."""

  pipe: pipes.Pipe
  ways: asked.Ways
  steps: stepping.Stepping
  source: Mapping[str, Any]  # flags that name the network
  folder: str  # the only one that is read from and written to


class Shown(NamedTuple):
  """What a session sees."""

  stage: str  # the clips that were asked for last
  gallery: list[show.Made]


def serve(pipe: pipes.Pipe, source: Mapping[str, Any], folder: str) -> Server:
  """Reads the weights and compiles what the first clip needs.

  Raises:
    UserError: where the network makes no clip with the settings of its config.
  """
  server = Server(pipe, asked.ways(pipe), stepping.Stepping(pipe), source, folder)
  grey = np.full((*server.ways.size, 3), 128, np.uint8)
  given = asked.settings(pipe, server.ways, asked.Asked(), grey)
  # What is decoded is the first look at a clip, and all looks are made alike.
  next(server.steps.clip(grey, "a red circle moves to the left", given))
  return server


def answer(
  server: Server,
  image: Any,
  last: Any,
  fields: Sequence[Mapping[str, Any]],
  gallery: Sequence[show.Made],
) -> Iterator[Shown]:
  """Makes a clip for each of the settings, and shows them side by side while they are made.

  Args:
    server: whose network.
    image, last: uploads, as Gradio describes them.
    fields: of each of the settings, as the request has them.
    gallery: of the session so far.

  Raises:
    UserError: for invalid requests, before anything is computed.
  """
  pictures = [
    asked.picture(each, server.folder) for each in (image, last if server.ways.last else None)
  ]
  first, end = pictures
  if first is None:
    raise errors.UserError("there is no image: drop one, which the clip begins with")
  if server.ways.last and end is None:
    raise errors.UserError("this network goes from a first to a last frame: drop that one too")
  clips = [asked.read(each, server.ways) for each in fields]
  ending = None if end is None else end.image
  told = [asked.settings(server.pipe, server.ways, clip, ending) for clip in clips]
  stages, kept = [markup.Html()] * len(clips), list(gallery)
  for i, (clip, settings) in enumerate(zip(clips, told, strict=True)):
    place = f"-{'ab'[i]}" if len(clips) > 1 else ""
    for part, made in _one(server, clip, settings, [p for p in pictures if p is not None], place):
      stages[i] = part
      kept = [*kept, made][-show.KEPT :] if made else kept
      yield Shown(show.beside(stages), kept)


def _one(
  server: Server,
  clip: asked.Asked,
  settings: pipes.Settings,
  pictures: Sequence[asked.Picture],
  place: str,
) -> Iterator[tuple[markup.Html, show.Made | None]]:
  """Parts of the stage of one clip, and in the end the clip itself."""
  image, fps = pipes.frame(pictures[0].image, settings.size), settings.spec.fps
  is_small = settings.size[1] < SMALL
  ready = server.steps.is_ready(settings)
  begins = "Begins." if ready else "Compiles a program for these settings, once."
  began, looks, captions, seen = time.monotonic(), [], [], show.moving(image[None], fps)
  yield show.growing(seen, is_small, 0, 1, begins), None
  for look in server.steps.clip(image, clip.prompt, settings):
    told = f"evaluation {look.row} of {look.rows}"
    if look.clip is not None:
      looks.append(look.clip)
      captions.append(told)
      seen = show.moving(look.clip, fps)
    if not look.finite:
      raise errors.UserError(pipes.NOT_FINITE)
    if look.row < look.rows:
      yield show.growing(seen, is_small, look.row, look.rows, told), None
  took = f"{look.rows} evaluation{'s' * (look.rows > 1)}, {time.monotonic() - began:.1f} s"
  names = [picture.name for picture in pictures]
  stem = f"{names[0].rpartition('.')[0] or names[0]}-{clip.seed}{place}"
  made = show.Made(
    clip=seen,
    mp4=show.mp4(looks[-1], fps, server.folder),
    gif=show.gif(looks[-1], fps, server.folder),
    name=stem,
    text=", ".join(filter(None, [clip.prompt, *_differs(clip)])) or names[0],
    is_small=is_small,
  )
  sheet = show.png(show.sheet(looks, captions))
  notes = [picture.note for picture in pictures]
  if server.ways.prompt:
    notes.append(pipes.unheard(server.pipe.config, server.pipe.tokenizer, clip.prompt))
  command = asked.command(server.source, clip, *names, out=f"{stem}.mp4")
  yield show.done(made, sheet, took, command, notes), made


def _differs(clip: asked.Asked) -> list[str]:
  """The settings of a clip that are not the config's, in words."""
  rest = {name: x for name, x in clip._asdict().items() if name != "prompt" and x is not None}
  return [f"{name} {value}" for name, value in rest.items()]
