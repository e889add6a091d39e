"""The weights that a mode works with: what a run starts from, and what a run has trained."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from fbjax import box, build, checkpoint, digest, errors, places, sharding, start, trees
from fbjax import weights as weights_lib
from fbjax import workdir as workdir_lib
from fbjax.systems import base, neural_prior

logger = logging.getLogger(__name__)

Spec = Mapping[str, Any]
PRIOR = "prior"  # folder of a workdir with the neural prior that the run has begun with


class Starting(NamedTuple):
  """What a run starts from, on a mesh.

  params: reads or draws the weights that train; called for a new run alone.
  frozen: the weights that do not train.
  origin: digests of the folders they came from, for the workdir's identity.
  """

  params: Callable[[], base.Params]
  frozen: base.Params
  origin: dict[str, Any]


def starting_weights(
  config: Spec,
  system: base.System,
  mesh: jax.sharding.Mesh,
  workdir: str | None = None,
  *,
  complete: bool = False,
  encoders: bool = True,
) -> Starting:
  """The weights of a config before its first step, by `config.weights`, `start` and `prior_run`.

  Args:
    config: of the run.
    system: of the config, from `build.make_system`.
    mesh: where the weights are to be.
    workdir: of the run, which keeps the neural prior that it has begun with.
    complete: refuse weights of which any leaf would start anew, as sampling without training must.
    encoders: read the system's encoders too, which a training from a cache does without.

  Raises:
    UserError: for folders that do not fit the config; names every leaf.
  """
  folder, seed, chosen = config["weights"], config["seed"], system.whole.starts
  elsewhere = build.of_prior_run(config, system)
  check_frozen(config, system, chosen)
  if complete:
    check_complete(folder, system, chosen)
  # Leaves of networks that another run has trained are neither read nor drawn here.
  absent = (*elsewhere, *(() if encoders else system.encoders))
  here = lambda tree: {name: x for name, x in tree.items() if name not in absent}  # noqa: E731

  def frozen_init(key: jax.Array) -> base.Params:
    return here(system.init_frozen(key))

  dtype = build.DTYPES[config["system"]["dtype"]]
  like = halved(jax.eval_shape(frozen_init, jax.random.key(0)), dtype)
  frozen = start.load(frozen_init, like, chosen, folder, mesh, jax.random.key(seed))

  def params() -> base.Params:
    like = jax.eval_shape(system.init, jax.random.key(0))
    return start.load(system.init, like, chosen, folder, mesh, jax.random.key(seed))

  origin: dict[str, Any] = {}
  if folder:
    origin["weights"] = weights_lib.read_about(folder)["digest"]
    logger.info("Weights of %s.", folder)
  if elsewhere:
    found, origin["prior_run"] = prior_weights(config, system, mesh, workdir)
    frozen = frozen | found
  return Starting(params, frozen, origin)


def frozen_networks(
  config: Spec, system: base.System, mesh: jax.sharding.Mesh, names: Iterable[str]
) -> base.Params:
  """Some of the frozen networks of a config before its first step, as `starting_weights` has them.

  Raises:
    UserError: as `starting_weights`.
  """
  chosen, names = system.whole.starts, tuple(names)
  check_frozen(config, system, {k: x for k, x in chosen.items() if k.split("/")[0] in names})

  def init(key: jax.Array) -> base.Params:
    return {name: x for name, x in system.whole.init_frozen(key).items() if name in names}

  like = halved(jax.eval_shape(init, jax.random.key(0)), build.DTYPES[config["system"]["dtype"]])
  return start.load(init, like, chosen, config["weights"], mesh, jax.random.key(config["seed"]))


def halved(shapes: base.Params, dtype: Any) -> base.Params:
  """Shapes with kernels and embeddings in `dtype`; other leaves, such as norms, keep theirs."""
  flat = trees.flatten(shapes)
  matrices = {k for k in flat if k.split("/")[-1] in ("kernel", "embedding")}
  return trees.nest(
    {k: jax.ShapeDtypeStruct(x.shape, dtype if k in matrices else x.dtype) for k, x in flat.items()}
  )


def check_frozen(config: Spec, system: base.System, chosen: Mapping[str, start.Source]) -> None:
  """Raises a UserError if leaves of frozen networks are not in the folder of ported weights.

  Without a folder they are all drawn at random, which is only warned of.
  """
  frozen = [p for p in chosen if not system.networks[p.split("/")[0]].trained]
  anew = [p for p in frozen if chosen[p] != "stored"]
  if anew and config["weights"]:
    raise errors.UserError(
      f"{len(anew)} weights of frozen networks would start anew and never train, {anew[0]} among "
      f"them: port a checkpoint that holds them into {config['weights']}"
    )
  if anew:
    logger.warning(
      "Frozen networks (%s) are drawn at random, good for trying out only: set config.weights, or "
      "config.prior_run for a neural prior.",
      ", ".join(dict.fromkeys(path.split("/")[0] for path in anew)),
    )


def check_complete(folder: str, system: base.System, chosen: Mapping[str, start.Source]) -> None:
  """Raises a UserError unless every leaf, constants aside, is in the folder of ported weights."""
  anew = [p for p, source in chosen.items() if source != "stored" and not build.is_fixed(system, p)]
  if anew:
    raise errors.UserError(
      f"{folder or 'this config'} lacks {len(anew)} of the weights to sample with, {anew[0]} among "
      "them: they start anew, in training. Give the --workdir of a trained run, or a config whose "
      "weights were ported from a trained checkpoint"
    )


def prior_weights(
  config: Spec, system: base.System, mesh: jax.sharding.Mesh, workdir: str | None = None
) -> tuple[base.Params, str]:
  """The neural prior trained in the workdir `config.prior_run`: its EMA weights and their digest.

  It was trained alone, or jointly with a network that is conditioned on its video. A resumed run
  reads its own copy (`keep_prior`), so that further training in `prior_run` does not change it.

  Raises:
    UserError: when nothing was trained there; when it was trained in other sizes, or by low-rank
      additions; or when `config.prior.trained` asks for a new one.
  """
  if config["prior"]["trained"]:
    raise errors.UserError(
      "config.prior.trained trains a new neural prior: leave config.prior_run empty"
    )
  if workdir and _has_kept_prior(workdir, config):
    names = neural_prior.names_in(system.networks)
    wanted = {name: system.networks[name].shapes() for name in names}
    found = averaged_weights(f"{workdir}/{PRIOR}", wanted, mesh)
  else:
    found = _trained_prior(config, system, mesh)
  told = "".join(digest.of_tree(found).values())
  return found, hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _has_kept_prior(workdir: str, config: Spec) -> bool:
  """Whether a run has its own copy of the neural prior that its config names."""
  if not (checkpoint.steps(workdir) and checkpoint.steps(f"{workdir}/{PRIOR}")):
    return False
  named = (x["prior_run"].rstrip("/") for x in (workdir_lib.read_config(workdir), config))
  return len(set(named)) == 1


def keep_prior(workdir: str, frozen: base.Params) -> None:
  """Copies the frozen neural prior of a new run, if it has one, into its workdir."""
  names = neural_prior.names_in(frozen)
  if names:
    home = places.absolute(workdir) / PRIOR
    if jax.process_index() == 0 and home.exists():  # of a start that was killed
      home.rmtree()
    multihost_utils.sync_global_devices("the workdir has no prior")
    with contextlib.closing(checkpoint.Checkpoints(f"{workdir}/{PRIOR}")) as kept:
      kept.save(0, {"ema": {name: frozen[name] for name in names}}, 0)


def _trained_prior(config: Spec, system: base.System, mesh: jax.sharding.Mesh) -> base.Params:
  """The networks of a neural prior by their names in `system`, from the run that has trained them."""
  workdir = config["prior_run"]
  theirs = workdir_lib.read_config(workdir)
  if theirs["trainable"].get("lora"):
    raise errors.UserError(
      f"the neural prior in {workdir} was trained by low-rank additions; give one of which all was "
      "trained"
    )
  name, ours = theirs["system"]["name"], config["system"]["name"]
  if name != f"{ours}_prior" and not (name == ours and theirs["prior"].get("trained")):
    raise errors.UserError(
      f"config.prior_run: the run in {workdir} trained {name!r} and no neural prior for {ours!r}; name "
      f"a run whose config.system.name is '{ours}_prior', or that had config.prior.trained"
    )
  made = build.make_networks(theirs, build.make_tokenizer(theirs)).networks
  names = {
    n: n if n in made else n.removeprefix(neural_prior.PREFIX)
    for n in neural_prior.names_in(system.networks)
  }
  differing = [
    f"{name}.{key}: {there!r} there, {here!r} here"
    for ours, name in names.items()
    for key, there, here in workdir_lib.changes(
      json.loads(json.dumps(dict(made[name].sizes))), dict(system.networks[ours].sizes)
    )
  ]
  if differing:
    raise errors.UserError(
      f"the neural prior in {workdir} has other sizes than config.prior asks for: "
      f"{'; '.join(differing)}"
    )
  wanted = {name: made[name].shapes() for name in names.values()}
  found = averaged_weights(workdir, wanted, mesh)
  return {ours: found[name] for ours, name in names.items()}


def trained_config(workdir: str) -> dict[str, Any]:
  """The config that a workdir was trained with.

  A mesh that this machine's devices do not make is replaced by data parallelism over all of them.

  Raises:
    UserError: when nothing was trained there, or the config is not one of this version.
  """
  return _for_this_machine(workdir_lib.read_config(workdir))


def packed_config(folder: str) -> dict[str, Any]:
  """The config of a model that --mode=pack wrote, with `weights` set to its folder.

  Its mesh is replaced as by `trained_config`.

  Raises:
    UserError: when the folder holds none, or not one of this version.
  """
  folder = box.find(folder)
  if not weights_lib.is_packed(folder):
    what = (
      "is a workdir: give it as --workdir"
      if places.exists(f"{folder}/checkpoints")
      else ("holds no model that --mode=pack wrote, such as zoo/shapes")
    )
    raise errors.UserError(f"{folder} {what}")
  return _for_this_machine(workdir_lib.read_config(folder)) | {"weights": folder}


def _for_this_machine(config: dict[str, Any]) -> dict[str, Any]:
  build.check(config)
  try:
    build.make_mesh(config)
  except errors.UserError:
    config["mesh"] = {"data": -1, "fsdp": 1}
  return config


def trained_weights(
  config: Spec,
  system: base.System,
  mesh: jax.sharding.Mesh,
  workdir: str,
  step: int | None = None,
  ema: bool = True,
) -> tuple[base.Params, base.Params]:
  """The weights of a run: what its system trains, and what it keeps frozen.

  Args:
    config: of the run.
    system: of the config.
    mesh: the devices.
    workdir: of the run.
    step: of the checkpoint; None takes the newest.
    ema: the moving average of what trains; otherwise as the last step left it.

  Raises:
    UserError: when the workdir holds no such checkpoint, or is of a run that began with others.
  """
  starting = starting_weights(config, system, mesh, workdir)
  workdir_lib.check(workdir, config, starting.origin)
  wanted = jax.eval_shape(system.init, jax.random.key(0))
  params = _restored(workdir, "ema" if ema else "params", wanted, mesh, step)
  return params, starting.frozen


def merged_weights(
  config: Spec, workdir: str, step: int | None = None, ema: bool = True
) -> tuple[base.Params, base.Params]:
  """Restores the full networks of a run: (trained, frozen), each by network, in float32.

  Low-rank additions are merged into their kernels.

  Args:
    config: of the run.
    workdir: of the run.
    step, ema: as `trained_weights`.

  Raises:
    UserError: as `trained_weights`.
  """
  exact = dict(config) | {"system": config["system"] | {"dtype": "float32"}}
  system = build.make_system(exact, build.make_tokenizer(config))
  mesh = build.make_mesh(config)
  params, frozen = trained_weights(exact, system, mesh, workdir, step, ema)
  untouched = {name: x for name, x in frozen.items() if name in system.networks}
  return jax.jit(system.weights)(params, frozen), untouched


def averaged_weights(workdir: str, wanted: Any, mesh: jax.sharding.Mesh) -> base.Params:
  """Selected leaves of the averaged weights (EMA) of the newest step, placed on the mesh.

  Args:
    workdir: of a run.
    wanted: tree of shapes, a part of the run's params.
    mesh: the devices.

  Raises:
    UserError: when the workdir holds no checkpoint.
  """
  return _restored(workdir, "ema", wanted, mesh)


def _restored(
  workdir: str, field: str, wanted: Any, mesh: jax.sharding.Mesh, step: int | None = None
) -> base.Params:
  shapes = {field: wanted}
  placed = sharding.placed(shapes, sharding.tree(shapes, mesh))
  step, found = checkpoint.load(workdir, placed, step)
  logger.info("Restored step %d of %s.", step, workdir)
  return found[field]
