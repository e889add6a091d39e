"""Checkpoints with the structure and every key of the published ones, and random values."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fbjax import lazy
from fbjax.port import files, table
from fbjax.systems import base


def random(key: str, shape: tuple[int, ...], dtype: Any = np.float16) -> lazy.Lazy:
  """A tensor drawn from its name, when it is asked for."""

  def draw() -> np.ndarray:
    rng = np.random.default_rng([ord(c) for c in key])
    size = int(np.prod(shape))
    # A block repeated, for gigabytes of normal draws take minutes; too long a block for compression
    # to see that it is repeated, because weights hardly compress.
    block = rng.standard_normal(min(size, 2**22), np.float32) * np.float32(0.05)
    return np.resize(block.astype(dtype), shape)

  return lazy.Lazy(shape, dtype, draw)


def tensors(part: Any, prefix: str, **changes: Any) -> dict[str, lazy.Lazy]:
  sizes = dict(part.sizes) | changes
  leaves = table.layout(part.network, sizes).leaves(sizes)
  return {prefix + leaf.key: random(prefix + leaf.key, leaf.shape) for leaf in leaves}


def text_to_video(system: base.System) -> dict[str, lazy.Lazy]:
  """What VideoCrafter1's text-to-video checkpoint holds: a UNet without image, VAE, OpenCLIP text."""
  unet = system.networks["unet"]
  found = tensors(
    unet,
    "model.diffusion_model.",
    c_in=unet.sizes["c_out"],
    image_attention=False,
    stride_embedding=False,
  )
  found |= tensors(system.networks["vae"], "first_stage_model.")
  found |= tensors(system.networks["text"], "cond_stage_model.model.")
  buffers = ("betas", "alphas_cumprod", "scale_arr")
  return found | {name: random(name, (1000,), np.float32) for name in buffers}


def open_clip(system: base.System) -> dict[str, lazy.Lazy]:
  """OpenCLIP's own file: the image network, and the text network beside it."""
  found = tensors(system.networks["image"], "")
  return found | {k: x for k, x in tensors(system.networks["text"], "").items() if k not in found}


def write(folder: pathlib.Path, contents: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Writes files by name; returns their paths."""
  for name, held in contents.items():
    files.write(folder / name, held)
  return [str(folder / name) for name in contents]
