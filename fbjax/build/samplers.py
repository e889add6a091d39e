"""The sampler of a config, and its options, which a call may override."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fbjax import checks, errors, sampling
from fbjax.bridge import diffusion
from fbjax.bridge import process as process_lib
from fbjax.build import calls, priors, tables
from fbjax.build.calls import Spec
from fbjax.systems import base, formulation
from fbjax.train import loop

MAX_GUIDANCE = 1000.0  # far beyond any use, and far from where a clip overflows


class Sampling(NamedTuple):
  """The keys of `config.sampling`.

  sampler: one of `tables.SAMPLERS` with its options. grid: one of `tables.GRIDS` with its options.
  steps: times of the grid, which are the network evaluations of all samplers but heun and ddbm.
  guidance, image_guidance, rescale: see `sampling.make_sample`.
  draw: "sample" or "mode" of the autoencoder's posterior for given frames; None is as in training.
  batch_size: clips at a time. fps: of the video files. stride: frame stride, a condition.
  images: a folder of images with a prompt file, which every preview of a training animates as well.
  """

  sampler: Spec
  grid: Spec
  steps: int = 50
  guidance: float = 1.0
  image_guidance: float | None = None
  rescale: float = 0.0
  draw: str | None = None
  batch_size: int = 8
  fps: int = 8
  stride: int = 1
  images: str = ""


def sampling_options(config: Spec, **changes: Any) -> Sampling:
  """`config.sampling`, overridden by those of `changes` that are not None.

  In `changes`, sampler and grid may be just a name.

  Raises:
    UserError: for unknown keys, numbers out of range, and, of a neural prior, keys without effect.
  """
  for name in ("sampler", "grid"):
    if isinstance(changes.get(name), str):
      changes[name] = {"name": changes[name]}
  spec = config["sampling"] | {name: x for name, x in changes.items() if x is not None}
  options = calls.call(Sampling, spec, "sampling")
  priors.check_unfelt(config | {"sampling": spec})
  for name, most in (
    ("steps", 10_000),
    ("batch_size", loop.MOST_CLIPS),
    ("fps", 1000),
    ("stride", checks.INT32),
  ):
    checks.whole(f"config.sampling.{name}", spec.get(name, 1), most=most)
  for name in ("guidance", "image_guidance"):
    if spec.get(name) is not None:
      bounds = {"least": -MAX_GUIDANCE, "most": MAX_GUIDANCE}
      checks.number(f"config.sampling.{name}", spec[name], **bounds)
  checks.number("config.sampling.rescale", options.rescale, least=0, most=1)
  return options


def check_rescale(options: Sampling) -> None:
  """Raises a UserError for guidance rescale without guidance."""
  if options.rescale and options.guidance == 1 and options.image_guidance is None:
    raise errors.UserError(
      f"config.sampling.rescale is {options.rescale}, how far what guidance did is pulled back, and "
      "guidance is 1, which does nothing: set guidance too, or rescale to 0"
    )


def for_sampling(config: Spec) -> dict[str, Any]:
  """The config with the codec's `draw` replaced by `config.sampling.draw`, if that is not None.

  Raises:
    UserError: for another draw, or a codec without a posterior to draw from.
  """
  draw, system = sampling_options(config).draw, config["system"]
  if draw is None:
    return dict(config)
  calls.choose(("mode", "sample"), draw, "sampling.draw")
  codec = calls.choose(tables.CODECS, system["codec"].get("name"), "system.codec.name")
  if "draw" not in inspect.signature(codec).parameters:
    raise errors.UserError(
      f"config.sampling.draw is {draw!r}, but the codec {system['codec']['name']!r} has no posterior "
      "to draw from; leave it at None"
    )
  return config | {"system": system | {"codec": system["codec"] | {"draw": draw}}}


def make_sample(
  config: Spec,
  system: base.System,
  form: formulation.Formulation,
  mesh: jax.sharding.Mesh | None,
  options: Sampling | None = None,
  *,
  gathered: bool = True,
) -> sampling.Sample:
  """The sampler of a config; `options`, from `sampling_options`, take the place of the config's own.

  `mesh` and `gathered` are as of `sampling.make_sample`.

  Raises:
    UserError: as `check_sampling`.
  """
  options = options or sampling_options(config)
  times = check_sampling(config, system, form, options)
  return sampling.make_sample(
    system,
    form,
    make_sampler(options.sampler),
    times,
    guidance=options.guidance,
    image_guidance=options.image_guidance,
    rescale=options.rescale,
    mesh=mesh,
    gathered=gathered,
  )


def check_sampling(
  config: Spec, system: base.System, form: formulation.Formulation, options: Sampling
) -> np.ndarray:
  """Checks sampling options against the system and its training; needs no weights.

  Returns:
    The grid of times.

  Raises:
    UserError: for guidance on a condition that training never dropped, a stride other than 1 where
      it is no condition of the system, a sampler or a grid that does not fit the process.
  """
  if options.stride != 1 and "stride" not in system.conditions:
    raise errors.UserError(
      f"config.sampling.stride is {options.stride}, but the system {config['system']['name']} is not told "
      "a stride; leave it at 1"
    )
  objective = config["objective"]
  drops = {name: objective.get(name, 0) for name in ("drop_text", "drop_image", "drop_both")}
  if options.guidance != 1 and not drops["drop_text"] + drops["drop_both"]:
    raise errors.UserError(
      f"guidance {options.guidance} needs a network that was trained without text now and then, "
      "but config.objective.drop_text is 0; sample with guidance 1"
    )
  if options.image_guidance is not None:
    if "image" not in system.conditions:
      raise errors.UserError(
        f"config.sampling.image_guidance (--image_guidance): the system {config['system']['name']} has no "
        "image condition to guide by beside the given frame, which is never dropped; leave it out"
      )
    if not drops["drop_both"]:
      raise errors.UserError(
        "config.sampling.image_guidance (--image_guidance) needs a network that was trained without text "
        "and image now and then, but config.objective.drop_both is 0; leave it out"
      )
  times = make_times(options.grid, options.steps, form.steps)
  check_sampler(options.sampler, form.process, times)
  return times


def make_sampler(spec: Spec) -> Callable[..., jax.Array]:
  """One of `bridge.samplers` with its options bound."""
  sampler = calls.choose(tables.SAMPLERS, spec.get("name"), "sampling.sampler.name")
  options = {k: v for k, v in spec.items() if k != "name"}
  arguments = inspect.signature(sampler.table).parameters.values()
  takes = ["start", *(a.name for a in arguments if a.kind is a.KEYWORD_ONLY)]
  calls.check_keys(options, takes, "sampling.sampler", spec["name"])
  return functools.partial(sampler, **options)


def check_sampler(spec: Spec, process: Any, times: np.ndarray) -> None:
  """Raises a UserError for a sampler, options or times that do not fit the process."""
  bound = make_sampler(spec)
  takes = inspect.signature(bound.func.table).parameters["process"].annotation
  if takes is process_lib.Bridge and not isinstance(process, process_lib.Bridge):
    raise errors.UserError(
      f"config.sampling.sampler.name is {spec['name']!r}, which samples bridges; this config is a "
      "diffusion: take ddim or ddpm"
    )
  if takes is diffusion.Diffusion and not isinstance(process, diffusion.Diffusion):
    raise errors.UserError(
      f"config.sampling.sampler.name is {spec['name']!r}, whose noise is a diffusion's; this config is a "
      "bridge: take sde, ode, heun or dbim"
    )
  if isinstance(process, process_lib.Bridge) and not (times[0] <= 1 and times[-1] >= 0):
    raise errors.UserError(
      f"config.sampling.grid goes from {times[0]:g} to {times[-1]:g}, which are steps of a diffusion; "
      "this config is a bridge, whose times lie between 0 and 1: take trailing, karras or shifted"
    )
  ends = times[[0, -1]].astype(np.float32)  # as the sampler rounds them
  if isinstance(process, process_lib.Bridge) and not (ends[0] < 1 and ends[1] > 0):
    raise errors.UserError(
      f"config.sampling.grid goes from {times[0]:g} to {times[-1]:g}; a bridge is sampled at times "
      "above 0 and below 1, where there is something to know"
    )
  calls.choose(("noise", "published"), spec.get("start", "noise"), "sampling.sampler.start")
  options = {name: x for name, x in bound.keywords.items() if name != "start"}
  calls.call(bound.func.table, options, "sampling.sampler", process=process, times=times)


def make_times(spec: Spec, n: int, steps: int) -> np.ndarray:
  """A grid of n decreasing times; grids of indices choose among the `steps` times of training.

  Raises:
    UserError: for an unknown grid or option, more times than `steps`, or times that repeat.
  """
  grid = calls.choose(tables.GRIDS, spec.get("name"), "sampling.grid.name")
  given = {"n": n, "steps": steps}
  given = {name: x for name, x in given.items() if name in inspect.signature(grid).parameters}
  if n > given.get("steps", n):
    raise errors.UserError(
      f"config.sampling.steps is {n}, but the network knows {steps} times, from which the grid "
      f"{spec['name']!r} chooses"
    )
  times = calls.make(tables.GRIDS, spec, "sampling.grid", **given)
  if not (np.all(np.isfinite(times)) and np.all(np.diff(times) < 0)):
    raise errors.UserError(
      f"config.sampling.grid {dict(spec)} does not make {n} different times, one after the other"
    )
  return times
