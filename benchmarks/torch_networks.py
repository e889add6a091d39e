"""The networks that no package has, written for PyTorch after the description of the published ones.

What the tests compare gradients with, and the benchmarks times.
Functions of a tree of tensors with the names and layout of our params, channels last.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Tree = dict[Any, Any]


def rows(tree: Tree, i: int) -> Tree:
  """The i-th of stacked blocks."""
  return {k: rows(x, i) if isinstance(x, dict) else x[i] for k, x in tree.items()}


def linear(p: Tree, x: Tensor) -> Tensor:
  return F.linear(x, p["kernel"].T, p.get("bias"))


def conv(p: Tree, x: Tensor, stride: int = 1) -> Tensor:
  """A square convolution of each frame, padded on both sides."""
  frames = x.flatten(0, 1).movedim(-1, 1)
  kernel = p["kernel"].permute(3, 2, 0, 1)
  y = F.conv2d(frames, kernel, p["bias"], stride, padding=kernel.shape[-1] // 2)
  return y.movedim(1, -1).unflatten(0, x.shape[:2])


def group_norm(p: Tree, x: Tensor, groups: int, epsilon: float = 1e-5) -> Tensor:
  """Statistics over the whole clip."""
  return F.group_norm(x.movedim(-1, 1), groups, p["scale"], p["bias"], epsilon).movedim(1, -1)


def frame_norm(p: Tree, x: Tensor, groups: int, epsilon: float = 1e-5) -> Tensor:
  return group_norm(p, x.flatten(0, 1), groups, epsilon).unflatten(0, x.shape[:2])


def layer_norm(p: Tree, x: Tensor) -> Tensor:
  return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], 1e-5)


def sinusoid(time: Tensor, c: int) -> Tensor:
  """In float32 as published; the angles of late times have no more than four digits."""
  frequency = torch.exp(-math.log(10_000) / (c // 2) * torch.arange(c // 2, dtype=torch.float32))
  angle = time.float()[:, None] * frequency
  return torch.cat([angle.cos(), angle.sin()], -1)


def embed(p: Tree, time: Tensor, c: int) -> Tensor:
  waves = sinusoid(time, c).to(p["up"]["kernel"].dtype)
  return linear(p["out"], F.silu(linear(p["up"], waves)))


def split_heads(x: Tensor, heads: int) -> Tensor:
  """b n (k d) -> b k n d."""
  return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
  return x.transpose(1, 2).flatten(2)


def attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  heads: int,
  tables: tuple[Tensor, Tensor] | None = None,
  causal: bool = False,
) -> Tensor:
  """Of b n c; the tables hold a vector for each relative position, for the logits and the output."""
  q, k, v = (split_heads(x, heads) for x in (q, k, v))
  logits = q @ k.transpose(-1, -2)
  if tables is not None:
    far, place = len(tables[0]) // 2, torch.arange(q.shape[2])
    index = (place[None] - place[:, None]).clamp(-far, far) + far
    logits = logits + torch.einsum("bkid,ijd->bkij", q, tables[0][index])
  logits = logits / math.sqrt(q.shape[-1])
  if causal:
    logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -math.inf)
  weights = logits.softmax(-1)
  y = weights @ v
  if tables is not None:
    y = y + torch.einsum("bkij,ijd->bkid", weights, tables[1][index])
  return merge_heads(y)


# The video UNet.


def res_block(p: Tree, x: Tensor, emb: Tensor, groups: int) -> Tensor:
  h = conv(p["in_conv"], F.silu(frame_norm(p["in_norm"], x, groups)))
  h = h + linear(p["emb"], F.silu(emb))[:, None, None, None]
  h = conv(p["out_conv"], F.silu(frame_norm(p["out_norm"], h, groups)))
  x = h + (conv(p["skip"], x) if "skip" in p else x)
  return temporal_convs(p["temporal"], x, groups) if "temporal" in p else x


def temporal_convs(p: Tree, x: Tensor, groups: int) -> Tensor:
  h = x
  for i in range(4):
    h = F.silu(group_norm(p["norms"][i], h, groups)).movedim(-1, 1)
    kernel = p["convs"][i]["kernel"].permute(2, 1, 0)[..., None, None]
    h = F.conv3d(h, kernel, p["convs"][i]["bias"], padding=(1, 0, 0)).movedim(1, -1)
  return x + h


def transformer_block(p: Tree, x: Tensor, attn1: Callable, attn2: Callable) -> Tensor:
  x = x + attn1(p["attn1"], layer_norm(p["norm1"], x))
  x = x + attn2(p["attn2"], layer_norm(p["norm2"], x))
  value, gate = linear(p["ff"]["up"], layer_norm(p["norm3"], x)).chunk(2, -1)
  return x + linear(p["ff"]["down"], value * F.gelu(gate))


def self_attention(p: Tree, x: Tensor, heads: int, causal: bool = False) -> Tensor:
  tables = (p["key_table"], p["value_table"]) if "key_table" in p else None
  q, k, v = (linear(p[name], x) for name in "qkv")
  return linear(p["out"], attention(q, k, v, heads, tables, causal))


def cross_attention(p: Tree, x: Tensor, text: Tensor, image: Tensor | None, heads: int) -> Tensor:
  q = linear(p["q"], x)
  y = attention(q, linear(p["k"], text), linear(p["v"], text), heads)
  if image is not None:
    seen = attention(q, linear(p["image_k"], image), linear(p["image_v"], image), heads)
    y = y + (p["alpha"].tanh() + 1) * seen
  return linear(p["out"], y)


def spatial_transformer(
  p: Tree, x: Tensor, text: Tensor, image: Tensor | None, heads: int, groups: int
) -> Tensor:
  t = x.shape[1]
  text = text.repeat_interleave(t, 0)
  image = None if image is None else image.flatten(0, 1)
  h = linear(p["proj_in"], frame_norm(p["norm"], x, groups, 1e-6).flatten(2, 3).flatten(0, 1))
  for block in p["blocks"].values():
    h = transformer_block(
      block,
      h,
      lambda p, h: self_attention(p, h, heads),
      lambda p, h: cross_attention(p, h, text, image, heads),
    )
  return x + linear(p["proj_out"], h).reshape(x.shape)


def temporal_transformer(
  p: Tree, x: Tensor, heads: int, groups: int, causal: bool = False
) -> Tensor:
  b, t, h, w, _ = x.shape
  y = group_norm(p["norm"], x, groups, 1e-6).permute(0, 2, 3, 1, 4).flatten(0, 2)
  y = linear(p["proj_in"], y)

  def attn(p: Tree, y: Tensor) -> Tensor:
    return self_attention(p, y, heads, causal)

  for block in p["blocks"].values():
    y = transformer_block(block, y, attn, attn)
  return x + linear(p["proj_out"], y).reshape(b, h, w, t, -1).permute(0, 3, 1, 2, 4)


def unet(
  p: Tree,
  x: Tensor,
  text: Tensor,
  image: Tensor | None,
  time: Tensor,
  stride: Tensor,
  *,
  head_dim: int,
  groups: int,
  causal: bool = False,
) -> Tensor:
  c = p["in_conv"]["kernel"].shape[-1]
  emb = embed(p["time"], time, c) + embed(p["stride"], stride, c)

  def stage(p: Tree, x: Tensor) -> Tensor:
    x = res_block(p["res"], x, emb, groups) if "res" in p else x
    heads = x.shape[-1] // head_dim
    if "spatial" in p:
      x = spatial_transformer(p["spatial"], x, text, image, heads, groups)
      x = temporal_transformer(p["temporal"], x, heads, groups, causal)
    return x

  x = temporal_transformer(p["in_attention"], conv(p["in_conv"], x), 8, groups, causal)
  skips = [x]
  for down in p["down"].values():
    x = stage(down, x)
    if "resample" in down:
      x = conv(down["resample"]["conv"], x, stride=2)
    skips.append(x)
  for middle in p["middle"].values():
    x = stage(middle, x)
  for up in p["up"].values():
    x = stage(up, torch.cat([x, skips.pop()], -1))
    if "resample" in up:
      x = conv(up["resample"]["conv"], x.repeat_interleave(2, 2).repeat_interleave(2, 3))
  return conv(p["out_conv"], F.silu(frame_norm(p["out_norm"], x, groups)))


# Latte.


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
  return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def latte_block(p: Tree, x: Tensor, emb: Tensor, heads: int) -> Tensor:
  """Of b n m c, along m."""
  mod = linear(p["modulation"], F.silu(emb))[:, None, None].chunk(6, -1)
  q, k, v = linear(p["qkv"], modulated(x, *mod[:2]).flatten(0, 1)).chunk(3, -1)
  x = x + mod[2] * linear(p["out"], attention(q, k, v, heads)).reshape(x.shape)
  h = F.gelu(linear(p["mlp_up"], modulated(x, *mod[3:5])), approximate="tanh")
  return x + mod[5] * linear(p["mlp_down"], h)


def latte(
  p: Tree,
  x: Tensor,
  frame: Tensor,
  coarse: Tensor,
  time: Tensor,
  label: Tensor,
  *,
  patch: int,
  heads: int,
) -> Tensor:
  emb = embed(p["time"], time, 256) + p["label"]["embedding"][label]
  x = torch.cat([torch.cat([frame[:, None], video], 1) for video in (x, coarse)], -1)
  b, t, h, w, c = x.shape
  # b t rows i columns j c -> b t (rows columns) (i j c)
  x = x.reshape(b, t, h // patch, patch, w // patch, patch, c).transpose(3, 4)
  x = linear(p["patches"], x.flatten(4).flatten(2, 3))
  # The tables of positions are fixed.
  x = x + p["positions"]["space"][: h // patch, : w // patch].flatten(0, 1).detach()
  for i in range(len(p["pairs"]["spatial"]["qkv"]["kernel"])):
    pair = rows(p["pairs"], i)
    x = latte_block(pair["spatial"], x, emb, heads)
    if i == 0:
      x = x + p["positions"]["time"][:t, None].detach()
    x = latte_block(pair["temporal"], x.transpose(1, 2), emb, heads).transpose(1, 2)
  mod = linear(p["head"]["modulation"], F.silu(emb))[:, None, None].chunk(2, -1)
  x = linear(p["head"]["out"], modulated(x[:, 1:], *mod))
  x = x.reshape(b, t - 1, h // patch, w // patch, patch, patch, -1).transpose(3, 4)
  return x.reshape(b, t - 1, h, w, -1)


# The Resampler.


def resampler(p: Tree, image: Tensor, *, heads: int, frames: int) -> Tensor:
  image = linear(p["proj_in"], image)
  x = p["latents"].repeat(len(image), 1, 1)
  for layer in p["layers"].values():
    attn, ff = layer["attn"], layer["ff"]
    h = layer_norm(attn["query_norm"], x)
    k, v = linear(attn["kv"], torch.cat([layer_norm(attn["image_norm"], image), h], 1)).chunk(2, -1)
    x = x + linear(attn["out"], attention(linear(attn["q"], h), k, v, heads))
    x = x + linear(ff["down"], F.gelu(linear(ff["up"], layer_norm(ff["norm"], x))))
  return layer_norm(p["norm"], linear(p["proj_out"], x)).unflatten(1, (frames, -1))


def same_padded(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
  """b c t h w with TensorFlow's SAME padding, by zeros, the smaller half in front."""
  pads = []
  for n, k, s in zip(x.shape[2:], size, stride, strict=True):
    total = max(k - (n % s or s), 0)
    pads = [total // 2, total - total // 2, *pads]
  return F.pad(x, pads)


def i3d(p: Tree, x: Tensor, blocks: dict[str, Any], pooled: dict[str, Any]) -> Tensor:
  """Logits "b n classes" of the video [-1, 1] "b t 224 224 3"; `blocks` and `pooled` of models.i3d."""

  def unit(p: Tree, x: Tensor, stride: int = 1) -> Tensor:
    kernel = p["conv"]["kernel"].permute(4, 3, 0, 1, 2)
    x = same_padded(x, kernel.shape[2:], (stride,) * 3)
    q = p["norm"]
    x = F.conv3d(x, kernel, None, stride)
    return F.relu(F.batch_norm(x, q["mean"], q["var"], q["scale"], q["bias"], eps=1e-3))

  def pool(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(same_padded(x, size, stride), size, stride)

  def block(p: Tree, x: Tensor) -> Tensor:
    last = pool(x, (3, 3, 3), (1, 1, 1))
    branches = [unit(p["b0"], x), unit(p["b1b"], unit(p["b1a"], x))]
    branches += [unit(p["b2b"], unit(p["b2a"], x)), unit(p["b3b"], last)]
    return torch.cat(branches, 1)

  x = pool(unit(p["conv1a"], x.movedim(-1, 1), 2), (1, 3, 3), (1, 2, 2))
  x = unit(p["conv2c"], unit(p["conv2b"], x))
  for i, name in enumerate(blocks):
    if name in pooled:
      x = pool(x, *pooled[name])
    x = block(p["blocks"][i], x)
  features = F.avg_pool3d(x, (2, 7, 7), (1, 1, 1))[..., 0, 0].transpose(1, 2)
  return linear(p["logits"], features)
