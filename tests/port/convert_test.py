import golden
import numpy as np
import pytest
from models import networks

from fbjax import port
from fbjax.models import clip, unet3d
from fbjax.port import convert, table

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
CASES = [("videocrafter_unet", unet3d.UNet3D, UNET | v) for v in VARIANTS]
CASES += [
  ("clip_text", clip.TextEncoder, TEXT),
  ("clip_text", clip.TextEncoder, TEXT | {"c_out": None}),
]


def tensors(network, sizes):
  """Random tensors under the published names."""
  return {
    leaf.key: golden.weight(leaf.key, leaf.shape) for leaf in table.find(network).leaves(sizes)
  }


@pytest.mark.parametrize(("network", "model", "sizes"), CASES)
def test_the_table_names_exactly_the_leaves_of_the_model(network, model, sizes):
  params = port.to_flax(network, tensors(network, sizes), sizes)
  ours = {path: np.shape(x) for path, x in convert.flatten(params).items()}
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
  ours = convert.flatten(port.to_flax("videocrafter_unet", whole, UNET))
  theirs = convert.flatten(port.to_flax("videocrafter_unet", there, UNET))
  assert ours.keys() == theirs.keys()
  assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


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
  sizes = table.find("videocrafter_unet").arguments(config)
  assert sizes["attention_levels"] == (1,)
  assert sizes["positions"] == 5
  assert sizes["stride_embedding"] and not sizes["temporal_conv"]
  networks.shapes(unet3d.UNet3D, **sizes)
  with pytest.raises(ValueError, match="use_linear=True"):
    table.find("videocrafter_unet").arguments(config | {"use_linear": False})


def test_an_unknown_network_is_named_with_those_there_are():
  with pytest.raises(ValueError, match="'unet'.*videocrafter_unet, "):
    port.to_flax("unet", {}, {})
