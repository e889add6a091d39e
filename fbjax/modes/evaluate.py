"""--mode=evaluate: measures a trained run, a packed model, or a folder of videos; compares two cards.

clips of the held-out split -> samples from their first frames -> numbers -> card

In several processes each samples and measures a stretch of the clips; what they found is put together in
the order of the clips, so that the card is the one that a single process writes.

The numbers that need no network are always there. Those of `metrics` are, where the weights of their
networks are in $FBJAX_METRICS (~/.cache/fbjax/metrics); otherwise the log says how to get them.
"""

import contextlib
import datetime
import hashlib
import itertools
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fbjax import build, checkpoint, checks, digest, errors, processes, reports, sampling, sharding
from fbjax import pipe as pipes
from fbjax.data import folder as folders
from fbjax.data import pipeline, sources, video
from fbjax.evaluation import card as cards
from fbjax.evaluation import fvd, measures, metrics
from fbjax.modes import sample

logger = logging.getLogger(__name__)

CLIPS = 256  # unless the protocol says how many
BATCH = 16  # clips of a folder at a time
VERSION = 2  # of what the measures mean; cards of others are not compared
RESIZE = "until it covers, antialiased bilinear, centre"


# Made clips, true clips, captions of either; each may be None.
Pair = tuple[
  measures.Clips | None, measures.Clips | None, Sequence[str] | None, Sequence[str] | None
]


class Subject(NamedTuple):
  """Clips to measure, and what their card records.

  batches: arguments of `measures.Measures.add`. facts: what metrics need to know of the clips.
  protocol: what makes cards comparable. told: of the subject itself, such as its weights' digest.
  """

  batches: Iterator[Pair]
  facts: metrics.Facts
  protocol: dict[str, Any]
  told: dict[str, Any]


def evaluate(
  config: dict[str, Any] | None,
  workdir: str | None,
  *,
  model: str | None = None,
  made: str | None = None,
  truth: str | None = None,
  compare: Sequence[str] = (),
  out: str | None = None,
  clips: int | None = None,
  fvd_protocol: str = "styleganv",
  step: int | None = None,
  ema: bool = True,
  seed: int = 0,
  **options: Any,
) -> dict[str, Any] | None:
  """Measures clips, prints a table, and writes a card.

  Args:
    config: None takes the run's own; with `made`, the true clips are those its data holds out.
    workdir, model, step, ema: whose samples are measured, as `sample.sample`.
    made: a folder of videos instead, made by anything, all of one length and size.
    truth: a folder of true videos to measure them by; with the same names as `made` they are pairs.
    compare: two cards, of which a table is printed; nothing is measured.
    out: file of the card; None writes that of a run to evaluation/<step>.json in its workdir, and
      those of further settings to <step>-2.json and so on.
    clips: how many; None is what the protocol was published with, or at most `CLIPS`.
    fvd_protocol: one of `fvd.PROTOCOLS`.
    seed: of the samples' noise.
    options: keys of `config.sampling`, such as steps and guidance; None leaves the config's.

  Returns:
    The card; None where two were compared.

  Raises:
    UserError: for what cannot be measured, such as fewer clips than are asked for.
  """
  if compare:
    if jax.process_index() == 0:
      print(compared(compare))
    return None
  protocol = fvd.protocol(fvd_protocol)
  if clips is not None:
    checks.whole("--clips", clips, least=2)
  if made:
    sampled = any(x is not None for x in (workdir, model, step, *options.values()))
    if sampled or seed or not ema:
      raise errors.UserError(
        "--made is a folder of videos that are there: leave out what says how to sample"
      )
    with processes.together():
      subject = of_folder(made, truth, config, clips or protocol.clips)
    mesh = sharding.make_mesh()
  else:
    if truth:
      raise errors.UserError("--truth is what --made=<folder of videos> is measured by: give both")
    pipe = opened(config, workdir, model, step, ema)
    subject = of_model(pipe, clips, protocol.clips, seed, options)
    mesh = pipe.mesh
  with processes.together():
    looks, found = metrics.opened(subject.facts, fvd_protocol, sharding.local(mesh))
  under = {"version": VERSION, "resize": RESIZE, "metrics": found} | subject.protocol
  check_same(under | subject.told)
  measured = measures.Measures(paired=subject.facts.paired, metrics=looks)
  for batch in subject.batches:
    measured.add(*batch)
  measured.gather()
  card = cards.make(under, subject.told, measured.numbers(), made_by())
  if jax.process_index() == 0:
    print(cards.table(card))
    if workdir and not out:
      out = cards.place(f"{workdir}/evaluation/{card['subject']['step']:07}", card)
    if out:
      cards.write(out, card)
      logger.info("Wrote %s.", out)
    if workdir:
      reports.leave(workdir)
  return card


def compared(files: Sequence[str]) -> str:
  """The table of two cards."""
  if len(files) != 2:
    raise errors.UserError("--compare takes two cards: --compare=a.json,b.json")
  stems = [pathlib.Path(file).stem for file in files]
  names = stems if len(set(stems)) == 2 else files
  return cards.compare(*map(cards.read, files), names=tuple(names))


def made_by() -> dict[str, str]:
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return {
    "code": digest.of_code(),
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
    "time": now,
  }


def how_many(there: int, asked: int | None, published: int | None) -> int:
  """Clips to measure, of those that are there.

  Raises:
    UserError: when more are asked for, by the user or by the protocol.
  """
  wanted = asked or published or min(CLIPS, there)
  if wanted > there:
    who = "--clips" if asked else "the protocol (--fvd)"
    raise errors.UserError(f"{who} asks for {wanted:,} clips, and there are {there:,}")
  return wanted


def check_same(told: dict[str, Any]) -> None:
  """Raises a UserError unless all processes measure the same; names what differs."""
  first, *others = processes.gather(told)
  for number, other in enumerate(others, 1):
    for field in sorted(first.keys() | other.keys()):
      one, two = first.get(field), other.get(field)
      if one != two:
        raise errors.UserError(
          f"the processes do not measure the same: {field} is {one!r} in process 0 and {two!r} in process "
          f"{number}. Give all of them the same command, data and weights"
        )


def some_at_a_time(count: int, size: int) -> list[range]:
  """Ranges of at most `size` of this process's clips.

  Every process has as many ranges; its last one may be empty.
  """
  own = processes.share(count)
  most = -(-count // jax.process_count())
  return [own[first : first + size] for first in range(0, most, size)]


# --- samples of a network


def opened(
  config: dict[str, Any] | None, workdir: str | None, model: str | None, step: int | None, ema: bool
) -> pipes.Pipe:
  """The pipe of a run, a packed model, or ported weights; all processes take the same step."""
  with processes.together():
    config = sample.resolve(config, workdir, model)
    if workdir and step is None:
      step = max(checkpoint.steps(workdir))
  step = processes.gather(step)[0]  # a training may go on there
  with processes.together():
    return pipes.Pipe(config, workdir, step=step, ema=ema)


def of_model(
  pipe: pipes.Pipe,
  asked: int | None,
  published: int | None,
  seed: int,
  options: dict[str, Any],
) -> Subject:
  """Samples from the first frames and conditions of held-out clips, paired with these."""
  config, mesh = pipe.config, pipe.mesh
  with processes.together():
    spec = build.sampling_options(config, **options)
    form = build.make_formulation(config)
    make = build.make_sample(config, pipe.system, form, mesh, spec, gathered=False)
    source = build.make_source(config, "val")
    count = how_many(len(source), asked, published)
  data = config["data"]
  protocol = {
    "source": data["name"],
    "digest": source.digest(),
    "split": "val",
    "strides": data.get("strides", 1),
    "frames": data["frames"],
    "size": data["size"],
    "clips": count,
  }
  params, frozen = pipe.weights
  told = spec._asdict() | {"seed": seed, "step": pipe.step, "ema": pipe.ema}
  told = {k: v for k, v in told.items() if k not in ("batch_size", "fps", "images")}
  told |= {
    "system": config["system"]["name"],
    "weights": digest.of_json(digest.of_tree({"p": params, "f": frozen})),
  }
  captions = [source.caption(row) for row in range(count)]

  @jax.jit
  def keys(numbers: jax.Array) -> jax.Array:
    return sampling.clip_keys(seed, numbers)

  def read(rows: list[int]) -> pipeline.Batch:
    batch = pipeline.read(source, pipe.tokenizer, rows)
    for row in np.flatnonzero(batch["replaced"]):
      raise errors.UserError(
        f"clip {rows[row]} of the held-out ones cannot be read, and another in its place would be "
        f"another protocol: {batch['errors'][row].decode().splitlines()[0]}"
      )
    return {name: batch[name] for name in ("video", "tokens", "stride", "label")}

  def batches() -> Iterator[Pair]:
    began = time.perf_counter()
    here = len(mesh.local_devices)
    size = -(-spec.batch_size // here) * here
    for own in some_at_a_time(count, size):
      rows = [*own] or [0]  # one that has no more clips samples along, for the others
      with processes.together():
        batch = read(rows)
      full = np.resize(np.arange(len(rows)), size)
      inputs = {name: x[full] for name, x in batch.items()}
      there = sharding.put_batch(inputs | {"number": np.array(rows, np.uint32)[full]}, mesh)
      with processes.telling_of_lost_peers():
        made = make(params, frozen, there, keys(there.pop("number")))
        clips, finite = (sharding.own_rows(x)[: len(own)] for x in made)
      with processes.together():
        for row in np.flatnonzero(~finite):
          raise errors.UserError(f"the sample of clip {own[row]}: {pipes.NOT_FINITE}")
      if len(own):
        words = [captions[row] for row in own] if facts.captions else None
        yield clips, batch["video"], words, words
        done = own.stop - processes.share(count).start
        seconds = time.perf_counter() - began
        logger.info(
          "%d of %d clips, %.2f clips/s.", done, len(processes.share(count)), done / seconds
        )

  size = build.clip_size(config)[1]
  facts = metrics.Facts(count, data["frames"], size, paired=True, captions=known(captions))
  return Subject(batches(), facts, protocol, told)


def known(captions: Sequence[str]) -> str | None:
  """A digest of captions; None where one is empty."""
  return digest.of_json(list(captions)) if all(captions) else None


# --- videos that are there


def of_folder(
  made: str, truth: str | None, config: dict[str, Any] | None, asked: int | None
) -> Subject:
  """Videos of one length and size, and the true ones of another folder or of a config's data."""
  for flag, folder in (("made", made), ("truth", truth)):
    if folder and not os.path.isdir(folder):
      raise errors.UserError(f"--{flag}={folder}: there is no such folder")
  files = folders.video_files(made)
  first = video.read_all(files[0])
  frames, size = len(first), first.shape[1:3]
  count = asked or len(files)
  if count > len(files):
    raise errors.UserError(f"{made} holds {len(files):,} videos, and {count:,} are asked for")
  files, paired = files[:count], False
  protocol = {"frames": frames, "size": list(size), "clips": count}
  if truth:
    true_files = folders.video_files(truth)
    stems = {pathlib.Path(file).relative_to(truth).with_suffix(""): file for file in true_files}
    own = [pathlib.Path(file).relative_to(made).with_suffix("") for file in files]
    alone = [file for file, stem in zip(files, own, strict=True) if stem not in stems]
    paired = not alone
    if 0 < len(alone) < len(own):
      raise errors.UserError(
        f"{len(own) - len(alone)} of the {len(own)} videos of {made} have one of the same name in {truth}, and "
        f"{alone[0]} has none: give each its pair, or other names to all"
      )
    true_files = [stems[stem] for stem in own] if paired else true_files
    protocol |= {"source": "folder", "digest": digest_of_files(true_files)}
    source = sources.Videos(
      truth,
      [sources.Entry(os.path.relpath(file, truth), "") for file in true_files],
      frames=frames,
      size=size,
      strides=1,
    )
    source.choose = video.the_first  # what a clip is told is the first frame of its truth
    tell_sizes(source, made, size)
    protocol |= {"paired": paired, "window": "the first frames"}
  elif config is not None:
    own = build.clip_size(config)
    if own != (frames, size):
      raise errors.UserError(
        f"{files[0]} has {frames} frames of {size[0]}x{size[1]}, and config.data {own[0]} of "
        f"{own[1][0]}x{own[1][1]}: set --config.data.frames and .size to those of the videos"
      )
    source = build.make_source(config, "val")
    protocol |= {"source": config["data"]["name"], "digest": source.digest(), "split": "val"}
    protocol |= {"strides": config["data"].get("strides", 1)}
  else:
    source = None
  true_count = 0 if source is None else count if paired else how_many(len(source), asked, None)
  captions = folders.told_captions(made, files)
  if truth:
    true_captions = folders.told_captions(truth, true_files[:true_count])
  else:
    true_captions = [source.caption(row) for row in range(true_count)]
  if paired:
    captions = [a or b for a, b in zip(captions, true_captions, strict=True)]
    true_captions = captions
  if source is not None and not paired:
    logger.info("The videos of %s have no pairs: psnr and ssim are left out.", made)

  def batches() -> Iterator[Pair]:
    own = (some_at_a_time(n, BATCH) for n in (count, true_count))
    for made_rows, true_rows in itertools.zip_longest(*own, fillvalue=()):
      with processes.together():
        mine = [whole(files[i], frames, size) for i in made_rows]
        true = [source.read(i, np.random.default_rng((0, i))).video for i in true_rows]
      yield (
        np.stack(mine) if mine else None,
        np.stack(true) if true else None,
        [captions[i] for i in made_rows] if all(captions) else None,
        [true_captions[i] for i in true_rows] if all(true_captions) else None,
      )

  facts = metrics.Facts(count, frames, size, paired=paired, captions=known(captions))
  return Subject(batches(), facts, protocol, {"videos": digest_of_files(files)})


def tell_sizes(source: sources.Videos, made: str, size: tuple[int, int]) -> None:
  """Logs how many true videos are of another (height, width), and what is done with these."""
  others = {}
  for index in range(len(source)):
    with contextlib.suppress(video.BrokenClip):  # which is raised when it is read
      others[source.name(index)] = source.shape(index)[1:]
  others = {name: found for name, found in others.items() if tuple(found) != size}
  if others:
    name, found = next(iter(others.items()))
    logger.info(
      "%d of the %d videos of %s are not of the %dx%d of those of %s, such as %s of %dx%d: they are scaled to "
      "cover it, and what stands out on two sides is cut off.",
      *(len(others), len(source), source.root, *size, made, name, *found),
    )


def whole(file: str, frames: int, size: tuple[int, int]) -> np.ndarray:
  """All frames of a video.

  Raises:
    UserError: when it has not as many as the others, or of another size.
  """
  clip = video.read_all(file)
  if clip.shape[:3] != (frames, *size):
    t, h, w = clip.shape[:3]
    raise errors.UserError(
      f"{file} has {t} frames of {h}x{w}, and the first video has {frames} of {size[0]}x{size[1]}: "
      "all must be alike"
    )
  return clip


def digest_of_files(files: Sequence[str]) -> str:
  """16 hexadecimal digits that stand for the content of files in their order."""
  found = hashlib.sha256()
  for file in files:
    found.update(hashlib.sha256(pathlib.Path(file).read_bytes()).digest())
  return found.hexdigest()[:16]
