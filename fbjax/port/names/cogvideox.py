"""CogVideoX's transformer in the names of diffusers."""

import re
from collections.abc import Sequence
from typing import Any

from fbjax import errors
from fbjax.port.leaf import Leaf, Table, at, linear, norm, same

# What the network cannot be otherwise, and what a config leaves out that means the same.
FIXED = {
  "activation_fn": "gelu-approximate",
  "attention_bias": True,
  "dropout": 0.0,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "norm_elementwise_affine": True,
  "norm_eps": 1e-5,
  "ofs_embed_dim": None,
  "timestep_activation_fn": "silu",
  "use_learned_positional_embeddings": False,
}
# Rows and columns of the latents it was trained on, off which pipelines read rotary positions.
SAMPLE = {"sample_height": 60, "sample_width": 90}

# Parts of a block, and what else ComfyUI calls otherwise.
COMFYUI = {
  r"^transformer_blocks\.(\d+)\.": r"blocks.\1.",
  r"attn1\.to_([qkv])$": r"\1",
  r"attn1\.to_out\.0$": "attn_out",
  r"attn1\.norm_([qk])$": r"norm_\1",
  r"ff\.net\.0\.proj$": "ff_proj",
  r"ff\.net\.2$": "ff_out",
  r"^time_embedding\.linear_": "time_embedding_linear_",
}


def comfyui(module: str) -> str:
  """A module's name in ComfyUI's own CogVideoX, from that in diffusers."""
  for theirs, ours in COMFYUI.items():
    module = re.sub(theirs, ours, module)
  return module


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.cogvideox.CogVideoX` from the config.json of a diffusers folder."""
  for name, value in FIXED.items():
    if config.get(name, value) != value:
      raise errors.UserError(f"CogVideoX exists only with {name}={value}, not {config[name]}")
  patch_time = config.get("patch_size_t")
  if patch_time is None and not config.get("patch_bias", True):
    raise errors.UserError("CogVideoX without patch_size_t exists only with patch_bias=True")
  patch = config.get("patch_size", 2)
  rotary = "rotary" if patch_time is None else "rotary_index"
  return {
    "c_in": config.get("in_channels", 16),
    "c_out": config.get("out_channels", 16),
    "depth": config.get("num_layers", 30),
    "heads": config.get("num_attention_heads", 30),
    "head_dim": config.get("attention_head_dim", 64),
    "text_dim": config["text_embed_dim"],
    "time_dim": config.get("time_embed_dim", 512),
    "patch": patch,
    "patch_time": patch_time or 1,
    "positions": rotary if config.get("use_rotary_positional_embeddings") else "sincos",
    "base": tuple(config.get(name, n) // patch for name, n in SAMPLE.items()),
    "scale_space": config.get("spatial_interpolation_scale", 1.875),
    "scale_time": config.get("temporal_interpolation_scale", 1.0),
  }


def config(
  c_in: int,
  c_out: int,
  *,
  depth: int,
  heads: int,
  head_dim: int,
  text_dim: int,
  time_dim: int,
  patch: int = 2,
  patch_time: int = 1,
  positions: str = "sincos",
  base: Sequence[int] = (30, 45),
  scale_space: float = 1.875,
  scale_time: float = 1.0,
  **_: Any,
) -> dict[str, Any]:
  """The config.json of a diffusers folder, from the arguments of the model's constructor."""
  return FIXED | {
    "_class_name": "CogVideoXTransformer3DModel",
    "in_channels": c_in,
    "out_channels": c_out,
    "num_layers": depth,
    "num_attention_heads": heads,
    "attention_head_dim": head_dim,
    "text_embed_dim": text_dim,
    "time_embed_dim": time_dim,
    "patch_size": patch,
    "patch_size_t": patch_time if patch_time > 1 else None,
    "patch_bias": True,
    **{name: n * patch for name, n in zip(SAMPLE, base, strict=True)},
    "spatial_interpolation_scale": scale_space,
    "temporal_interpolation_scale": scale_time,
    "use_rotary_positional_embeddings": positions != "sincos",
  }


def table(
  c_in: int,
  c_out: int,
  *,
  depth: int,
  heads: int,
  head_dim: int,
  text_dim: int,
  time_dim: int,
  patch: int = 2,
  patch_time: int = 1,
  **_: Any,
) -> Table:
  c, volume = heads * head_dim, patch_time * patch * patch
  if patch_time == 1:  # a convolution; its input channels come before the places in a patch
    shape, target = (c, c_in, patch, patch), (c_in * volume, c)
    patches = [Leaf("kernel", "weight", shape, (1, 2, 3, 0), target)] + same("bias", "bias", c)
  else:
    patches = linear(c_in * volume, c)
  leaves = at("patches", "patch_embed.proj", patches)
  leaves += at("text", "patch_embed.text_proj", linear(text_dim, c))
  leaves += at("time/up", "time_embedding.linear_1", linear(c, time_dim))
  leaves += at("time/out", "time_embedding.linear_2", linear(time_dim, time_dim))

  block = []
  for name in ("norm1", "norm2"):
    block += at(f"{name}/emb", f"{name}.linear", linear(time_dim, 6 * c))
    block += at(f"{name}/norm", f"{name}.norm", norm(c))
  for name in ("q", "k"):
    block += at(f"attn/{name}_norm", f"attn1.norm_{name}", norm(head_dim))
  for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
    block += at(f"attn/{ours}", f"attn1.{theirs}", linear(c, c))
  block += at("up", "ff.net.0.proj", linear(c, 4 * c)) + at("down", "ff.net.2", linear(4 * c, c))
  for i in range(depth):
    leaves += at(f"blocks[{i}]", f"transformer_blocks.{i}", block)

  leaves += at("norm", "norm_final", norm(c))
  leaves += at("out_emb", "norm_out.linear", linear(time_dim, 2 * c))
  leaves += at("out_norm", "norm_out.norm", norm(c))
  return leaves + at("out", "proj_out", linear(c, c_out * volume))
