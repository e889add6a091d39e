"""Latte's DiT naming: even `blocks` are spatial, odd ones temporal; the neural prior has a prefix."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fbjax import errors
from fbjax.port.leaf import Leaf, Table, at, embedding, linear, same

# A file trained with the denoising loss pairs the prior with a diffusion network.
PREFIX = "diffusion_model."
PRIOR_PREFIX = "nwarp_model."
PRIOR_LEFT_OVER = (r"diffusion_model\..*",)

SIZES = {  # width, depth, heads
  "S": (384, 12, 6),
  "B": (768, 12, 12),
  "L": (1024, 24, 16),
  "XL": (1152, 28, 16),
}
TIME_CHANNELS = 256


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.latte.Latte` from a published config.

  The config of a neural prior gives those of the diffusion network that it is trained with: twice
  the input channels, as the prior's video is concatenated to the noisy one.
  """
  ours = _sizes(config)
  if config.get("model_stage") == "nwarp" or config.get("use_pretrained_nwarp"):
    ours["c_in"] *= 2
  if config.get("condition_type") == "concat_pre":
    ours["frames"] += 1
  return ours


def prior_sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.latte.NeuralPrior` from a published config."""
  return _sizes(config)


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
  fixed = {"condition_type": (None, "concat_pre"), "extras": (1, 2), "dct_domain": (None, False)}
  for name, values in fixed.items():
    if name in config and config[name] not in values:
      known = " or ".join(map(repr, values))
      raise errors.UserError(
        f"Latte exists only with {name} {known}, the config says {config[name]!r}"
      )
  named = re.fullmatch(r"Latte(?:-nwarp)?-(S|B|L|XL)/(\d+)", str(config.get("model")))
  if named:
    (width, depth, heads), patch = SIZES[named[1]], int(named[2])
  else:
    width, depth, heads, patch = (
      config[name] for name in ("hidden_size", "depth", "num_heads", "patch_size")
    )
  c = config.get("in_channels", 4)
  return {
    "c_in": c,
    "c_out": 2 * c if config["learn_sigma"] else c,
    "size": config["input_size"],
    "frames": config["num_frames"],
    "width": width,
    "depth": depth,
    "heads": heads,
    "patch": patch,
    "classes": config["num_classes"] if config.get("extras", 1) == 2 else None,
    "mult": round(config.get("mlp_ratio", 4)),
  }


def table(
  c_in: int,
  c_out: int,
  *,
  size: int,
  frames: int,
  width: int,
  depth: int,
  patch: int = 2,
  classes: int | None = None,
  text: int | None = None,
  timed: bool = True,
  mult: int = 4,
  **_: Any,
) -> Table:
  side, area = size // patch, patch * patch
  places = (1, side * side, width)
  leaves = [
    Leaf("positions/space", "pos_embed", places, (0, 1, 2), (side, side, width)),
    Leaf("positions/time", "temp_embed", (1, frames, width), (0, 1, 2), (frames, width)),
  ]
  # A convolution of patch by patch with that stride is a matrix for patches laid out i, j, c.
  kernel = Leaf("kernel", "weight", (width, c_in, patch, patch), (2, 3, 1, 0), (area * c_in, width))
  leaves += at("patches", "x_embedder.proj", [kernel, *same("bias", "bias", width)])
  if timed:
    leaves += at("time/up", "t_embedder.mlp.0", linear(TIME_CHANNELS, width))
    leaves += at("time/out", "t_embedder.mlp.2", linear(width, width))
  if classes is not None:
    leaves += at("label", "y_embedder.embedding_table", embedding(classes + 1, width))
  if text is not None:  # a name of ours: no published Latte is told a text so
    leaves += at("text", "text_embedder", linear(text, width))
  for i in range(depth):
    kind = "temporal" if i % 2 else "spatial"
    leaves += at(f"pairs[{i // 2}]/{kind}", f"blocks.{i}", block(width, mult))
  leaves += at("head/modulation", "final_layer.adaLN_modulation.1", linear(width, 2 * width))
  return leaves + at("head/out", "final_layer.linear", linear(width, area * c_out))


def prior_table(c_in: int, c_out: int, **sizes: Any) -> Table:
  leaves = table(c_in, c_out, **sizes, timed=False)
  return [leaf._replace(path=f"latte/{leaf.path}") for leaf in leaves]


def block(c: int, mult: int) -> Table:
  leaves = at("modulation", "adaLN_modulation.1", linear(c, 6 * c))
  leaves += at("qkv", "attn.qkv", linear(c, 3 * c)) + at("out", "attn.proj", linear(c, c))
  leaves += at("mlp_up", "mlp.fc1", linear(c, mult * c))
  return leaves + at("mlp_down", "mlp.fc2", linear(mult * c, c))


def from_diffusion(
  tensors: Mapping[str, Any], *, c_out: int, frames: int, patch: int = 2, **_: Any
) -> tuple[dict[str, Any], dict[str, str]]:
  """Adapts the tensors of a diffusion Latte to these sizes; returns them, and {key: what was done}.

  The head's rows for a learned variance are cut (at each place of a patch they follow those of the
  mean). A temporal position table that is too short is padded in front with copies of its first
  row. Tensors that fit are not changed.
  """
  area = patch * patch
  ours, done = dict(tensors), {}
  for key, x in tensors.items():
    shape = tuple(np.shape(x))
    if re.search(r"final_layer\.linear\.(weight|bias)$", key) and shape[0] == 2 * area * c_out:
      rows = np.asarray(x).reshape(area, 2 * c_out, *shape[1:])[:, :c_out]
      ours[key] = rows.reshape(area * c_out, *shape[1:])
      done[key] = f"{area * c_out} of {shape[0]} rows left, those of the learned variance cut"
    elif key.endswith("temp_embed") and shape[1] < frames:
      more = frames - shape[1]
      ours[key] = np.concatenate([np.repeat(np.asarray(x)[:, :1], more, 1), x], 1)
      done[key] = f"{shape[1]} frames became {frames}: the first is repeated in front"
  return ours, done
