"""DynamiCrafter's Resampler: `layers.i.0` attends, `layers.i.1` is a torch.nn.Sequential."""

from typing import Any

from fbjax.port.leaf import Table, at, linear, norm, same

PREFIX = "image_proj_model."


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.resampler.Resampler` from the `params` of a published yaml file."""
  return {
    "c_in": config["embedding_dim"],
    "c_out": config["output_dim"],
    "width": config["dim"],
    "depth": config["depth"],
    "heads": config["heads"],
    "head_dim": config["dim_head"],
    "queries": config["num_queries"],
    "frames": config.get("video_length") or 1,
    "mult": config.get("ff_mult", 4),
  }


def table(
  c_in: int,
  c_out: int,
  *,
  width: int,
  depth: int,
  heads: int,
  head_dim: int,
  queries: int,
  frames: int,
  mult: int = 4,
  **_: Any,
) -> Table:
  inner = heads * head_dim
  leaves = same("latents", "latents", 1, frames * queries, width)
  leaves += at("proj_in", "proj_in", linear(c_in, width))
  for i in range(depth):
    attn = at("image_norm", "norm1", norm(width)) + at("query_norm", "norm2", norm(width))
    attn += at("q", "to_q", linear(width, inner, bias=False))
    attn += at("kv", "to_kv", linear(width, 2 * inner, bias=False))
    attn += at("out", "to_out", linear(inner, width, bias=False))
    leaves += at(f"layers/{i}/attn", f"layers.{i}.0", attn)
    ff = at("norm", "0", norm(width))
    ff += at("up", "1", linear(width, mult * width, bias=False))
    ff += at("down", "3", linear(mult * width, width, bias=False))
    leaves += at(f"layers/{i}/ff", f"layers.{i}.1", ff)
  leaves += at("proj_out", "proj_out", linear(width, c_out))
  return leaves + at("norm", "norm_out", norm(c_out))
