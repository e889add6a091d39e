"""--mode=export: writes weights, low-rank additions or a whole sampler for other programs.

--format says which: `weights`, trained or ported, as a checkpoint of the code base they come from;
`lora` or `comfyui_lora`, what a run with low-rank additions has added, for diffusers or ComfyUI;
`sampler`, a program that needs nothing of this package.
"""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from fbjax import build, checkpoint, errors, lazy, loading, places, port, trees
from fbjax import weights as weights_lib
from fbjax.modes import export_lora, export_sampler, memory, sample
from fbjax.port import files, table
from fbjax.systems import base, networks

logger = logging.getLogger(__name__)

# What --out is for each --format.
FORMATS = {
  "weights": ".ckpt, .pt or .safetensors, or a folder",
  "lora": ".safetensors",
  "comfyui_lora": ".safetensors",
  "sampler": "folder",
}
LORA = {"lora": "diffusers", "comfyui_lora": "comfyui"}  # spellings of `port.lora`


def export(
  config: dict[str, Any] | None,
  workdir: str | None,
  out: str | None,
  *,
  format: str = "weights",
  model: str | None = None,
  step: int | None = None,
  ema: bool = True,
  **options: Any,
) -> None:
  """Writes what a run has learnt, or ported weights as they came.

  Args:
    config: of the weights; None takes the workdir's own.
    workdir: of a trained run; None exports what was ported.
    out: see `export_weights`, `export_lora.export` and `export_sampler.export`.
    format: one of `FORMATS`.
    model: a packed model, in place of config and workdir.
    step: of the run's checkpoint; None takes the newest.
    ema: takes the moving average of the run's weights; otherwise as the last step left them.
    options: of a sampler, None where they are not given.

  Raises:
    UserError: when there is nothing to export, or it cannot be written there.
  """
  if not out:
    raise errors.UserError(f"--mode=export needs --out=<{FORMATS[format]}>")
  if not workdir and not model and config is None:
    raise errors.UserError("--mode=export needs --workdir=<trained run>, or --config with weights")
  if format == "sampler":
    config = sample.resolve(config, workdir, model)
    export_sampler.export(config, workdir, out, step=step, ema=ema, **options)
    return
  given = {"model": model} | options
  if wrong := [name for name, value in given.items() if value is not None]:
    raise errors.UserError(f"--{wrong[0]} is for --format=sampler; this is --format={format}")
  if config is None:
    config = loading.trained_config(workdir)
  if workdir:
    checkpoint.check_trained(workdir)
  elif step is not None or not ema:
    raise errors.UserError("--step and --no-ema choose among the weights of a run: give --workdir")
  if places.is_remote(out):
    raise errors.UserError(f"--out={out}: checkpoints are written to this machine, not to a bucket")
  if spelling := LORA.get(format):
    export_lora.export(config, workdir, out, spelling, step, ema)
  else:
    export_weights(config, workdir, out, step, ema)


def export_weights(
  config: dict[str, Any], workdir: str | None, out: str, step: int | None, ema: bool
) -> None:
  """Writes the weights of a run, merged with what it has added to them, or ported ones as they came.

  Args:
    config: of the weights.
    workdir: of a trained run; None exports what was ported.
    out: a .ckpt, .pt or .safetensors with everything, or a folder with one for each network and its
      config.json, which diffusers and transformers load.
    step, ema: which weights of the run, as `export`.

  Raises:
    UserError: when there is nothing to export, or it cannot be written there.
  """
  folder = config["weights"]
  if not folder and not workdir:
    raise errors.UserError(
      "--mode=export needs --workdir=<trained run>, or --config.weights=<folder that --mode=port wrote>"
    )
  if not is_folder(out):
    places.check_writable(pathlib.Path(out).absolute().parent)
  tokenizer = build.make_tokenizer(config) if workdir else None
  whole = build.make_networks(config, tokenizer)
  if is_folder(out):
    for name, spec in whole.networks.items():
      if spec.trained:
        folder_layout(name, spec, table.layout_name(spec.network, spec.sizes))
    places.check_writable(out)
  about = weights_lib.read_about(folder)["parts"] if folder else {}
  stored = stored_tree(folder) if folder else {"networks": {}, "left": {}}
  networks_of, left = stored["networks"], stored["left"]
  if workdir:
    trained, _ = loading.merged_weights(config, workdir, step, ema)
    networks_of |= trained
  about = layouts(whole, networks_of) | about
  write(whole, networks_of, about, left, out)


def layouts(system: base.System, weights: Mapping[str, Any]) -> dict[str, dict[str, str]]:
  """Layout and prefix of trained networks as a checkpoint of all of them has them."""
  found = {}
  for name, spec in system.networks.items():
    if spec.trained and name in weights:
      layout = table.layout_name(spec.network, spec.sizes)
      found[name] = {"layout": layout, "prefix": table.prefix(spec.network, layout)}
  return found


def write(
  system: base.System,
  weights: Mapping[str, Any],
  about: Mapping[str, Any],
  left: Mapping[str, Any],
  out: str,
) -> None:
  """Writes weights in the layout and under the names of the files they were ported from.

  Args:
    system: whose networks they are.
    weights: by network, trees whose leaves have shape, dtype and np.asarray.
    about: layout and prefix of each network to write.
    left: tensors of no network, by key.
    out: see `export`.
  """
  memory.return_freed()
  # A network that was not in the files, such as a neural prior of another run, has no place there.
  held = {name: spec for name, spec in system.networks.items() if name in about and name in weights}
  tensors = {
    name: port.unfill(spec.network, weights[name], spec.sizes, about[name]["layout"], partial=True)
    for name, spec in held.items()
  }
  if others := [name for name in system.networks if name not in held]:
    logger.info(
      "Without %s, of which the run trained nothing: their own files serve on.", ", ".join(others)
    )
  if is_folder(out):
    for name, spec in held.items():
      write_folder(name, spec, about[name]["layout"], tensors[name], pathlib.Path(out))
    return
  together = {
    about[name]["prefix"] + key: x for name, own in tensors.items() for key, x in own.items()
  } | dict(left)
  pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
  files.write(out, together)
  logger.info("Wrote %d tensors to %s.", len(together), out)


def is_folder(out: str) -> bool:
  """Whether --out is a folder: whatever does not end as a checkpoint file does."""
  return out.endswith("/") or pathlib.Path(out).suffix not in files.SUFFIXES


def write_folder(
  name: str, spec: networks.NetworkSpec, layout: str, tensors: Mapping[str, Any], out: pathlib.Path
) -> None:
  """One network as diffusers or transformers keep it."""
  found = folder_layout(name, spec, layout)
  file = out / found.file
  places.check_writable(file.parent)
  (file.parent / "config.json").write_text(json.dumps(found.config(**spec.sizes), indent=2) + "\n")
  files.write(file, tensors)
  logger.info("Wrote %d tensors to %s.", len(tensors), file)


def folder_layout(name: str, spec: networks.NetworkSpec, layout: str) -> Any:
  """The layout of a network that a folder can hold.

  Raises:
    UserError: when its origin has no folders.
  """
  found = table.layout(spec.network, spec.sizes, name=layout)
  if not found.file:
    raise errors.UserError(
      f"the network {name!r} ({spec.network}) comes from one file: give --out a name in .ckpt or "
      ".safetensors"
    )
  return found


def stored_tree(folder: str) -> dict[str, Any]:
  """All that is in a folder of ported weights, read only when asked for."""
  digests = weights_lib.read_about(folder)["digests"]  # once, not for each of thousands of leaves
  read = lazy.keep_last(lambda path: weights_lib.read_leaf(folder, path, digests[path]))
  tree: dict[str, Any] = {"left": {}}
  networks = {}
  for path, like in weights_lib.stored(folder).items():
    leaf = lazy.Lazy(like.shape, like.dtype, lambda path=path: read(path))
    group, rest = path.split("/", 1)
    if group == "left":
      tree["left"][rest] = leaf
    else:
      networks[rest] = leaf
  return tree | {"networks": trees.nest(networks)}
