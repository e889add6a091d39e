"""T5's encoder in the names of transformers."""

from typing import Any

from fbjax import errors
from fbjax.port.leaf import Table, at, embedding, linear, norm

# Files have the token embeddings under one name, the other or both; the two are tied.
ALIASES = ((r"^encoder\.embed_tokens\.", "shared."),)
LEFT_OVER = (r"decoder\..*", r"lm_head\.weight")
FIXED = {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6}


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.t5.Encoder` from the config.json of a transformers folder."""
  for name, value in FIXED.items():
    if config.get(name) != value:
      raise errors.UserError(f"T5 exists only with {name}={value}, not {config.get(name)}")
  return {
    "vocab": config["vocab_size"],
    "width": config["d_model"],
    "layers": config["num_layers"],
    "heads": config["num_heads"],
    "head_dim": config["d_kv"],
    "mlp": config["d_ff"],
    "buckets": config["relative_attention_num_buckets"],
    "distance": config.get("relative_attention_max_distance", 128),
  }


def config(
  vocab: int,
  width: int,
  layers: int,
  heads: int,
  *,
  head_dim: int,
  mlp: int,
  buckets: int = 32,
  distance: int = 128,
  **_: Any,
) -> dict[str, Any]:
  """The config.json of a transformers folder, from the arguments of the model's constructor."""
  return FIXED | {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "is_encoder_decoder": False,
    "use_cache": False,
    "vocab_size": vocab,
    "d_model": width,
    "num_layers": layers,
    "num_heads": heads,
    "d_kv": head_dim,
    "d_ff": mlp,
    "relative_attention_num_buckets": buckets,
    "relative_attention_max_distance": distance,
  }


def table(
  vocab: int,
  width: int,
  layers: int,
  heads: int,
  *,
  head_dim: int,
  mlp: int,
  buckets: int = 32,
  **_: Any,
) -> Table:
  inner = heads * head_dim
  attention = "layer.0.SelfAttention"
  block = at("norm1", "layer.0.layer_norm", norm(width, bias=False))
  for name in ("q", "k", "v"):
    block += at(name, f"{attention}.{name}", linear(width, inner, bias=False))
  block += at("out", f"{attention}.o", linear(inner, width, bias=False))
  block += at("norm2", "layer.1.layer_norm", norm(width, bias=False))
  for ours, theirs in (("gate", "wi_0"), ("up", "wi_1")):
    block += at(ours, f"layer.1.DenseReluDense.{theirs}", linear(width, mlp, bias=False))
  block += at("down", "layer.1.DenseReluDense.wo", linear(mlp, width, bias=False))

  leaves = at("token", "shared", embedding(vocab, width))
  buckets_key = f"encoder.block.0.{attention}.relative_attention_bias"
  leaves += at("positions", buckets_key, embedding(buckets, heads))
  for i in range(layers):
    leaves += at(f"blocks[{i}]", f"encoder.block.{i}", block)
  return leaves + at("norm", "encoder.final_layer_norm", norm(width, bias=False))
