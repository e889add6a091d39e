"""The only place where names in a config become objects. Below here nobody sees a ConfigDict.

Every group of a config is splatted into a constructor, so its keys are that constructor's
arguments; an unknown one is an error that lists those that exist.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fbjax import errors, sampling, sharding
from fbjax.bridge import alignment, diffusion, grids, prediction, process, samplers
from fbjax.data import pipeline, sources, synthetic, tfds_clips, tokenizers
from fbjax.systems import (
  adapters,
  base,
  codecs,
  cogvideox,
  formulation,
  latte,
  neural_prior,
  videocrafter,
)
from fbjax.train import objectives, optim, step

Spec = Mapping[str, Any]

# Besides these, "diffusion" is the baseline: the process is config.diffusion itself.
PROCESSES = {"gmax": process.Gmax, "constant": process.constant, "vp": process.VP}
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
TRAINABLE = {
  "all": adapters.whole,
  "matching": adapters.matching,
  "lora": adapters.lora,
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
KINDS = {kind: kind for kind in typing.get_args(prediction.Kind)}
RULES = {rule: rule for rule in typing.get_args(alignment.Rule)}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def choose(table: Mapping[str, Any], name: str, key: str) -> Any:
  """The entry of a table.

  Raises:
    UserError: when there is none of that name; lists those that exist.
  """
  if name not in table:
    raise errors.UserError(f"config.{key} is {name!r}; expected one of {', '.join(sorted(table))}")
  return table[name]


def call(fn: Callable[..., Any], spec: Spec, key: str, **given: Any) -> Any:
  """fn(**given, **spec), with unknown and missing keys told in the config's words.

  Raises:
    UserError: names the keys.
  """
  arguments = inspect.signature(fn).parameters
  takes = [name for name in arguments if name not in given]
  unknown = [name for name in spec if name not in takes]
  if unknown:
    raise errors.UserError(
      f"config.{key} has no key {', '.join(map(repr, unknown))}; it takes {', '.join(takes) or 'none'}"
    )
  missing = [
    name
    for name in takes
    if name not in spec and arguments[name].default is inspect.Parameter.empty
  ]
  if missing:
    raise errors.UserError(f"config.{key} lacks {', '.join(map(repr, missing))}")
  return fn(**given, **spec)


def make(table: Mapping[str, Any], spec: Spec, key: str, **given: Any) -> Any:
  """The object that `spec["name"]` names, made of the other keys and of `given`."""
  if "name" not in spec:
    raise errors.UserError(f"config.{key} lacks 'name'; expected one of {', '.join(sorted(table))}")
  fn = choose(table, spec["name"], f"{key}.name")
  return call(fn, {k: v for k, v in spec.items() if k != "name"}, key, **given)


def make_mesh(config: Spec) -> jax.sharding.Mesh:
  return call(sharding.make_mesh, config["mesh"], "mesh")


def make_tokenizer(config: Spec) -> Any:
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
  """The system of a config; without a tokenizer it cannot encode, but its weights can be ported.

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
  return make(TRAINABLE, config["trainable"], "trainable", system=system)


def of_prior_run(config: Spec, system: base.System) -> list[str]:
  """The networks whose weights come from `config.prior_run`, not from files or a draw."""
  return neural_prior.names_in(system.networks) if config["prior_run"] else []


def make_architecture(
  config: Spec, spec: Spec, tokenizer: Any | None, coarse_told: bool = False
) -> base.System:
  """One system by itself; `coarse_told` if its network hears of a coarse video."""
  spec = dict(spec)
  dtype = choose(DTYPES, spec.pop("dtype"), "system.dtype")
  spec["codec"] = make_codec(spec["codec"], dtype)
  if tokenizer is not None and "text" in spec:
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
  if config["bridge"]["name"] == "diffusion":
    if diffused is None:
      raise errors.UserError(
        "config.bridge.name is 'diffusion', which needs a config.diffusion.name"
      )
    bridge, steps = diffused, diffused.last + 1
  else:
    own = dict(config["bridge"])
    steps = own.pop("steps", grids.STEPS)
    if not isinstance(steps, int) or steps < 2:
      raise errors.UserError(
        f"config.bridge.steps is {steps!r}; expected how many times the network knows, "
        "1000 as published"
      )
    bridge = make(PROCESSES, own, "bridge")
  return formulation.Formulation(
    bridge,
    choose(KINDS, config["objective"]["predict"], "objective.predict"),
    diffused,
    rule,
    None if pretrained is None else choose(KINDS, pretrained, "diffusion.pretrained"),
    steps,
  )


def make_loss(config: Spec, system: base.System, form: formulation.Formulation) -> step.LossFn:
  spec = {k: v for k, v in config["objective"].items() if k != "predict"}
  if spec.get("regression") and not config["prior"].get("trained"):
    raise errors.UserError(
      "config.objective.regression is the weight of a neural prior that trains along: set "
      "config.prior.trained too, or leave it out"
    )
  return make(OBJECTIVES, spec, "objective", system=system, form=form)


def make_optimizer(config: Spec) -> optax.GradientTransformation:
  return call(optim.make_optimizer, config["optim"], "optim", steps=config["train"]["steps"])


def make_sampler(spec: Spec) -> Callable[..., jax.Array]:
  """One of `bridge.samplers` with its options bound."""
  sampler = choose(SAMPLERS, spec["name"], "sampling.sampler.name")
  options = {k: v for k, v in spec.items() if k != "name"}
  arguments = inspect.signature(sampler.table).parameters.values()
  takes = ["start", *(a.name for a in arguments if a.kind is a.KEYWORD_ONLY)]
  if unknown := [name for name in options if name not in takes]:
    raise errors.UserError(
      f"config.sampling.sampler has no key {', '.join(map(repr, unknown))}; "
      f"{spec['name']} takes {', '.join(takes)}"
    )
  return functools.partial(sampler, **options)


def make_sample(
  config: Spec,
  system: base.System,
  form: formulation.Formulation,
  mesh: jax.sharding.Mesh,
  **changes: Any,
) -> sampling.Sample:
  """The sampler of a config, with other values where `changes` has some that are not None.

  Raises:
    UserError: for guidance away from a condition that training never dropped.
  """
  spec = config["sampling"] | {name: x for name, x in changes.items() if x is not None}
  objective = config["objective"]
  drops = {name: objective.get(name, 0) for name in ("drop_text", "drop_image", "drop_both")}
  if spec["guidance"] != 1 and not drops["drop_text"] + drops["drop_both"]:
    raise errors.UserError(
      f"guidance {spec['guidance']} needs a network that was trained without text now and then, "
      "but config.objective.drop_text is 0; sample with guidance 1"
    )
  if spec["image_guidance"] is not None and not drops["drop_both"]:
    raise errors.UserError(
      "image guidance needs a network that was trained without text and image now and then, "
      "but config.objective.drop_both is 0; leave image guidance out"
    )
  # Grids of indices choose from the steps that the network was trained at.
  given = {"n": spec["steps"], "steps": form.steps}
  takes = inspect.signature(
    choose(GRIDS, spec["grid"].get("name"), "sampling.grid.name")
  ).parameters
  given = {name: x for name, x in given.items() if name in takes}
  times = make(GRIDS, spec["grid"], "sampling.grid", **given)
  return sampling.make_sample(
    system,
    form,
    make_sampler(spec["sampler"]),
    times,
    guidance=spec["guidance"],
    image_guidance=spec["image_guidance"],
    rescale=spec["rescale"],
    mesh=mesh,
  )
