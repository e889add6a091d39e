"""Stable Diffusion's autoencoder in the names of the original (LDM) and in those of diffusers.

The original counts the decoder's levels from the finest, diffusers in the order of their use.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fbjax import errors
from fbjax.port.leaf import Table, at, conv, linear, norm

PREFIX = "first_stage_model."


class Names(NamedTuple):
  """Module names of one of the two conventions; {i} is a level, {j} a block."""

  down: str
  downsample: str
  up: str
  upsample: str
  from_finest: bool  # the decoder's level 0 is the finest
  block: str
  skip: str
  middle: str
  middle_blocks: tuple[str, str]
  attn: str
  attn_norm: str
  attn_linears: tuple[str, str, str, str]
  attn_ones: int  # axes of length one behind the attention's matrices
  out_norm: str


LDM = Names(
  down="down.{i}",
  downsample="downsample.conv",
  up="up.{i}",
  upsample="upsample.conv",
  from_finest=True,
  block="block.{j}",
  skip="nin_shortcut",
  middle="mid",
  middle_blocks=("block_1", "block_2"),
  attn="attn_1",
  attn_norm="norm",
  attn_linears=("q", "k", "v", "proj_out"),
  attn_ones=2,
  out_norm="norm_out",
)
DIFFUSERS = Names(
  down="down_blocks.{i}",
  downsample="downsamplers.0.conv",
  up="up_blocks.{i}",
  upsample="upsamplers.0.conv",
  from_finest=False,
  block="resnets.{j}",
  skip="conv_shortcut",
  middle="mid_block",
  middle_blocks=("resnets.0", "resnets.1"),
  attn="attentions.0",
  attn_norm="group_norm",
  attn_linears=("to_q", "to_k", "to_v", "to_out.0"),
  attn_ones=0,
  out_norm="conv_norm_out",
)
DIFFUSERS_ALIASES = (
  (r"(attentions\.0\.)query\.", r"\1to_q."),
  (r"(attentions\.0\.)key\.", r"\1to_k."),
  (r"(attentions\.0\.)value\.", r"\1to_v."),
  (r"(attentions\.0\.)proj_attn\.", r"\1to_out.0."),
)


def ldm_sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.vae_image.AutoencoderKL` from the `params` of a published yaml file."""
  c = config["ddconfig"]
  fixed = {"double_z": True, "z_channels": config["embed_dim"], "out_ch": c["in_channels"]}
  for name, value in fixed.items():
    if c[name] != value:
      raise errors.UserError(f"the autoencoder exists only with {name}={value}, not {c[name]}")
  if c["attn_resolutions"]:
    raise errors.UserError(
      "the autoencoder attends in the middle only: attn_resolutions must be []"
    )
  return {
    "c_in": c["in_channels"],
    "c_latent": c["z_channels"],
    "width": c["ch"],
    "mult": tuple(c["ch_mult"]),
    "blocks": c["num_res_blocks"],
  }


def diffusers_sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.vae_image.AutoencoderKL` from the config.json of a diffusers folder."""
  widths = config["block_out_channels"]
  if any(width % widths[0] for width in widths):
    raise errors.UserError(f"block_out_channels {widths} must be multiples of the first")
  return {
    "c_in": config["in_channels"],
    "c_latent": config["latent_channels"],
    "width": widths[0],
    "mult": tuple(width // widths[0] for width in widths),
    "blocks": config["layers_per_block"],
    "groups": config.get("norm_num_groups", 32),
  }


def ldm_table(**sizes: Any) -> Table:
  return table(LDM, **sizes)


def diffusers_table(**sizes: Any) -> Table:
  return table(DIFFUSERS, **sizes)


def table(
  names: Names,
  c_in: int,
  c_latent: int,
  *,
  width: int,
  mult: Sequence[int],
  blocks: int,
  **_: Any,
) -> Table:
  n = len(mult)

  def level(i: int, c: int, count: int, key: str, resample: str) -> Table:
    leaves = []
    for j in range(count):
      block = res_block(names, c if j == 0 else mult[i] * width, mult[i] * width)
      leaves += at(f"blocks/{j}", f"{key}.{names.block.format(j=j)}", block)
    if resample:
      leaves += at(
        "resample/conv", f"{key}.{resample}", conv(mult[i] * width, mult[i] * width, 3, 3)
      )
    return leaves

  encoder = at("in_conv", "conv_in", conv(c_in, width, 3, 3))
  for i in range(n):
    c = width * (mult[i - 1] if i else 1)
    resample = names.downsample if i < n - 1 else ""
    leaves = level(i, c, blocks, names.down.format(i=i), resample)
    encoder += [leaf._replace(path=f"levels/{i}/{leaf.path}") for leaf in leaves]
  encoder += middle(names, mult[-1] * width)
  encoder += at("out_norm", names.out_norm, norm(mult[-1] * width))
  encoder += at("out_conv", "conv_out", conv(mult[-1] * width, 2 * c_latent, 3, 3))

  decoder = at("in_conv", "conv_in", conv(c_latent, mult[-1] * width, 3, 3))
  decoder += middle(names, mult[-1] * width)
  for step, i in enumerate(reversed(range(n))):
    c = width * mult[min(i + 1, n - 1)]
    key = names.up.format(i=i if names.from_finest else step)
    leaves = level(i, c, blocks + 1, key, names.upsample if i else "")
    decoder += [leaf._replace(path=f"levels/{step}/{leaf.path}") for leaf in leaves]
  decoder += at("out_norm", names.out_norm, norm(mult[0] * width))
  decoder += at("out_conv", "conv_out", conv(mult[0] * width, c_in, 3, 3))

  leaves = at("encoder", "encoder", encoder) + at("decoder", "decoder", decoder)
  leaves += at("moments", "quant_conv", linear(2 * c_latent, 2 * c_latent, ones=2))
  return leaves + at("latent", "post_quant_conv", linear(c_latent, c_latent, ones=2))


def res_block(names: Names, c_in: int, c_out: int) -> Table:
  leaves = at("norm1", "norm1", norm(c_in)) + at("conv1", "conv1", conv(c_in, c_out, 3, 3))
  leaves += at("norm2", "norm2", norm(c_out)) + at("conv2", "conv2", conv(c_out, c_out, 3, 3))
  return leaves + (at("skip", names.skip, conv(c_in, c_out, 1, 1)) if c_in != c_out else [])


def middle(names: Names, c: int) -> Table:
  attn = at("norm", names.attn_norm, norm(c))
  for ours, theirs in zip(("q", "k", "v", "out"), names.attn_linears, strict=True):
    attn += at(ours, theirs, linear(c, c, ones=names.attn_ones))
  leaves = at("block1", names.middle_blocks[0], res_block(names, c, c))
  leaves += at("attn", names.attn, attn)
  leaves += at("block2", names.middle_blocks[1], res_block(names, c, c))
  return at("middle", names.middle, leaves)
