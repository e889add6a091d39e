"""Trains an arm and scores samples of its checkpoints; what is found is kept in scores.json of the workdir.

A plan is a dict that says

  step     of training; 0 is what the training starts from
  clips    how many held-out ones
  random   whether a random I3D looks too
  and keys of config.sampling: steps, sampler, grid, guidance

Scores: `distance` and `distance_random` are Fréchet distances of the samples from the truth of the same clips,
through the networks of `studies.features`; `error` and `left_behind` are in those of the still image
repeated, `agree` is the share of clips that go where the caption says (`benchmarks.held_out`);
`motion_ratio` and `first_frame_psnr` as in docs/metrics.md.
"""

import functools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from benchmarks import against
from fbjax import build, loading, places, sampling, sharding
from fbjax.data import pipeline
from fbjax.evaluation import frechet, images, motion
from fbjax.modes import train
from studies import features

BATCH = 64
SHOWN = 6  # samples that are kept
Plan = dict[str, Any]


def run(config: dict[str, Any], workdir: str, plans: list[Plan]) -> None:
  """Trains to the end, and scores what was not scored before."""
  if not train.train(config, workdir):
    raise SystemExit("asked to stop")
  for plan in plans:
    if not any(row["plan"] == plan for row in scores(workdir)):
      write(workdir, [*scores(workdir), {"plan": plan} | score(config, workdir, plan)])


def scores(workdir: str) -> list[dict[str, Any]]:
  """What was found of a run so far."""
  file = pathlib.Path(workdir) / "scores.json"
  return json.loads(file.read_text()) if file.exists() else []


def write(workdir: str, rows: list[dict[str, Any]]) -> None:
  with places.written(f"{workdir}/scores.json") as part:
    part.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def score(config: dict[str, Any], workdir: str, plan: Plan) -> dict[str, float]:
  """Scores of one plan."""
  began = time.perf_counter()
  videos = samples(config, workdir, plan)
  seconds = time.perf_counter() - began
  np.save(shown(workdir, plan), videos[:SHOWN])
  found = compared(videos, json.dumps(config, sort_keys=True), plan.get("random", False))
  found |= {"seconds": seconds}
  logging.info("%s: %s", plan, {name: round(x, 4) for name, x in found.items()})
  return found


def shown(workdir: str, plan: Plan) -> pathlib.Path:
  """Where the first samples of a plan are kept, for people to look at."""
  told = "_".join(str(plan[key]) for key in ("step", "steps", "clips") if key in plan)
  eta = plan.get("sampler", {}).get("eta")
  return pathlib.Path(workdir) / f"clips_{told}{'' if eta is None else f'_{eta:g}'}.npy"


def samples(config: dict[str, Any], workdir: str, plan: Plan) -> np.ndarray:
  """Clips from the first frames and captions of held-out ones, always with the same noise."""
  system, mesh, frozen = networks(json.dumps(config, sort_keys=True), workdir)
  params = weights(config, system, mesh, workdir, plan["step"])
  batch, _ = truth(json.dumps(config, sort_keys=True), plan["clips"])
  asked = {k: x for k, x in plan.items() if k not in ("step", "clips", "random")}
  options = build.sampling_options(config, **asked)
  form = build.make_formulation(config)
  sample = build.make_sample(config, system, form, mesh, options)
  inputs = {name: batch[name] for name in ("video", "tokens", "stride", "label")}
  keys = sampling.clip_keys(0, range(plan["clips"]))[None]
  made = list(sampling.generate(sample, params, frozen, inputs, keys=keys, batch_size=BATCH))
  if bad := sum(video is None for video in made):
    raise SystemExit(f"{bad} samples of {workdir} are not finite, {plan}")
  return np.stack(made)


@functools.cache
def networks(spec: str, workdir: str) -> tuple[Any, jax.sharding.Mesh, Any]:
  """The system of a config, the devices, and its frozen weights."""
  config = json.loads(spec)
  system = build.make_system(config, build.make_tokenizer(config))
  mesh = build.make_mesh(config)
  return system, mesh, loading.starting_weights(config, system, mesh, workdir).frozen


def weights(config: Mapping[str, Any], system: Any, mesh: Any, workdir: str, step: int) -> Any:
  """The moving average at a step; at 0 what the training starts from."""
  if step:
    return loading.trained_weights(config, system, mesh, workdir, step=step)[0]
  if start := loading.starting_weights(config, system, mesh).params:
    return start()
  everywhere = sharding.replicated(mesh)
  return jax.jit(system.init, out_shardings=everywhere)(jax.random.key(config["seed"]))


@functools.cache
def truth(spec: str, clips: int) -> tuple[dict[str, np.ndarray], list[Any]]:
  """The first held-out clips, and what is known of them."""
  config = json.loads(spec)
  source = build.make_source(config, "val")
  batch = pipeline.read(source, build.make_tokenizer(config), list(range(clips)))
  return batch, [source.truth(i) for i in range(clips)]


def compared(videos: np.ndarray, spec: str, random: bool) -> dict[str, float]:
  """Scores of samples against the truth of the first held-out clips of a config."""
  batch, truths = truth(spec, len(videos))
  there = batch["video"]
  found = {"distance": distance(videos, spec, random=False)}
  if random:
    found["distance_random"] = distance(videos, spec, random=True)
  still = against.mean_error(there[:, :1], there)
  found["error"] = float(against.mean_error(videos, there) / still)
  known = against.of_shapes(videos, there, truths)
  found |= {name: known[name] for name in ("left_behind", "agree") if name in known}
  found["motion_ratio"] = float(motion.motion(videos).sum() / motion.motion(there).sum())
  found["first_frame_psnr"] = float(
    np.mean(images.psnr(*(jnp.asarray(x[:, 0]) for x in (videos, there))))
  )
  return found


def distance(videos: np.ndarray, spec: str, random: bool) -> float:
  """The Fréchet distance of samples from the truth of the same clips."""
  return frechet.distance(
    frechet.statistics(looks(random)(videos)), seen(spec, len(videos), random)
  )


@functools.cache
def seen(spec: str, clips: int, random: bool) -> frechet.Statistics:
  return frechet.statistics(looks(random)(truth(spec, clips)[0]["video"]))


@functools.cache
def looks(random: bool) -> features.Features:
  return features.random() if random else features.trained()
