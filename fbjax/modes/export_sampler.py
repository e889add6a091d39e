"""Exports a sampler as one program with its weights, which runs without this package.

  sampler.jax          StableHLO by jax.export, for CPU, CUDA and TPU: see `program`
  weights.safetensors  its first argument
  sampler.json         its other arguments, and how prompts become ids

`examples/run_sampler.py` runs it.
"""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from fbjax import build, checks, errors, partition, places, sampling, trees
from fbjax import pipe as pipes
from fbjax.data import tokenizers
from fbjax.port import files
from fbjax.systems import base

logger = logging.getLogger(__name__)

PROGRAM, WEIGHTS, ABOUT = "sampler.jax", "weights.safetensors", "sampler.json"
PLATFORMS = ("cpu", "cuda", "tpu")


def export(
  config: dict[str, Any],
  workdir: str | None,
  out: str,
  *,
  step: int | None = None,
  ema: bool = True,
  size: tuple[int, int] | None = None,
  frames: int | None = None,
  **changes: Any,
) -> None:
  """Writes the sampler of a run, a packed model or ported weights, for one clip at a time.

  Args:
    config: of the weights.
    workdir: of a trained run; None takes the weights of `config.weights` as they are.
    out: the folder.
    step, ema: which weights of the run, as `pipe.Pipe`.
    size: (height, width) of the clips; None takes the config's.
    frames: of a clip; None takes the config's.
    changes: other keys of `config.sampling`, such as steps and guidance; None takes the config's.

  Raises:
    UserError: for settings that do not fit, and a folder that cannot be written or is in use.
  """
  if importlib.util.find_spec("flatbuffers") is None:  # which jax.export writes with
    raise errors.UserError("--format=sampler needs another package: pip install flatbuffers")
  if places.is_remote(out):
    raise errors.UserError(f"--out={out}: samplers are written to this machine, not to a bucket")
  if places.exists(f"{out}/{ABOUT}"):
    raise errors.UserError(f"{out} already holds a sampler; remove it or give another --out")
  pipe = pipes.Pipe(config, workdir, step=step, ema=ema)
  spec = build.sampling_options(config, **changes)
  trained_frames, trained_size = build.clip_size(config)
  frames, size = frames or trained_frames, size or trained_size
  checks.clip(frames, size)
  system = pipe.system.for_clips(frames, size)
  # Without a mesh: what runs it may have any devices.
  sample = build.make_sample(config, system, build.make_formulation(config), None, spec)
  places.check_writable(out)
  params, frozen = pipe.weights
  weights = trees.flatten({"params": params, "frozen": frozen})
  inputs = inputs_of(system, pipe.tokenizer, size)
  abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
  draw = jax.ShapeDtypeStruct((2,), np.uint32)
  with partition.for_any_platform():
    exported = jax.export.export(jax.jit(program(sample, spec.stride)), platforms=PLATFORMS)(
      abstract, inputs, draw
    )
  code = exported.serialize()
  files.write(f"{out}/{WEIGHTS}", {name: np.asarray(x) for name, x in weights.items()})
  with places.written(f"{out}/{PROGRAM}") as file:
    file.write_bytes(code)
  told = {
    "inputs": described(inputs, spec.stride),
    "output": {"shape": (frames, *size, 3), "dtype": "uint8"},
    "sampling": spec._asdict(),
    "tokenizer": ids(config, pipe.tokenizer) if "tokens" in inputs else None,
    "fps": spec.fps,
    "platforms": PLATFORMS,
    "jax": jax.__version__,
  }
  places.write_json(f"{out}/{ABOUT}", told)
  size_mb = (len(code) + sum(x.nbytes for x in weights.values())) / 1e6
  logger.info(
    "Wrote the sampler of %d frames of %dx%d to %s: %.1f MB.", frames, *size, out, size_mb
  )


def program(sample: sampling.Sample, stride: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """The sampler of one clip, of arrays alone.

  Returns:
    f(weights, inputs, draw) -> video uint8 [t, h, w, 3], whether all of it is finite. `weights` are
    leaves by path; `inputs` what `inputs_of` has, each with a leading axis of one; `draw` is the seed and
    a number of the clip's own, uint32 [2], of which the noise is a function. With the number
    zlib.crc32(image) & 0x7fffffff the clip is the one that fbjax makes of that seed.
  """

  def run(
    weights: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array], draw: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    tree = trees.nest(weights)
    batch = {name: jnp.full(1, x, jnp.int32) for name, x in untold(stride).items()} | dict(inputs)
    keys = sampling.clip_keys(draw[0], draw[1:])
    videos, finite = sample(tree["params"], tree.get("frozen", {}), batch, keys)
    return videos[0], finite[0]

  return run


def untold(stride: int) -> dict[str, int]:
  """The values of conditions that are not given: the config's stride, and no class (-1)."""
  return {"stride": stride, "label": -1}


def inputs_of(
  system: base.System, tokenizer: Any, size: tuple[int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of an exported program's inputs for one clip: the image and the network's conditions."""
  picture = jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
  number = jax.ShapeDtypeStruct((1,), np.int32)
  told = {
    "last": ("last", picture),
    "text": ("tokens", jax.ShapeDtypeStruct((1, tokenizer.length), np.int32)),
    "label": ("label", number),
    "stride": ("stride", number),
  }
  return {"image": picture} | dict(x for name, x in told.items() if name in system.conditions)


def described(inputs: Mapping[str, Any], stride: int) -> dict[str, dict[str, Any]]:
  """The inputs in plain values: shape, dtype and, where there is one, default."""
  plain = untold(stride)
  return {
    name: {"shape": x.shape, "dtype": str(x.dtype)}
    | ({"default": plain[name]} if name in plain else {})
    for name, x in inputs.items()
  }


def ids(config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
  """The tokenizer in plain values: the config's, with its length and, if it has one, word list."""
  spec = dict(config["tokenizer"]) | {"length": tokenizer.length}
  return spec | ({"words": tokenizer.words} if isinstance(tokenizer, tokenizers.Bytes) else {})
