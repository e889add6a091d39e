"""The only place where names in a config become objects. Below here nobody sees a ConfigDict.

Every group of a config is splatted into a constructor, so its keys are that constructor's
arguments; an unknown one is an error that lists those that exist.
"""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbjax import checks, errors, sampling, sharding, start, weights
from fbjax.bridge import alignment, diffusion, grids, prediction, samplers
from fbjax.bridge import process as process_lib
from fbjax.data import pipeline, sources, synthetic, tfds_clips, tokenizers
from fbjax.systems import (
  adapters,
  base,
  codecs,
  cogvideox,
  formulation,
  latte,
  networks,
  neural_prior,
  videocrafter,
)
from fbjax.train import loop, objectives, optim, step

Spec = Mapping[str, Any]

# Besides these, "diffusion" is the baseline: the process is config.diffusion itself.
PROCESSES = {"gmax": process_lib.Gmax, "constant": process_lib.constant, "vp": process_lib.VP}
DIFFUSIONS = {
  "none": lambda: None,
  "videocrafter": diffusion.videocrafter,
  "cogvideox": diffusion.cogvideox,
  "linear": diffusion.linear,
  "cosine": diffusion.cosine,
}
CODECS = {
  "pixels": codecs.Pixels,
  "autoencoder": codecs.Autoencoder,
  "video_autoencoder": codecs.VideoAutoencoder,
}
SYSTEMS = {
  "videocrafter": videocrafter.VideoCrafter,
  "cogvideox": cogvideox.CogVideoX,
  "latte": latte.Latte,
  "videocrafter_prior": videocrafter.VideoCrafterPrior,
  "cogvideox_prior": cogvideox.CogVideoXPrior,
  "latte_prior": latte.LattePrior,
}
OBJECTIVES = {"bridge": objectives.bridge_loss}
SOURCES = {
  "synthetic": synthetic.Shapes,
  "webvid": sources.WebVid,
  "folder": sources.Folder,
  "ucf101": sources.UCF101,
  "msrvtt": sources.MSRVTT,
  "tfds": tfds_clips.TFDS,
}
TOKENIZERS = {"bytes": tokenizers.Bytes, "clip": tokenizers.CLIP, "t5": tokenizers.T5}
SAMPLERS = {
  "sde": samplers.sde,
  "ode": samplers.ode,
  "first_order": samplers.first_order,
  "heun": samplers.heun,
  "dbim": samplers.dbim,
  "ddbm": samplers.ddbm,
  "euler_maruyama": samplers.euler_maruyama,
  "ddim": samplers.ddim,
  "ddpm": samplers.ddpm,
}
GRIDS = {
  "trailing": grids.trailing,
  "uniform": grids.uniform,
  "karras": grids.karras,
  "shifted": grids.shifted,
  # A diffusion's times are its indices.
  "trailing_indices": lambda n, steps: grids.trailing_indices(n, steps).astype(np.float64),
  "uniform_indices": lambda n, steps: grids.uniform_indices(n, steps).astype(np.float64),
  "latte_indices": lambda n, steps: grids.latte_indices(n, steps).astype(np.float64),
}
KINDS = typing.get_args(prediction.Kind)
RULES = typing.get_args(alignment.Rule)
PRECISIONS = ("default", "high", "highest")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Groups whose other keys are the arguments of what their name stands for, with those that are
# taken off before; and groups without a name.
TABLES = {
  "system": SYSTEMS,
  "data": SOURCES,
  "tokenizer": TOKENIZERS,
  "bridge": PROCESSES,
  "diffusion": DIFFUSIONS,
  "objective": OBJECTIVES,
}
EXTRA = {"objective": ("predict",), "diffusion": ("rule", "pretrained"), "bridge": ("steps",)}
# Arguments that are no keys: the program gives them.
GIVEN = {
  "system": ("coarse", "null_tokens", "frames"),
  "data": ("split",),
  "train": ("workdir", "seed"),
}
GROUPS = {
  "loader": pipeline.Batches,
  "optim": optim.make_optimizer,
  "train": loop.train,
  "mesh": sharding.make_mesh,
}
MAX_GUIDANCE = 1000.0  # far beyond any use, and far from where a clip overflows
PLAIN = (int, float, bool, str)  # types of their arguments that are keys of a config


def choose(table: Mapping[str, Any] | Sequence[str], name: str, key: str) -> Any:
  """The entry of a table, or the name itself where there is only a list of names.

  Raises:
    UserError: when there is none of that name; lists those that exist.
  """
  if not isinstance(name, str) or name not in table:
    raise errors.UserError(f"config.{key} is {name!r}; expected one of {', '.join(sorted(table))}")
  return table[name] if isinstance(table, Mapping) else name


def check_keys(spec: Spec, takes: Iterable[str], key: str) -> None:
  """Raises a UserError for keys of a group that are not among those it takes."""
  takes = list(takes)
  if unknown := [name for name in spec if name not in takes]:
    raise errors.UserError(
      f"config.{key} has no key {', '.join(map(repr, unknown))}; it takes {', '.join(takes) or 'none'}"
    )


def bind(fn: Callable[..., Any], spec: Spec, key: str, **given: Any) -> Callable[[], Any]:
  """() -> fn(**given, **spec), with unknown and missing keys told in the config's words.

  Raises:
    UserError: names the keys.
  """
  arguments = inspect.signature(fn).parameters
  takes = [name for name in arguments if name not in given]
  check_keys(spec, takes, key)
  missing = [
    name
    for name in takes
    if name not in spec and arguments[name].default is inspect.Parameter.empty
  ]
  if missing:
    raise errors.UserError(f"config.{key} lacks {', '.join(map(repr, missing))}")
  return functools.partial(fn, **given, **spec)


def call(fn: Callable[..., Any], spec: Spec, key: str, **given: Any) -> Any:
  """fn(**given, **spec), as `bind`; for constructors, which check their arguments.

  Raises:
    UserError: names the keys, or says what a value is.
  """
  bound = bind(fn, spec, key, **given)
  try:
    return bound()
  except errors.UserError:
    raise
  except ValueError as error:
    # The bridge says what is wrong with its arguments without knowing of configs.
    raise errors.UserError(f"config.{key}: {error}") from error


def make(table: Mapping[str, Any], spec: Spec, key: str, **given: Any) -> Any:
  """The object that `spec["name"]` names, made of the other keys and of `given`."""
  if "name" not in spec:
    raise errors.UserError(f"config.{key} lacks 'name'; expected one of {', '.join(sorted(table))}")
  fn = choose(table, spec["name"], f"{key}.name")
  return call(fn, {k: v for k, v in spec.items() if k != "name"}, key, **given)


def check(config: Spec) -> None:
  """Looks at every key of a config, before anything is loaded.

  Raises:
    UserError: for a group or a key that does not exist, a name that no table has, a number that
      makes no sense.
  """
  groups = (*TABLES, *GROUPS, "sampling", "trainable", "start", "port", "prior")
  for group in groups:
    if not isinstance(config.get(group), Mapping):
      raise errors.UserError(
        f"the config has no group {group!r}, which configs/common.py gives every config: add it, or "
        "take the version of the program that the config was written for"
      )
  for key in ("seed", "precision", "weights", "prior_run"):
    if key not in config:
      raise errors.UserError(f"the config has no key {key!r}; see configs/common.py")
  for group, table in TABLES.items():
    spec = {k: v for k, v in config[group].items() if k != "name"}
    if group == "bridge" and config[group].get("name") == "diffusion":
      check_keys(spec, (), "bridge")
      continue
    fn = choose(table, config[group].get("name"), f"{group}.name")
    own = [name for name in inspect.signature(fn).parameters if name not in GIVEN.get(group, ())]
    check_keys(spec, [*own, *EXTRA.get(group, ())], group)
  for group, fn in GROUPS.items():
    arguments = inspect.signature(fn).parameters.items()
    own = [name for name, x in arguments if x.annotation in PLAIN]
    check_keys(config[group], [name for name in own if name not in GIVEN.get(group, ())], group)
  checks.finite(config)
  if config["prior_run"] and not config["prior"]:
    raise errors.UserError(
      "config.prior_run names a neural prior, but this config puts none in front: take one that "
      "does, such as ucf101_bridge_prior.py or :from_prior, or leave it empty"
    )
  if config["system"]["name"].endswith("_prior") and config["objective"].get("predict") != "z0":
    raise errors.UserError(
      f"config.objective.predict is {config['objective'].get('predict')!r}, but a neural prior, which "
      "is told neither state nor time, can only predict 'z0'"
    )
  checks.whole("config.seed", config["seed"], 0, checks.SEED)
  choose(PRECISIONS, config["precision"], "precision")
  loop.check_numbers(**config["train"])
  call(optim.make_optimizer, config["optim"], "optim", steps=config["train"]["steps"])
  clip_size(config)
  check_weight(config["objective"])
  for_sampling(config)
  form = make_formulation(config)
  times = make_times(config["sampling"]["grid"], config["sampling"]["steps"], form.steps)
  check_sampler(config["sampling"]["sampler"], form.process, times)


def set_precision(config: Spec) -> None:
  """Products of float32 numbers are as exact as `config.precision` says, in all that follows.

  highest  float32. By itself JAX multiplies in bfloat16 on a TPU, in TF32 on a GPU.
  high     three bfloat16 products on a TPU, TF32 on a GPU
  default  the fastest of the device
  """
  jax.config.update("jax_default_matmul_precision", config["precision"])


def make_mesh(config: Spec) -> jax.sharding.Mesh:
  return call(sharding.make_mesh, config["mesh"], "mesh")


def make_tokenizer(config: Spec) -> Any:
  if "length" in config["tokenizer"]:  # A text has a beginning and an end.
    checks.whole("config.tokenizer.length", config["tokenizer"]["length"], least=2)
  return make(TOKENIZERS, config["tokenizer"], "tokenizer")


def make_source(config: Spec, split: str) -> Any:
  return make(SOURCES, config["data"], "data", split=split)


def make_batches(
  config: Spec, source: Any, tokenizer: Any, process_index: int, process_count: int
) -> pipeline.Batches:
  return call(
    pipeline.Batches,
    config["loader"],
    "loader",
    source=source,
    tokenizer=tokenizer,
    batch_size=config["train"]["batch_size"],
    seed=config["seed"],
    process_index=process_index,
    process_count=process_count,
  )


def make_system(config: Spec, tokenizer: Any | None) -> base.System:
  """The system of a config, with its low-rank additions if it has any.

  Without a tokenizer it cannot encode. Which leaves start anew, and so train whole, depends on what
  the folder `config.weights` holds: its list of leaves is read.
  """
  return call(make_trainable, config["trainable"], "trainable", config=config, tokenizer=tokenizer)


def make_trainable(
  config: Spec,
  tokenizer: Any | None,
  *,
  whole: Sequence[str] = (".*",),
  lora: Sequence[str] = (),
  rank: int = 16,
  scale: float = 1.0,
) -> base.System:
  """`make_system` with the options of `config.trainable`.

  Args:
    config, tokenizer: of the system.
    whole: what trains as it is: regexes searched in `network/leaf`, and "new" for every leaf that
      starts anew. Where nothing gets additions, the optimizer keeps the others as they are.
    lora: regexes of kernels that get low-rank additions; then all that neither names is frozen.
    rank, scale: of the additions.

  Raises:
    UserError: for a pattern that matches nothing, or a leaf that starts anew and would not train.
  """
  whole = checks.patterns("config.trainable.whole", whole)
  lora = checks.patterns("config.trainable.lora", lora)
  checks.whole("config.trainable.rank", rank)
  checks.number("config.trainable.scale", scale, above=0)
  system = make_networks(config, tokenizer)
  names, anew = trained_leaves(config, system)
  trained = adapters.chosen(names, whole, anew)
  adapters.check_anew(trained, anew)
  if not trained and not lora:
    raise errors.UserError(
      "config.trainable names nothing, in neither whole nor lora: all would stay"
    )
  if not lora:
    return system
  added = adapters.chosen(names, lora, anew, "lora")
  return adapters.LoRA(system, added=added, whole=trained, rank=rank, scale=scale)


def trained_leaves(config: Spec, system: networks.NetworkSet) -> tuple[list[str], set[str]]:
  """The leaves of the networks that train, but for constants, and those of them that start anew."""
  folder, rules = config["weights"], config["start"]
  chosen = start.sources(system, folder, rules, of_prior_run(config, system))
  names = [
    f"{name}/{leaf}"
    for name, network in system.networks.items()
    if network.trained
    for leaf in system.shapes(name)
  ]
  names = [name for name in names if not is_fixed(system, name)]
  return names, start.started_anew(system, chosen, folder, rules) & set(names)


def is_fixed(system: base.System, name: str) -> bool:
  return any(re.search(pattern, name) for pattern in system.fixed)


def make_networks(config: Spec, tokenizer: Any | None) -> networks.NetworkSet:
  """The networks of a config, as they are without low-rank additions.

  `config.prior` puts a neural prior in front: the options of `neural_prior.WithNeuralPrior`, and
  those keys of `config.system` in which the prior differs from it.
  """
  spec, prior = config["system"], config["prior"]
  system = make_architecture(config, spec, tokenizer, coarse_told=bool(prior))
  if prior:
    own = {k: v for k, v in prior.items() if k in spec}
    options = {k: v for k, v in prior.items() if k not in spec}
    made = make_architecture(config, spec | own | {"name": f"{spec['name']}_prior"}, tokenizer)
    system = call(neural_prior.WithNeuralPrior, options, "prior", system=system, prior=made)
    check_prior_there(config, neural_prior.names_in(system.networks))
  return system.for_clips(*clip_size(config))


def check_prior_there(config: Spec, names: Iterable[str]) -> None:
  """Raises a UserError for a frozen neural prior in front that neither a run nor the weights hold."""
  if config["prior"].get("trained") or config["prior_run"] or not config["weights"]:
    return
  homes = tuple(weights.network_path(name, "") for name in names)
  if not any(path.startswith(homes) for path in weights.stored(config["weights"])):
    raise errors.UserError(
      "config.prior puts a frozen neural prior in front: name the workdir that has trained it in "
      "config.prior_run"
    )


def clip_size(config: Spec) -> tuple[int, tuple[int, int]]:
  """Frames, and (height, width) in pixels, of the clips of a config."""
  for key in ("frames", "size"):
    if key not in config["data"]:
      raise errors.UserError(f"config.data lacks {key!r}")
  frames = checks.whole("data.frames", config["data"]["frames"])
  size = checks.pair("data.size", config["data"]["size"], "height and width")
  checks.clip(frames, size)
  return frames, size


def of_prior_run(config: Spec, system: base.System) -> list[str]:
  """The networks whose weights come from `config.prior_run`, not from files or a draw."""
  return neural_prior.names_in(system.networks) if config["prior_run"] else []


def make_architecture(
  config: Spec, spec: Spec, tokenizer: Any | None, coarse_told: bool = False
) -> base.System:
  """One system by itself; `coarse_told` if its network hears of a coarse video."""
  spec = dict(spec)
  for name in ("text", "image"):
    if spec.get(name) is not None and "width" not in spec[name]:
      raise errors.UserError(f"config.system.{name} lacks 'width'")
  dtype = choose(DTYPES, spec.pop("dtype"), "system.dtype")
  spec["codec"] = make_codec(spec["codec"], dtype)
  if tokenizer is not None and "text" in spec:
    for key in ("vocab", "length"):
      size, least = (spec["text"] or {}).get(key), getattr(tokenizer, key)
      if isinstance(size, int) and size < least:
        raise errors.UserError(
          f"config.system.text.{key} is {size}, but the tokenizer's is {least} (config.tokenizer): the "
          "text network must know at least as many"
        )
    spec["text"] = {"vocab": tokenizer.vocab, "length": tokenizer.length} | dict(spec["text"])
  given = {"dtype": dtype, "frames": config["data"]["frames"], "coarse": coarse_told}
  if "text" in spec:
    null = None if tokenizer is None else np.asarray(tokenizer([""])[0], np.int32)
    given |= {"null_tokens": null}
  return make(SYSTEMS, spec, "system", **given)


def make_codec(spec: Spec, dtype: Any) -> codecs.Codec:
  given = {} if spec.get("name") == "pixels" else {"dtype": dtype}
  return make(CODECS, spec, "system.codec", **given)


def make_formulation(config: Spec) -> formulation.Formulation:
  spec = dict(config["diffusion"])
  rule = choose(RULES, spec.pop("rule", "exact"), "diffusion.rule")
  pretrained = spec.pop("pretrained", None)
  diffused = make(DIFFUSIONS, spec, "diffusion")
  if diffused is None and (pretrained is not None or rule != "exact"):
    raise errors.UserError(
      "config.diffusion.rule and .pretrained say how the bridge is aligned with a diffusion, but "
      "config.diffusion.name is 'none': leave them out"
    )
  if config["bridge"]["name"] == "diffusion":
    if diffused is None:
      raise errors.UserError(
        "config.bridge.name is 'diffusion', which needs a config.diffusion.name"
      )
    bridge, steps = diffused, diffused.last + 1
  else:
    own = dict(config["bridge"])
    # How many times the network knows.
    steps = checks.whole("config.bridge.steps", own.pop("steps", grids.STEPS), least=2)
    for key, value in own.items():
      if key != "name":
        positive = {"least": 0} if key == "beta_min" else {"above": 0}
        checks.number(f"config.bridge.{key}", value, **positive)
    bridge = make(PROCESSES, own, "bridge")
  return formulation.Formulation(
    bridge,
    choose(KINDS, config["objective"]["predict"], "objective.predict"),
    diffused,
    rule,
    None if pretrained is None else choose(KINDS, pretrained, "diffusion.pretrained"),
    steps,
  )


def check_weight(objective: Spec) -> None:
  """Raises a UserError for a weight over time of a kind that does not exist."""
  if objective.get("weight_like") is not None:
    choose(KINDS, objective["weight_like"], "objective.weight_like")


def make_loss(config: Spec, system: base.System, form: formulation.Formulation) -> step.LossFn:
  check_weight(config["objective"])
  spec = {k: v for k, v in config["objective"].items() if k != "predict"}
  if spec.get("regression") and not config["prior"].get("trained"):
    raise errors.UserError(
      "config.objective.regression is the weight of a neural prior that trains along: set "
      "config.prior.trained too, or leave it out"
    )
  return make(OBJECTIVES, spec, "objective", system=system, form=form)


def make_optimizer(config: Spec, system: base.System) -> optim.Optimizer:
  """The optimizer of a config, which keeps as they are the weights that do not train."""
  trained = None  # all that the system calls its params
  if system is system.whole:
    names, anew = trained_leaves(config, system)
    whole = checks.patterns("config.trainable.whole", config["trainable"].get("whole", ".*"))
    trained = set(adapters.chosen(names, whole, anew))
  return call(
    optim.make_optimizer,
    config["optim"],
    "optim",
    steps=config["train"]["steps"],
    trains=lambda path: not is_fixed(system, path) and (trained is None or path in trained),
  )


def make_sampler(spec: Spec) -> Callable[..., jax.Array]:
  """One of `bridge.samplers` with its options bound."""
  sampler = choose(SAMPLERS, spec.get("name"), "sampling.sampler.name")
  options = {k: v for k, v in spec.items() if k != "name"}
  arguments = inspect.signature(sampler.table).parameters.values()
  takes = ["start", *(a.name for a in arguments if a.kind is a.KEYWORD_ONLY)]
  check_keys(options, takes, "sampling.sampler")
  return functools.partial(sampler, **options)


def check_sampler(spec: Spec, process: Any, times: np.ndarray) -> None:
  """Raises a UserError for a sampler, or options of it, that the process does not have."""
  bound = make_sampler(spec)
  arguments = inspect.signature(bound.func.table).parameters
  if arguments["process"].annotation is process_lib.Bridge and not isinstance(
    process, process_lib.Bridge
  ):
    raise errors.UserError(
      f"config.sampling.sampler.name is {spec['name']!r}, which samples bridges; this config is a "
      "diffusion: take ddim or ddpm"
    )
  choose(("noise", "published"), spec.get("start", "noise"), "sampling.sampler.start")
  options = {name: x for name, x in bound.keywords.items() if name != "start"}
  call(bound.func.table, options, "sampling.sampler", process=process, times=times)


def make_times(spec: Spec, n: int, steps: int) -> np.ndarray:
  """A grid of n times; those of indices choose from the steps that the network was trained at."""
  grid = choose(GRIDS, spec.get("name"), "sampling.grid.name")
  given = {"n": n, "steps": steps}
  given = {name: x for name, x in given.items() if name in inspect.signature(grid).parameters}
  if n > given.get("steps", n):
    raise errors.UserError(
      f"config.sampling.steps is {n}, but the network knows {steps} times, from which the grid "
      f"{spec['name']!r} chooses"
    )
  times = make(GRIDS, spec, "sampling.grid", **given)
  if not (np.all(np.isfinite(times)) and np.all(np.diff(times) < 0)):
    raise errors.UserError(
      f"config.sampling.grid {dict(spec)} does not make {n} different times, one after the other"
    )
  return times


class Sampling(NamedTuple):
  """The keys of `config.sampling`.

  sampler: one of `SAMPLERS` with its options. grid: one of `GRIDS` with its options.
  steps: evaluations of the network, or more for samplers with several a step.
  guidance, image_guidance, rescale: see `sampling.make_sample`.
  draw: "sample" or "mode" of the autoencoder's posterior for given frames; None is as in training.
  batch_size: clips at a time. fps: frames a second of the files. stride: told to the network.
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
  """`config.sampling`, with other values where `changes` has some that are not None.

  Raises:
    UserError: for keys that do not exist, and numbers that make no sense.
  """
  spec = config["sampling"] | {name: x for name, x in changes.items() if x is not None}
  options = call(Sampling, spec, "sampling")
  for name, most in (
    ("steps", 10_000),
    ("batch_size", None),
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


def for_sampling(config: Spec) -> dict[str, Any]:
  """The config whose system samples: that of training, but for `config.sampling.draw`.

  Raises:
    UserError: for another draw, or one where the codec has nothing to draw.
  """
  draw, system = sampling_options(config).draw, config["system"]
  if draw is None:
    return dict(config)
  choose(("mode", "sample"), draw, "sampling.draw")
  codec = choose(CODECS, system["codec"].get("name"), "system.codec.name")
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
  mesh: jax.sharding.Mesh,
  **changes: Any,
) -> sampling.Sample:
  """The sampler of a config, with other values where `changes` has some that are not None.

  Raises:
    UserError: as `check_sampling`.
  """
  options = sampling_options(config, **changes)
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
  )


def check_sampling(
  config: Spec, system: base.System, form: formulation.Formulation, options: Sampling
) -> np.ndarray:
  """Checks what is asked of a sampler, for which no weights are needed.

  Returns:
    Its grid of times.

  Raises:
    UserError: for guidance away from a condition that training never dropped, a stride that the system
      is not told, a sampler or a grid that do not fit.
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
        f"image guidance: the system {config['system']['name']} has no image condition to guide by "
        "beside the given frame, which is never dropped; leave image guidance out"
      )
    if not drops["drop_both"]:
      raise errors.UserError(
        "image guidance needs a network that was trained without text and image now and then, "
        "but config.objective.drop_both is 0; leave image guidance out"
      )
  times = make_times(options.grid, options.steps, form.steps)
  check_sampler(options.sampler, form.process, times)
  return times
