"""CogVideoX's video autoencoder in the names of diffusers."""

from collections.abc import Sequence
from typing import Any

from fbjax import errors
from fbjax.port.leaf import Table, at, conv, linear, norm

FIXED = {
  "act_fn": "silu",
  "norm_eps": 1e-6,
  "temporal_compression_ratio": 4,
  "use_quant_conv": False,
  "use_post_quant_conv": False,
}


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.vae_video.CausalAutoencoder` from the config.json of a diffusers folder."""
  fixed = FIXED | {"out_channels": config["in_channels"]}
  for name, value in fixed.items():
    if config.get(name, value) != value:
      raise errors.UserError(
        f"the video autoencoder exists only with {name}={value}, not {config[name]}"
      )
  # Tiles are half the published size of a frame.
  return {
    "c_in": config["in_channels"],
    "c_latent": config["latent_channels"],
    "widths": tuple(config["block_out_channels"]),
    "blocks": config["layers_per_block"],
    "groups": config["norm_num_groups"],
    "tile": (config["sample_height"] // 2, config["sample_width"] // 2),
  }


def config(
  c_in: int,
  c_latent: int,
  *,
  widths: Sequence[int],
  blocks: int,
  groups: int = 32,
  tile: Sequence[int] = (240, 360),
  **_: Any,
) -> dict[str, Any]:
  """The config.json of a diffusers folder, from the arguments of the model's constructor."""
  return FIXED | {
    "_class_name": "AutoencoderKLCogVideoX",
    "in_channels": c_in,
    "out_channels": c_in,
    "down_block_types": ["CogVideoXDownBlock3D"] * len(widths),
    "up_block_types": ["CogVideoXUpBlock3D"] * len(widths),
    "block_out_channels": list(widths),
    "latent_channels": c_latent,
    "layers_per_block": blocks,
    "norm_num_groups": groups,
    "sample_height": 2 * tile[0],
    "sample_width": 2 * tile[1],
  }


def table(c_in: int, c_latent: int, *, widths: Sequence[int], blocks: int, **_: Any) -> Table:
  encoder = coder(
    c_in, 2 * c_latent, None, widths, blocks, "down_blocks.{i}", "downsamplers.0.conv"
  )
  ways_up = tuple(reversed(widths))
  decoder = coder(
    c_latent, c_in, c_latent, ways_up, blocks + 1, "up_blocks.{i}", "upsamplers.0.conv"
  )
  return at("encoder", "encoder", encoder) + at("decoder", "decoder", decoder)


def coder(
  c_in: int,
  c_out: int,
  c_latent: int | None,
  widths: Sequence[int],
  blocks: int,
  level: str,
  resample: str,
) -> Table:
  """The encoder, or the decoder where `c_latent` is given; levels in the order of their use."""
  c, middle = widths[0], widths[0] if c_latent else widths[-1]
  leaves = causal_conv("in_conv", "conv_in", c_in, c)
  for i, width in enumerate(widths):
    rows = []
    for j in range(blocks):
      rows += at(f"blocks/{j}", f"resnets.{j}", res_block(c, width, c_latent))
      c = width
    if i < len(widths) - 1:
      rows += at("resample/conv", resample, conv(c, c, 3, 3))
    leaves += at(f"levels/{i}", level.format(i=i), rows)
  for j in range(2):
    block = res_block(middle, middle, c_latent)
    leaves += at(f"middle/blocks/{j}", f"mid_block.resnets.{j}", block)
  leaves += at("out_norm", "norm_out", latent_norm(c, c_latent))
  return leaves + causal_conv("out_conv", "conv_out", c, c_out)


def res_block(c_in: int, c_out: int, c_latent: int | None) -> Table:
  leaves = at("norm1", "norm1", latent_norm(c_in, c_latent))
  leaves += causal_conv("conv1", "conv1", c_in, c_out)
  leaves += at("norm2", "norm2", latent_norm(c_out, c_latent))
  leaves += causal_conv("conv2", "conv2", c_out, c_out)
  return leaves + (
    at("skip", "conv_shortcut", linear(c_in, c_out, ones=3)) if c_in != c_out else []
  )


def causal_conv(path: str, key: str, c_in: int, c_out: int) -> Table:
  return at(f"{path}/conv", f"{key}.conv", conv(c_in, c_out, 3, 3, 3))


def latent_norm(c: int, c_latent: int | None) -> Table:
  if c_latent is None:
    return [leaf._replace(path=f"norm/{leaf.path}") for leaf in norm(c)]
  leaves = at("norm", "norm_layer", norm(c))
  leaves += at("scale", "conv_y.conv", linear(c_latent, c, ones=3))
  return leaves + at("shift", "conv_b.conv", linear(c_latent, c, ones=3))
