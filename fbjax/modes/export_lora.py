"""Exports the low-rank additions (LoRA) of a run alone, for diffusers or ComfyUI."""

import logging
import pathlib
from typing import Any

import jax

from fbjax import build, errors, loading, places
from fbjax.port import files, lora
from fbjax.systems import adapters, base

logger = logging.getLogger(__name__)


def export(
  config: dict[str, Any], workdir: str | None, out: str, spelling: str, step: int | None, ema: bool
) -> None:
  """Writes what a run with low-rank additions has added to its network.

  Args:
    config: of the run.
    workdir: of the run.
    out: a .safetensors.
    spelling: one of `port.lora.SPELLINGS`.
    step, ema: which weights of the run, as `loading.trained_weights`.

  Raises:
    UserError: when more was trained than low-rank additions to one network, or none; or it cannot be
      written.
  """
  if not workdir:
    raise errors.UserError("low-rank additions are of a run: give --workdir=<trained run>")
  if pathlib.Path(out).suffix != ".safetensors":
    raise errors.UserError(f"--out={out}: low-rank additions are written as .safetensors")
  system = build.make_system(config, build.make_tokenizer(config))
  network = check(system, workdir)
  places.check_writable(pathlib.Path(out).absolute().parent)
  if not config["weights"]:
    logger.warning(
      "The run in %s began without pretrained weights (config.weights is empty): its additions fit no "
      "network but the random one that it drew.",
      workdir,
    )
  params, _ = loading.trained_weights(config, system, build.make_mesh(config), workdir, step, ema)
  additions = jax.jit(system.additions)(params)
  spec = system.networks[network]
  tensors = lora.tensors(
    spec.network,
    {name.removeprefix(f"{network}/"): x for name, x in additions.items()},
    spec.sizes,
    spelling,
  )
  files.write(out, tensors)
  kernels = len({key.split(".lora_")[0] for key in tensors if ".lora_" in key})
  logger.info("Wrote additions of rank %d to %d kernels to %s.", system.rank, kernels, out)


def check(system: base.System, workdir: str) -> str:
  """The name of the one network that a system trains, by low-rank additions alone.

  Raises:
    UserError: when it adds to several networks, trains whole leaves too, or adds to none.
  """
  if not isinstance(system, adapters.LoRA):
    raise errors.UserError(
      f"the run in {workdir} has no low-rank additions: export its weights, without --format, or train "
      "with a config that has :lora"
    )
  if whole := system.trained_whole:
    raise errors.UserError(
      f"the run in {workdir} trained {len(whole)} weights whole, {whole[0]} among them, which low-rank "
      "additions cannot hold: export it merged, without --format, or train from weights that need "
      "none of them, such as an image-to-video checkpoint with --config.start={}"
    )
  networks = sorted({name.split("/")[0] for name in system.added})
  if len(networks) > 1:
    raise errors.UserError(
      f"the run in {workdir} has low-rank additions to {' and '.join(networks)}, and such a file holds "
      "those of one network: export it merged, without --format"
    )
  return networks[0]
