"""OpenCLIP: the text transformer at the top level, the image transformer under `visual`."""

from typing import Any

from fbjax.port.leaf import Table, at, embedding, linear, norm, same

TEXT_PREFIX = "cond_stage_model.model."


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
  }


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
