import re

import ml_dtypes
import numpy as np
import pytest
from models import networks

import golden
from fbjax import port, trees
from fbjax.models import clip, resampler, unet3d, vae_image
from fbjax.port import table

UNET = dict(
  c_in=4,
  c_out=2,
  width=8,
  mult=(1, 2),
  blocks=1,
  attention_levels=(1,),
  head_dim=4,
  context_dim=6,
  groups=4,
)
VARIANTS = [
  {},
  {"image_attention": True, "depth": 2},
  {"positions": 3, "temporal_conv": False, "stride_embedding": False, "causal": True},
  {"init_attention": False, "mult": (1, 1, 2), "blocks": 2, "attention_levels": (0, 2)},
]
TEXT = dict(vocab=11, length=5, width=8, layers=2, heads=2, c_out=6)
IMAGE = dict(size=8, patch=4, width=8, layers=2, heads=2, c_out=6)
RESAMPLER = dict(c_in=5, c_out=6, width=8, depth=2, heads=3, head_dim=4, queries=2, frames=3)
VAE = dict(c_in=3, c_latent=2, width=4, mult=(1, 2, 2), blocks=2, groups=2)
PAIR = dict(
  c_out=6,
  image={k: v for k, v in IMAGE.items() if k != "c_out"},
  text={k: v for k, v in TEXT.items() if k != "c_out"},
)
CASES = [("videocrafter_unet", unet3d.UNet3D, UNET | v) for v in VARIANTS]
CASES += [
  ("clip_text", clip.TextEncoder, TEXT),
  ("clip_text", clip.TextEncoder, TEXT | {"c_out": None}),
  ("clip_image", clip.ImageEncoder, IMAGE),
  ("clip_b32", clip.Clip, PAIR),
  ("resampler", resampler.Resampler, RESAMPLER),
  ("vae_image", vae_image.AutoencoderKL, VAE),
  ("vae_image", vae_image.AutoencoderKL, VAE | {"blocks": 1, "mult": (1, 1)}),
]


def tensors(network, sizes):
  """Random tensors under the published names."""
  return {
    leaf.key: golden.weight(leaf.key, leaf.shape)
    for leaf in table.layout(network, sizes).leaves(sizes)
  }


@pytest.mark.parametrize(("network", "model", "sizes"), CASES)
def test_the_table_names_exactly_the_leaves_of_the_model(network, model, sizes):
  params = port.to_flax(network, tensors(network, sizes), sizes)
  ours = {path: np.shape(x) for path, x in trees.flatten(params).items()}
  assert ours == networks.shapes(model, **sizes)


@pytest.mark.parametrize(("network", "model", "sizes"), CASES)
def test_there_and_back_is_bitwise(network, model, sizes):
  there = tensors(network, sizes)
  back = port.to_torch(network, port.to_flax(network, there, sizes), sizes)
  assert back.keys() == there.keys()
  for key in there:
    assert back[key].dtype == there[key].dtype
    np.testing.assert_array_equal(back[key], there[key])


def test_kernels_are_transposed_from_out_in_to_in_out():
  there = tensors("videocrafter_unet", UNET)
  params = port.to_flax("videocrafter_unet", there, UNET)
  kernel = params["in_conv"]["kernel"]
  np.testing.assert_array_equal(kernel[1, 2, 3, 4], there["input_blocks.0.0.weight"][4, 3, 1, 2])
  kernel = params["down"][0]["res"]["temporal"]["convs"][1]["kernel"]
  theirs = there["input_blocks.1.0.temopral_conv.conv2.3.weight"]
  np.testing.assert_array_equal(kernel[2, 3, 4], theirs[4, 3, 2, 0, 0])


def test_one_error_lists_every_key_that_does_not_fit():
  there = tensors("videocrafter_unet", UNET)
  del there["out.2.bias"]
  there["out.0.weight"] = there["out.0.weight"][:-1]
  there["surprise"] = np.zeros((2, 3))
  with pytest.raises(ValueError) as error:
    port.to_flax("videocrafter_unet", there, UNET)
  message = str(error.value)
  assert "3 leaves" in message
  assert "missing    out.2.bias (2,)" in message
  assert "unexpected surprise (2, 3)" in message
  assert "misshapen  out.0.weight: (7,), expected (8,)" in message


def test_params_that_do_not_fit_are_refused_as_well():
  params = port.to_flax("clip_text", tensors("clip_text", TEXT), TEXT)
  with pytest.raises(ValueError, match="misshapen  position"):
    port.to_torch("clip_text", params, TEXT | {"length": 6})
  with pytest.raises(ValueError, match="leaves"):
    port.to_torch("clip_text", params, TEXT | {"layers": 3})


def test_prefixes_of_whole_checkpoints_and_old_spellings_are_understood():
  there = tensors("videocrafter_unet", UNET)

  def spelt(key):
    return key.replace("fps_embedding", "framestride_embed")

  whole = {f"model.diffusion_model.{spelt(key)}": x for key, x in there.items()}
  ours = trees.flatten(port.to_flax("videocrafter_unet", whole, UNET))
  theirs = trees.flatten(port.to_flax("videocrafter_unet", there, UNET))
  assert ours.keys() == theirs.keys()
  assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_both_layouts_of_the_autoencoder_give_the_same_params():
  ldm = tensors("vae_image", VAE)
  params = port.to_flax("vae_image", ldm, VAE)
  diffusers = port.to_torch("vae_image", params, VAE, layout="diffusers")
  assert "decoder.up_blocks.0.upsamplers.0.conv.weight" in diffusers
  np.testing.assert_array_equal(
    diffusers["decoder.up_blocks.0.resnets.1.conv2.weight"],
    ldm["decoder.up.2.block.1.conv2.weight"],
  )
  old = {  # as files of 2022 spell the attention
    key.replace("to_out.0", "proj_attn").replace("to_q", "query"): x for key, x in diffusers.items()
  }
  for theirs in (diffusers, old):
    again = trees.flatten(port.to_flax("vae_image", theirs, VAE))
    for path, x in trees.flatten(params).items():
      np.testing.assert_array_equal(again[path], x)
  with pytest.raises(ValueError, match="no layout 'onnx'; there are ldm, diffusers"):
    port.to_torch("vae_image", params, VAE, layout="onnx")


def test_text_left_in_a_file_of_the_image_network_is_left_over():
  there = tensors("clip_image", IMAGE)
  more = there | {"logit_scale": np.float32(1), "token_embedding.weight": np.zeros((4, 2))}
  params, report = port.fill("clip_image", more, IMAGE)
  assert report.left == {"logit_scale": "()", "token_embedding.weight": "(4, 2)"}
  assert report.used.keys() == there.keys() and not report.lacks
  assert "left  token_embedding.weight  (4, 2)" in str(report)
  kernel = np.asarray(trees.flatten(params)["patches/kernel"])
  np.testing.assert_array_equal(kernel[1, 2, 0, 3], there["visual.conv1.weight"][3, 0, 1, 2])


def test_what_a_text_to_video_checkpoint_lacks_is_left_out_by_name_only():
  """The input kernel keeps the file's channels, the image attention is missing."""
  i2v = UNET | {"c_in": 8, "image_attention": True}
  there = tensors("videocrafter_unet", UNET)
  image = r".*/attn2/(image_[kv]/kernel|alpha)"
  with pytest.raises(ValueError, match="misshapen  input_blocks.0.0.weight"):
    port.fill("videocrafter_unet", there, i2v, optional=(image,))
  with pytest.raises(ValueError, match="missing .*to_k_ip"):
    port.fill("videocrafter_unet", there, i2v, narrow=("in_conv/kernel",))

  held, report = port.fill(
    "videocrafter_unet", there, i2v, optional=(image,), narrow=("in_conv/kernel",)
  )
  params = {path: np.asarray(x) for path, x in trees.flatten(held).items()}
  wanted = networks.shapes(unet3d.UNet3D, **i2v)
  assert len(report.used) == len(there)
  missing = {path for path, why in report.lacks.items() if why == "not in the file"}
  assert missing == wanted.keys() - params.keys() == {p for p in wanted if re.fullmatch(image, p)}
  assert report.lacks["in_conv/kernel"] == "4 of 8 input channels"
  kernel = there["input_blocks.0.0.weight"].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(params["in_conv/kernel"], kernel)
  back = port.unfill("videocrafter_unet", held, i2v, partial=True)
  assert back.keys() == there.keys()
  for key, tensor in there.items():
    np.testing.assert_array_equal(back[key], tensor)
  with pytest.raises(ValueError, match="missing"):
    port.to_torch("videocrafter_unet", held, i2v)


def test_a_pattern_that_matches_no_leaf_is_a_mistake():
  with pytest.raises(ValueError, match="new or zero: 'image_.*' matches no leaf"):
    port.fill("clip_text", tensors("clip_text", TEXT), TEXT, optional=("image_.*",))


def test_keys_may_be_left_over_by_name_only():
  more = tensors("clip_text", TEXT) | {"ema.decay": np.float32(0.9)}
  with pytest.raises(ValueError, match="unexpected ema.decay"):
    port.to_flax("clip_text", more, TEXT)
  _, report = port.fill("clip_text", more, TEXT, ignore=(r"ema\..*",))
  assert report.left == {"ema.decay": "()"}


def test_a_checkpoint_of_another_model_is_called_by_its_name():
  with pytest.raises(ValueError, match="It looks like vae_image"):
    port.to_flax("videocrafter_unet", tensors("vae_image", VAE), UNET)
  with pytest.raises(ValueError, match="looks like no network known here"):
    port.to_flax("videocrafter_unet", {"a.weight": np.zeros(2)}, UNET)


def test_values_that_are_no_numbers_are_named():
  there = tensors("clip_text", TEXT)
  there["ln_final.bias"][3] = np.nan
  there["transformer.resblocks.1.ln_1.bias"][0] = np.inf
  with pytest.raises(ValueError, match="not finite in .*norm1/bias.*norm/bias"):
    port.to_flax("clip_text", there, TEXT)


def test_half_precision_stays_half():
  there = {key: x.astype(ml_dtypes.bfloat16) for key, x in tensors("clip_text", TEXT).items()}
  params = port.to_flax("clip_text", there, TEXT)
  assert {x.dtype for x in trees.flatten(params).values()} == {np.dtype(ml_dtypes.bfloat16)}
  back = port.to_torch("clip_text", params, TEXT)
  assert all(back[key].tobytes() == there[key].tobytes() for key in there)


def test_leaves_are_read_only_when_asked_for():
  class Unread:
    def __init__(self, shape):
      self.shape, self.dtype = shape, np.dtype(np.float16)

    def __array__(self, dtype=None, copy=None):
      raise AssertionError("read")

  there = {key: Unread(x.shape) for key, x in tensors("clip_text", TEXT).items()}
  lazy, _ = port.fill("clip_text", there, TEXT)
  leaf = trees.flatten(lazy)["transformer/blocks/up/kernel"]
  assert leaf.shape == (2, 8, 32) and leaf.dtype == np.float16
  with pytest.raises(AssertionError, match="read"):
    np.asarray(leaf)


def test_published_configs_are_translated():
  config = dict(
    in_channels=8,
    out_channels=4,
    model_channels=64,
    attention_resolutions=[2],
    num_res_blocks=1,
    channel_mult=[1, 2],
    num_head_channels=8,
    context_dim=32,
    use_relative_position=True,
    temporal_length=5,
    fps_cond=True,
  )
  sizes = port.arguments("videocrafter_unet", config)
  assert sizes["attention_levels"] == (1,)
  assert sizes["positions"] == 5
  assert sizes["stride_embedding"] and not sizes["temporal_conv"]
  networks.shapes(unet3d.UNet3D, **sizes)
  with pytest.raises(ValueError, match="use_linear=True"):
    port.arguments("videocrafter_unet", config | {"use_linear": False})


def test_an_unknown_network_is_named_with_those_there_are():
  with pytest.raises(ValueError, match="'unet'.*videocrafter_unet, "):
    port.to_flax("unet", {}, {})
