"""VideoCrafter's UNet: `input_blocks`, `middle_block`, `output_blocks`, and what fills them."""

from collections.abc import Sequence
from typing import Any

from fbjax import errors
from fbjax.port.leaf import Table, at, conv, linear, norm, same

PREFIX = "model.diffusion_model."
ALIASES = ((r"^framestride_embed\.", "fps_embedding."),)  # early DynamiCrafter files


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.unet3d.UNet3D` from the `params` of a published yaml file."""
  c = dict(config)
  fixed = {"use_linear": True, "temporal_attention": True}
  for name, value in fixed.items():
    if c.get(name, value) != value:
      raise errors.UserError(
        f"the UNet exists only with {name}={value}, and the config says {c[name]}"
      )
  if c.get("num_head_channels", -1) < 1:
    raise errors.UserError("the UNet needs num_head_channels: the width of an attention head")
  factors = c["attention_resolutions"]
  return {
    "c_in": c["in_channels"],
    "c_out": c["out_channels"],
    "width": c["model_channels"],
    "mult": tuple(c["channel_mult"]),
    "blocks": c["num_res_blocks"],
    "attention_levels": tuple(i for i in range(len(c["channel_mult"])) if 2**i in factors),
    "head_dim": c["num_head_channels"],
    "context_dim": c["context_dim"],
    "depth": c.get("transformer_depth", 1),
    "image_attention": c.get("image_cross_attention", False),
    "stride_embedding": c.get("fs_condition", c.get("fps_cond", False)),
    "default_stride": c.get("default_fs", 3),
    "temporal_conv": c.get("temporal_conv", False),
    "init_attention": c.get("addition_attention", False),
    "positions": c["temporal_length"] if c.get("use_relative_position") else 0,
    "causal": c.get("use_causal_attention", False),
    "dropout": c.get("dropout", 0.0),
  }


def table(
  c_in: int,
  c_out: int,
  *,
  width: int,
  mult: Sequence[int],
  blocks: int,
  attention_levels: Sequence[int],
  head_dim: int,
  context_dim: int,
  depth: int = 1,
  image_attention: bool = False,
  stride_embedding: bool = True,
  temporal_conv: bool = True,
  init_attention: bool = True,
  positions: int = 0,
  **_: Any,  # what leaves no trace in the shapes: dropout, groups, ...
) -> Table:
  emb = 4 * width

  def stage(path: str, key: str, c_in: int, c_out: int, attention: bool) -> Table:
    leaves = at(f"{path}/res", f"{key}.0", res_block(c_in, c_out, emb, temporal_conv))
    if attention:
      leaves += at(f"{path}/spatial", f"{key}.1", spatial(c_out))
      leaves += at(f"{path}/temporal", f"{key}.2", temporal(c_out, c_out))
    return leaves

  def spatial(c: int) -> Table:
    attn1 = attention(c, c)
    attn2 = attention(c, context_dim)
    if image_attention:
      attn2 += at("image_k", "to_k_ip", linear(context_dim, c, bias=False))
      attn2 += at("image_v", "to_v_ip", linear(context_dim, c, bias=False))
      attn2 += same("alpha", "alpha")
    return transformer(c, c, attn1, attn2, depth)

  def temporal(c: int, c_inner: int, ones: int = 0) -> Table:
    attn = attention(c_inner, c_inner)
    if positions:
      shape = (2 * positions + 1, head_dim)
      attn += same("key_table", "relative_position_k.embeddings_table", *shape)
      attn += same("value_table", "relative_position_v.embeddings_table", *shape)
    return transformer(c, c_inner, attn, attn, depth, ones)

  leaves = at("time", "time_embed", embed(width, emb))
  if stride_embedding:
    leaves += at("stride", "fps_embedding", embed(width, emb))
  leaves += at("in_conv", "input_blocks.0.0", conv(c_in, width, 3, 3))
  if init_attention:
    leaves += at("in_attention", "init_attn.0", temporal(width, 8 * head_dim, ones=1))

  c, skips = width, [width]
  for level, m in enumerate(mult):
    for _ in range(blocks):
      n = len(skips)
      leaves += stage(f"down/{n - 1}", f"input_blocks.{n}", c, m * width, level in attention_levels)
      c = m * width
      skips.append(c)
    if level < len(mult) - 1:
      n = len(skips)
      leaves += at(f"down/{n - 1}/resample/conv", f"input_blocks.{n}.0.op", conv(c, c, 3, 3))
      skips.append(c)

  leaves += stage("middle/0", "middle_block", c, c, True)
  leaves += at("middle/1/res", "middle_block.3", res_block(c, c, emb, temporal_conv))

  n = 0
  for level, m in reversed(list(enumerate(mult))):
    for i in range(blocks + 1):
      attends = level in attention_levels
      leaves += stage(f"up/{n}", f"output_blocks.{n}", c + skips.pop(), m * width, attends)
      c = m * width
      if level > 0 and i == blocks:
        key = f"output_blocks.{n}.{3 if attends else 1}.conv"
        leaves += at(f"up/{n}/resample/conv", key, conv(c, c, 3, 3))
      n += 1
  leaves += at("out_norm", "out.0", norm(c))
  return leaves + at("out_conv", "out.2", conv(c, c_out, 3, 3))


def embed(c: int, c_out: int) -> Table:
  return at("up", "0", linear(c, c_out)) + at("out", "2", linear(c_out, c_out))


def res_block(c_in: int, c_out: int, c_emb: int, temporal: bool) -> Table:
  leaves = at("in_norm", "in_layers.0", norm(c_in))
  leaves += at("in_conv", "in_layers.2", conv(c_in, c_out, 3, 3))
  leaves += at("emb", "emb_layers.1", linear(c_emb, c_out))
  leaves += at("out_norm", "out_layers.0", norm(c_out))
  leaves += at("out_conv", "out_layers.3", conv(c_out, c_out, 3, 3))
  if c_in != c_out:
    leaves += at("skip", "skip_connection", conv(c_in, c_out, 1, 1))
  for i in range(4 if temporal else 0):
    key = f"temopral_conv.conv{i + 1}"  # spelt so in every file
    leaves += at(f"temporal/norms/{i}", f"{key}.0", norm(c_out))
    # Dropout pushes the convolution one place further in all but the first.
    weights = conv(c_out, c_out, 3, 1, 1, drop=2)
    leaves += at(f"temporal/convs/{i}", f"{key}.{3 if i else 2}", weights)
  return leaves


def attention(c: int, c_context: int) -> Table:
  leaves = at("q", "to_q", linear(c, c, bias=False))
  leaves += at("k", "to_k", linear(c_context, c, bias=False))
  leaves += at("v", "to_v", linear(c_context, c, bias=False))
  return leaves + at("out", "to_out.0", linear(c, c))


def transformer(
  c: int, c_inner: int, attn1: Table, attn2: Table, depth: int, ones: int = 0
) -> Table:
  leaves = at("norm", "norm", norm(c)) + at("proj_in", "proj_in", linear(c, c_inner, ones=ones))
  for i in range(depth):
    block = at("attn1", "attn1", attn1) + at("attn2", "attn2", attn2)
    for name in ("norm1", "norm2", "norm3"):
      block += at(name, name, norm(c_inner))
    block += at("ff/up", "ff.net.0.proj", linear(c_inner, 8 * c_inner))
    block += at("ff/down", "ff.net.2", linear(4 * c_inner, c_inner))
    leaves += at(f"blocks/{i}", f"transformer_blocks.{i}", block)
  return leaves + at("proj_out", "proj_out", linear(c_inner, c, ones=ones))
