"""What a training is made of besides its networks: devices, data, bridge, loss and optimizer."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fbjax import checks, errors, processes, sharding
from fbjax.bridge import grids
from fbjax.build import calls, systems, tables
from fbjax.build.calls import Spec
from fbjax.data import buckets, pipeline, table
from fbjax.systems import adapters, base, formulation
from fbjax.train import optim, step

MOST = 1e6  # of a bridge's noise: float32 can still tell clips in it
MOST_STEPS = 10**6  # of a bridge: float32 can still tell two of them


def set_precision(config: Spec) -> None:
  """Sets JAX's default precision of float32 matrix products to `config.precision`, process-wide.

  highest  float32. By itself JAX multiplies in bfloat16 on a TPU, in TF32 on a GPU.
  high     three bfloat16 products on a TPU, TF32 on a GPU
  default  the fastest of the device
  """
  jax.config.update("jax_default_matmul_precision", config["precision"])


def make_mesh(config: Spec, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """The mesh of a config, of the devices of this run unless others are given."""
  return calls.call(sharding.make_mesh, config["mesh"], "mesh", devices=devices)


def make_source(config: Spec, split: str) -> Any:
  spec = {k: v for k, v in config["data"].items() if k != "buckets"}  # which only a training has
  source = calls.make(tables.SOURCES, spec, "data", split=split)
  classes = config.get("system", {}).get("latte", {}).get("classes")
  if classes and isinstance(source, table.Table):
    check_labels(source, classes)
  return source


def check_labels(source: table.Table, classes: int) -> None:
  """Raises a UserError for a clip of a class that the network does not know.

  The number behind the last class would be taken for none, and others for no number.
  """
  last = max(source.entries, key=lambda entry: entry.label)
  if last.label >= classes:
    raise errors.UserError(
      f"the label of {last.file} is {last.label}, and the network knows {classes} classes, from 0 to "
      f"{classes - 1}: set config.system.latte.classes, or count labels from 0"
    )


def make_batches(
  config: Spec, source: Any, tokenizer: Any | None, process_index: int, process_count: int
) -> pipeline.Batches:
  """The training batches; with buckets, each batch holds clips of one length and size.

  Raises:
    UserError: when no clip fits a bucket.
  """
  taken = systems.buckets(config)
  # All processes look at the files, also where only one of them reads.
  hosts = buckets.Hosts(jax.process_index(), jax.process_count(), processes.summed)
  return calls.call(
    pipeline.Batches,
    config["loader"],
    "loader",
    source=source,
    parts=buckets.parts(source, taken, hosts) if taken else (),
    tokenizer=tokenizer,
    batch_size=config["train"]["batch_size"],
    seed=config["seed"],
    process_index=process_index,
    process_count=process_count,
  )


def make_formulation(config: Spec) -> formulation.Formulation:
  spec = dict(config["diffusion"])
  rule = calls.choose(tables.RULES, spec.pop("rule", "exact"), "diffusion.rule")
  pretrained = spec.pop("pretrained", None)
  diffused = calls.make(tables.DIFFUSIONS, spec, "diffusion")
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
    steps = checks.whole("config.bridge.steps", own.pop("steps", grids.STEPS), 2, MOST_STEPS)
    for key, value in own.items():
      if key != "name":
        positive = {"least": 0} if key == "beta_min" else {"above": 0}
        checks.number(f"config.bridge.{key}", value, **positive, most=MOST)
    if own.get("beta_min", 0) > own.get("beta_max", MOST):
      raise errors.UserError(
        f"config.bridge.beta_min is {own['beta_min']}, above beta_max, which is {own['beta_max']}"
      )
    bridge = calls.make(tables.PROCESSES, own, "bridge")
    with np.errstate(all="ignore"):
      known = bridge.rotation(np.linspace(0, 1, 101, dtype=np.float32))
    if not np.isfinite(known).all():
      raise errors.UserError(
        f"config.bridge is {dict(config['bridge'])}, whose coefficients are beyond what float32 holds: take "
        "numbers nearer to 1"
      )
  return formulation.Formulation(
    bridge,
    calls.choose(tables.KINDS, config["objective"]["predict"], "objective.predict"),
    diffused,
    rule,
    None if pretrained is None else calls.choose(tables.KINDS, pretrained, "diffusion.pretrained"),
    steps,
  )


def check_weight(objective: Spec) -> None:
  """Raises a UserError unless `weight_like` is a kind of prediction or None."""
  if objective.get("weight_like") is not None:
    calls.choose(tables.KINDS, objective["weight_like"], "objective.weight_like")


def make_loss(config: Spec, system: base.System, form: formulation.Formulation) -> step.LossFn:
  check_weight(config["objective"])
  spec = {k: v for k, v in config["objective"].items() if k != "predict"}
  if spec.get("regression") and not config["prior"].get("trained"):
    raise errors.UserError(
      "config.objective.regression is the weight of a neural prior that trains along: set "
      "config.prior.trained too, or leave it out"
    )

  def of(system: base.System) -> step.LossFn:
    return calls.make(tables.OBJECTIVES, spec, "objective", system=system, form=form)

  whole = of(system)
  if not systems.buckets(config):
    return whole

  def of_any_size(params: Any, frozen: Any, batch: step.Batch, keys: jax.Array) -> Any:
    _, frames, height, width, _ = batch["video"].shape
    return of(system.for_clips(frames, (height, width)))(params, frozen, batch, keys)

  return of_any_size


def make_optimizer(config: Spec, system: base.System) -> optim.Optimizer:
  """The optimizer of a config; it does not update weights that `config.trainable` leaves out."""
  trained = None  # all that the system calls its params
  if system is system.whole:
    names, anew = systems.trained_leaves(config, system)
    whole = checks.patterns("config.trainable.whole", config["trainable"].get("whole", ".*"))
    trained = set(adapters.chosen(names, whole, anew))
  return calls.call(
    optim.make_optimizer,
    config["optim"],
    "optim",
    steps=config["train"]["steps"],
    trains=lambda path: not systems.is_fixed(system, path) and (trained is None or path in trained),
  )
