"""The metrics that are computed with networks: what each needs, and how it is made.

fvd, fvd_infinite   Fréchet distance of clips, see `fvd`; extrapolated to infinitely many clips
fid, fid_infinite   Fréchet distance of frames, see `fid`; extrapolated likewise
is                  inception score, see `inception_score`
clipsim             similarity of frames and captions, see `clipsim`
lpips               perceptual distance of frames to the true ones, see `lpips`
pic                 similarity of frames and the given image, see `pic`
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from fbjax.data import tokenizers
from fbjax.evaluation import (
  clipsim,
  fid,
  frechet,
  fvd,
  inception_score,
  lpips,
  networks,
  pic,
)
from fbjax.evaluation.measures import Batch, Metric
from fbjax.evaluation.numbers import Number, mean

logger = logging.getLogger(__name__)

Params = dict[str, Any]
# What CLIP's tokenizer reads, beside the weights of the networks.
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


class Facts(NamedTuple):
  """What is known of the clips before they are generated or read.

  clips: how many. frames, size: of each, size as (height, width). paired: whether each has its true
  clip. captions: a digest of their captions; None where one has none.
  """

  clips: int
  frames: int
  size: tuple[int, int]
  paired: bool = False
  captions: str | None = None


class Kind(NamedTuple):
  """A metric whose network is not loaded yet.

  network: see `networks`. lacks: what the clips lack for this metric; None where nothing. make:
  makes the metric from the network's weights. protocol: settings, for the card.
  """

  network: str
  lacks: str | None
  make: Callable[[Params, jax.sharding.Mesh], Metric]
  protocol: dict[str, Any]


def kinds(facts: Facts, protocol: str) -> dict[str, Kind]:
  """All measures of such clips; `protocol` is one of `fvd.PROTOCOLS`."""
  c3d = inception_score
  long_enough = f"clips of {fvd.LEAST} frames or more"
  return {
    "fvd": Kind(
      "i3d",
      lacking((facts.frames >= fvd.LEAST, long_enough), (facts.clips > 1, "2 clips or more")),
      functools.partial(_fvd, protocol=fvd.protocol(protocol)),
      {"protocol": protocol},
    ),
    "fid": Kind("inception", None, _fid, {"frames": "all"}),
    "is": Kind(
      "c3d",
      lacking(
        (facts.frames == c3d.FRAMES, f"clips of {c3d.FRAMES} frames"),
        (facts.clips >= c3d.LEAST, f"{c3d.LEAST} clips or more"),
      ),
      _inception_score,
      {"splits": c3d.SPLITS, "seed": c3d.SEED},
    ),
    "clipsim": Kind(
      "clip_b32",
      lacking(
        (facts.captions is not None, "a caption for each clip"),
        (os.path.isfile(vocabulary()), f"{vocabulary()}, which github.com/openai/CLIP has"),
      ),
      _clipsim,
      {"frames": "all", "captions": facts.captions},
    ),
    "lpips": Kind(
      "lpips",
      lacking(
        (facts.paired, "clips with their truth"),
        (facts.frames > 1, "clips of 2 frames or more"),
        (min(facts.size) >= lpips.LEAST, f"frames of {lpips.LEAST} pixels or more"),
      ),
      _lpips,
      {"version": "0.1", "frames": "behind the first"},
    ),
    "pic": Kind(
      "dreamsim",
      lacking((facts.paired, "clips with their truth")),
      _pic,
      {"frames": "all"},
    ),
  }


def lacking(*needs: tuple[bool, str]) -> str | None:
  """The first thing that is needed and not there."""
  return next((what for there, what in needs if not there), None)


def vocabulary() -> str:
  """Where CLIP's vocabulary lies."""
  return networks.folder(VOCABULARY)


def opened(
  facts: Facts, protocol: str, mesh: jax.sharding.Mesh
) -> tuple[dict[str, Metric], dict[str, dict[str, Any]]]:
  """Loads the metrics that clips and weights allow; returns them and their protocols, by name.

  The log says what the others lack.

  Args:
    facts: what is known of the clips.
    protocol: one of `fvd.PROTOCOLS`.
    mesh: over which clips are spread.

  Raises:
    UserError: for weights that are damaged.
  """
  found, under = {}, {}
  for name, kind in kinds(facts, protocol).items():
    if kind.lacks is not None:
      logger.info("No %s: it needs %s.", name, kind.lacks)
    elif not networks.is_there(kind.network):
      logger.info("No %s: %s.", name, networks.how_to_get(kind.network))
    else:
      params, digest = networks.read(kind.network, mesh)
      found[name] = kind.make(params, mesh)
      under[name] = kind.protocol | {kind.network: digest}
  return found, under


# --- how each is made


def _fvd(params: Params, mesh: jax.sharding.Mesh, protocol: fvd.Protocol) -> Metric:
  run = networks.i3d_logits(params, protocol, mesh)
  distances = functools.partial(distance, "fvd", unbiased=protocol.unbiased)
  return Metric(lambda batch: run(batch.clips), distances)


def _fid(params: Params, mesh: jax.sharding.Mesh) -> Metric:
  run = networks.spread("inception", fid.features, params, mesh)
  # Decompositions of 2,048 dimensions take seconds each.
  distances = functools.partial(distance, "fid", unbiased=True, draws=10, draws_of_size=2)
  return Metric(lambda batch: run(batch.clips), distances)


def _inception_score(params: Params, mesh: jax.sharding.Mesh) -> Metric:
  run = networks.spread("c3d", inception_score.logits, params, mesh)
  return Metric(lambda batch: run(batch.clips), lambda own, _: {"is": inception_score.score(own)})


def _clipsim(params: Params, mesh: jax.sharding.Mesh) -> Metric:
  run = networks.spread("clip_b32", clipsim.similarity, params, mesh)
  tokenize = tokenizers.CLIP(vocabulary())

  def of(batch: Batch) -> Float[np.ndarray, " n"] | None:
    return None if batch.captions is None else run(batch.clips, tokenize(list(batch.captions)))

  return Metric(of, lambda own, _: {"clipsim": mean(own)})


def _lpips(params: Params, mesh: jax.sharding.Mesh) -> Metric:
  run = networks.spread("lpips", lpips.distance, params, mesh)

  def of(batch: Batch) -> Float[np.ndarray, " n"] | None:
    return None if batch.truth is None else run(batch.clips, batch.truth)

  return Metric(of, lambda own, _: {"lpips": mean(own)})


def _pic(params: Params, mesh: jax.sharding.Mesh) -> Metric:
  run = networks.spread("dreamsim", pic.similarity, params, mesh)

  def of(batch: Batch) -> Float[np.ndarray, " n"] | None:
    return None if batch.given is None else run(batch.clips, batch.given)

  return Metric(of, lambda own, _: {"pic": mean(own)})


def distance(
  name: str,
  own: Float[np.ndarray, "n *k d"],
  truth: Float[np.ndarray, "m *k d"] | None,
  *,
  unbiased: bool,
  draws: int = 20,
  draws_of_size: int = 5,
) -> dict[str, Number]:
  """The Fréchet distance to the truth, and the extrapolated one; {} where there is no truth.

  Of two clips none is extrapolated: all subsets that have a distance have as many.
  """
  if truth is None:
    return {}
  value = frechet.distance(*map(frechet.statistics, (truth, own)), unbiased=unbiased)
  error = frechet.error_bar(truth, own, draws=draws, unbiased=unbiased)
  found = {name: Number(value, error)}
  if min(len(truth), len(own)) < 3:
    return found
  infinite = frechet.of_infinite_samples(truth, own, draws=draws_of_size, unbiased=unbiased)
  return found | {f"{name}_infinite": Number(infinite, error)}
