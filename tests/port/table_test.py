import math

import numpy as np
import pytest
from models import networks

import golden
from fbjax import port, trees
from fbjax.models import clip, resampler, unet3d, vae_image
from fbjax.port import table

FULL = [
  ("framebridge_videocrafter_unet", "videocrafter_unet", unet3d.UNet3D, 1_438_854_996),
  ("videocrafter1_t2v256_unet", "videocrafter_unet", unet3d.UNet3D, 1_413_284_420),
  ("videocrafter1_t2v512v1_unet", "videocrafter_unet", unet3d.UNet3D, 1_144_485_956),
  ("resampler", "resampler", resampler.Resampler, 48_787_456),
  ("ldm_autoencoder_kl", "vae_image", vae_image.AutoencoderKL, 83_653_863),
  ("sd_vae_ft_ema_diffusers", "vae_image", vae_image.AutoencoderKL, 83_653_863),
  ("openclip_vit_h_14_text", "clip_text", clip.TextEncoder, 354_032_641),
  ("openclip_vit_h_14_visual", "clip_image", clip.ImageEncoder, 683_800_065),
]
B32 = {
  "embed_dim": 512,
  "quick_gelu": True,
  "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
  "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


@pytest.mark.parametrize(
  ("name", "network", "model", "count"), FULL, ids=[name for name, *_ in FULL]
)
def test_every_key_of_the_full_size_files_has_its_leaf(shared, name, network, model, count):
  """By shapes alone: table and file agree, table and model agree, and so does the count."""
  manifest = golden.manifest(shared, f"full/{name}")
  config = manifest["config"].get("vit_h_14", manifest["config"])
  layout = table.layout(network, config)
  leaves = layout.leaves(config)
  listed = {layout.plain(key): tuple(shape) for key, shape, *_ in manifest["keys"]}
  left = {key: listed.pop(key) for key in list(listed) if layout.unneeded(key)}
  assert {leaf.key: leaf.shape for leaf in leaves} == listed
  assert len(left) == (6 if network == "clip_image" else 0)
  assert sum(math.prod(shape) for shape in (listed | left).values()) == count

  ours = networks.shapes(model, **layout.arguments(config))
  assert sum(math.prod(shape) for shape in ours.values()) == sum(map(math.prod, listed.values()))
  lazy, _ = port.fill(network, {x.key: Shape(x.shape) for x in leaves}, config)
  assert {path: x.shape for path, x in trees.flatten(lazy).items()} == ours


class Shape:
  """A tensor of which only the shape is known."""

  def __init__(self, shape):
    self.shape, self.dtype = shape, np.dtype(np.float32)


def test_clip_b32_has_the_published_number_of_parameters():
  ours = networks.shapes(clip.Clip, **port.arguments("clip_b32", B32))
  assert sum(map(math.prod, ours.values())) == 151_277_313


def test_a_whole_checkpoint_is_recognized_by_its_keys(shared):
  keys = []
  for name, *_ in FULL[:1] + FULL[3:5] + FULL[6:]:
    keys += [key for key, *_ in golden.manifest(shared, f"full/{name}")["keys"]]
  keys += [
    k for k, *_ in golden.manifest(shared, "full/framebridge_videocrafter_schedule_buffers")["keys"]
  ]
  assert port.recognize(keys) == {
    "model.diffusion_model.": "videocrafter_unet",
    "image_proj_model.": "resampler",
    "first_stage_model.": "vae_image",
    "cond_stage_model.model.": "clip_text",
    "embedder.model.": "clip_image",
  }


def test_the_published_config_and_the_arguments_lead_to_the_same_leaves():
  arguments = port.arguments("clip_b32", B32)
  layout = table.layout("clip_b32", B32)
  assert layout.leaves(arguments) == layout.leaves(B32)
  assert port.arguments("clip_b32", arguments) == arguments
  assert table.layout("clip_b32", {"params": B32}).leaves({"params": B32}) == layout.leaves(B32)


@pytest.mark.parametrize(
  ("network", "config", "message"),
  [
    ("videocrafter_unet", {"model_channels": 8, "use_linear": False}, "use_linear=True"),
    ("videocrafter_unet", {"model_channels": 8, "num_heads": 8}, "num_head_channels"),
    ("vae_image", {"block_out_channels": [4, 6]}, "multiples of the first"),
    (
      "clip_image",
      {"vision_cfg": {"width": 8}},
      "config with 'vision_cfg' .* because of 'image_size'",
    ),
    ("clip_image", {"vision_cfg": None}, "config with 'vision_cfg' cannot be read"),
  ],
)
def test_what_the_networks_cannot_be_is_said(network, config, message):
  with pytest.raises(ValueError, match=message):
    port.arguments(network, config)
