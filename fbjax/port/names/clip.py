"""OpenCLIP, whose names are OpenAI's: the text at the top level, the image under `visual`."""

from collections.abc import Mapping
from typing import Any

from fbjax.port.leaf import Table, at, conv, embedding, linear, norm, same

TEXT_PREFIX = "cond_stage_model.model."
IMAGE_PREFIX = "embedder.model."
# What is left of the text network in a file of the image network.
LEFT_OVER = (
  r"positional_embedding",
  r"token_embedding\.weight",
  r"ln_final\.(weight|bias)",
  r"text_projection",
  r"logit_scale",
)
# Sizes that OpenAI's files carry as tensors, and a mask.
OPENAI = (r"input_resolution", r"context_length", r"vocab_size", r"attn_mask")


def text_sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.clip.TextEncoder` from an OpenCLIP model config."""
  text = config["text_cfg"]
  return {
    "vocab": text["vocab_size"],
    "length": text["context_length"],
    "width": text["width"],
    "layers": text["layers"],
    "heads": text["heads"],
    "c_out": config["embed_dim"],
    "quick_gelu": config.get("quick_gelu", False),
  }


def image_sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.clip.ImageEncoder` from an OpenCLIP model config."""
  vision = config["vision_cfg"]
  return {
    "size": vision["image_size"],
    "patch": vision["patch_size"],
    "width": vision["width"],
    "layers": vision["layers"],
    "heads": vision["width"] // vision.get("head_width", 64),
    "c_out": config["embed_dim"],
    "quick_gelu": config.get("quick_gelu", False),
  }


def pair_sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.clip.Clip` from an OpenCLIP model config."""
  text, image = text_sizes(config), image_sizes(config)
  shared = {name: text[name] for name in ("c_out", "quick_gelu")}

  def own(sizes):
    return {name: size for name, size in sizes.items() if name not in shared}

  return shared | {"image": own(image), "text": own(text)}


def text_table(
  vocab: int, length: int, width: int, layers: int, c_out: int | None = None, **_: Any
) -> Table:
  leaves = at("token", "token_embedding", embedding(vocab, width))
  leaves += same("position", "positional_embedding", length, width)
  leaves += at("transformer", "transformer", transformer(width, layers))
  leaves += at("norm", "ln_final", norm(width))
  if c_out is not None:
    leaves += same("projection", "text_projection", width, c_out)
    leaves += same("logit_scale", "logit_scale")
  return leaves


def image_table(size: int, patch: int, width: int, layers: int, c_out: int, **_: Any) -> Table:
  leaves = at("patches", "conv1", conv(3, width, patch, patch, bias=False))
  leaves += same("start", "class_embedding", width)
  leaves += same("position", "positional_embedding", (size // patch) ** 2 + 1, width)
  leaves += at("in_norm", "ln_pre", norm(width))
  leaves += at("transformer", "transformer", transformer(width, layers))
  leaves += at("out_norm", "ln_post", norm(width))
  leaves += same("projection", "proj", width, c_out)
  return [leaf._replace(key=f"visual.{leaf.key}") for leaf in leaves]


def pair_table(c_out: int, image: Mapping[str, Any], text: Mapping[str, Any], **_: Any) -> Table:
  parts = {"image": image_table(**image, c_out=c_out), "text": text_table(**text, c_out=c_out)}
  return [
    leaf._replace(path=f"{name}/{leaf.path}") for name, part in parts.items() for leaf in part
  ]


def transformer(c: int, layers: int) -> Table:
  block = at("norm1", "ln_1", norm(c)) + at("norm2", "ln_2", norm(c))
  # nn.MultiheadAttention names its packed projection unlike a Linear.
  packed = {"weight": "in_proj_weight", "bias": "in_proj_bias"}
  qkv = [leaf._replace(key=packed[leaf.key]) for leaf in linear(c, 3 * c)]
  block += at("attn/qkv", "attn", qkv) + at("attn/out", "attn.out_proj", linear(c, c))
  block += at("up", "mlp.c_fc", linear(c, 4 * c)) + at("down", "mlp.c_proj", linear(4 * c, c))
  leaves = []
  for i in range(layers):
    leaves += at(f"blocks[{i}]", f"resblocks.{i}", block)
  return leaves
