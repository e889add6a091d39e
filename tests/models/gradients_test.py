"""Gradients of the networks are those that PyTorch finds, for every parameter and every input."""

import collections
import re

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from diffusers.models import embeddings
from models import networks
from models.torch_parity import check_function, check_module, cotangent, gradients, normal

from benchmarks import torch_networks
from fbjax import trees
from fbjax.models import (
  clip,
  cogvideox,
  latte,
  resampler,
  t5,
  unet3d,
  unet3d_transformers,
  vae_image,
  vae_video,
)
from fbjax.port.names import cogvideox as cogvideox_names
from fbjax.port.names import t5 as t5_names
from fbjax.port.names import vae_video as vae_video_names

TIME = np.array([12.75, 87.5], np.float32)


# Of the parameters that are said to be faint, a key's bias adds the same to all logits of a softmax,
# which changes nothing.


def last(x):
  """Channels from the second axis to the last."""
  return x.movedim(1, -1)


def second(x):
  return x.movedim(-1, 1)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_cogvideox_has_the_gradients_of_diffusers(positions):
  sizes = dict(c_in=4, c_out=3, depth=2, heads=2, head_dim=16, text_dim=6, time_dim=8)
  sizes |= dict(positions=positions, base=(2, 3))
  config = cogvideox_names.config(**sizes) | {"max_text_seq_length": 5}
  module = diffusers.CogVideoXTransformer3DModel.from_config(config)
  rotary = None
  if positions == "rotary":
    rotary = embeddings.get_3d_rotary_pos_embed(16, ((0, 0), (2, 3)), (2, 3), 2)

  def theirs(x, text, time):
    out = module(x.permute(0, 1, 4, 2, 3), text, time, image_rotary_emb=rotary).sample
    return out.permute(0, 1, 3, 4, 2)

  check_module(
    "cogvideox",
    cogvideox.CogVideoX,
    sizes,
    lambda model, x, text, time: model(x, time, text),
    module,
    theirs,
    (normal(2, 2, 4, 6, 4), normal(2, 5, 6, seed=1)),
    (TIME,),
    # Turned by its place, a bias is another for each token.
    faint=r".*norm_k\.bias" if positions == "sincos" else "",
  )


@pytest.mark.thorough
def test_the_video_autoencoder_has_the_gradients_of_diffusers():
  """With two chunks each way: gradients go back through what one hands on to the next."""
  sizes = dict(c_in=3, c_latent=2, widths=(4, 6, 8), blocks=1, groups=2)
  module = diffusers.AutoencoderKLCogVideoX.from_config(vae_video_names.config(**sizes))

  def ours(model, video, z):
    return (*model.encode(video), model.decode(z))

  def theirs(video, z):
    posterior = module.encode(second(video)).latent_dist
    return last(posterior.mean), last(posterior.logvar), last(module.decode(second(z)).sample)

  check_module(
    "vae_video",
    vae_video.CausalAutoencoder,
    sizes,
    ours,
    module,
    theirs,
    (normal(1, 17, 4, 8, 3), normal(1, 5, 1, 2, 2, seed=1)),
  )


def test_the_image_autoencoder_has_the_gradients_of_diffusers():
  sizes = dict(c_in=3, c_latent=2, width=4, mult=(1, 2), blocks=1, groups=2)
  module = diffusers.AutoencoderKL(
    block_out_channels=(4, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    latent_channels=2,
    norm_num_groups=2,
  )

  def ours(model, video, z):
    return (*model.encode(video), model.decode(z))

  def theirs(video, z):
    posterior = module.encode(second(video.flatten(0, 1))).latent_dist
    decoded = module.decode(second(z.flatten(0, 1))).sample
    return tuple(last(y).unflatten(0, (1, 2)) for y in (posterior.mean, posterior.logvar, decoded))

  check_module(
    "vae_image",
    vae_image.AutoencoderKL,
    sizes,
    ours,
    module,
    theirs,
    (normal(1, 2, 4, 6, 3), normal(1, 2, 2, 3, 2, seed=1)),
    layout="diffusers",
    faint=r".*to_k\.bias",
  )


def test_t5_has_the_gradients_of_transformers():
  sizes = dict(vocab=20, width=8, layers=2, heads=2, head_dim=6, mlp=10, buckets=8, distance=12)
  module = transformers.T5EncoderModel(transformers.T5Config(**t5_names.config(**sizes)))
  tokens = np.random.default_rng(0).integers(0, 20, (2, 14), np.int32)
  mask = np.arange(14)[None] < np.array([[14], [9]])
  check_module(
    "t5",
    t5.Encoder,
    sizes,
    lambda model, tokens, mask: model(tokens, mask),
    module,
    lambda tokens, mask: module(tokens, mask).last_hidden_state,
    (),
    (tokens, mask),
  )


def transformers_clip(tensors):
  """OpenCLIP's tensors by the names of transformers, which has q, k and v apart."""
  renewed = {}
  for key, x in tensors.items():
    for old, new in (
      (r"^visual\.proj$", "visual_projection.weight"),
      (r"^text_projection$", "text_projection.weight"),
      (r"^visual\.", "vision_model."),
      (r"^(?=transformer|token|positional|ln_final)", "text_model."),
      (r"transformer\.resblocks", "encoder.layers"),
      (r"positional_embedding", "embeddings.position_embedding.weight"),
      (r"token_embedding|class_embedding", r"embeddings.\g<0>"),
      (r"conv1", "embeddings.patch_embedding"),
      (r"ln_pre", "pre_layrnorm"),
      (r"ln_post", "post_layernorm"),
      (r"ln_final", "final_layer_norm"),
      (r"ln_(\d)", r"layer_norm\1"),
      (r"mlp\.c_fc", "mlp.fc1"),
      (r"mlp\.c_proj", "mlp.fc2"),
      (r"attn\.out_proj", r"self_\g<0>"),
    ):
      key = re.sub(old, new, key)
    if match := re.fullmatch(r"(.*)attn\.in_proj_(\w+)", key):
      for name, part in zip("qkv", np.split(x, 3), strict=True):
        renewed[f"{match[1]}self_attn.{name}_proj.{match[2]}"] = part
    else:
      renewed[key] = x.T if "projection" in key else x
  return renewed


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_clip_has_the_gradients_of_transformers(act):
  sizes = dict(
    c_out=6,
    image=dict(size=8, patch=4, width=8, layers=2, heads=2),
    text=dict(vocab=11, length=7, width=8, layers=2, heads=2),
    quick_gelu=act == "quick_gelu",
  )
  both = dict(
    hidden_size=8,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_act=act,
  )
  text = dict(vocab_size=11, max_position_embeddings=7, bos_token_id=9, eos_token_id=10)
  config = transformers.CLIPConfig(
    text_config=both | text,
    vision_config=both | dict(image_size=8, patch_size=4),
    projection_dim=6,
  )
  module = transformers.CLIPModel(config)

  def theirs(image, tokens):
    out = module(tokens, second(image))
    return out.image_embeds, out.text_embeds

  check_module(
    "clip_b32",
    clip.Clip,
    sizes,
    lambda model, image, tokens: (model.embed_image(image), model.embed_text(tokens)),
    module,
    theirs,
    (normal(2, 8, 8, 3),),
    (np.array([[9, 1, 2, 3, 4, 5, 10], [9, 6, 7, 10, 0, 0, 0]], np.int32),),
    rename=transformers_clip,
    faint=r".*k_proj\.bias|logit_scale",  # the latter is for training, of which there is none
  )


# The networks that no package has, beside `torch_networks`.


UNET = dict(
  c_in=4,
  c_out=2,
  width=8,
  mult=(1, 2),
  blocks=1,
  attention_levels=(0,),
  head_dim=4,
  context_dim=6,
  groups=4,
  image_attention=True,
  positions=1,
)
UNET_INPUTS = normal(2, 3, 8, 6, 4), normal(2, 5, 6, seed=1), normal(2, 3, 2, 6, seed=2)
UNET_FIXED = TIME, np.array([6, 2], np.float32)


@pytest.fixture(scope="module")
def unet():
  """One with every kind of layer."""

  def f(model, x, text, image, time, stride):
    return model(x, time, text, image, stride)

  return gradients(f, unet3d.UNet3D, **UNET), networks.params(unet3d.UNet3D, **UNET)


@pytest.mark.thorough
def test_the_unet_has_the_gradients_of_torch(unet):
  def theirs(p, *args):
    return torch_networks.unet(p, *args, head_dim=4, groups=4)

  check_function(*unet, theirs, UNET_INPUTS, UNET_FIXED)


@pytest.mark.thorough
def test_the_unet_changes_as_its_gradients_say(unet):
  """Central differences along a random direction for each kind of layer, and for each input."""
  run, params = unet
  flat = trees.flatten(params) | {f"input {i}": x for i, x in enumerate(UNET_INPUTS)}

  def outputs_and_gradients(flat):
    params = {key: x for key, x in flat.items() if not key.startswith("input")}
    inputs = tuple(flat[f"input {i}"] for i in range(len(UNET_INPUTS)))
    return run(trees.nest(params), inputs, UNET_FIXED)

  def loss(flat):
    (out,), _ = outputs_and_gradients(flat)
    return np.vdot(np.asarray(out, np.float64), cotangent(0, out.shape))

  _, (grads, inputs) = outputs_and_gradients(flat)
  grads = trees.flatten(grads) | {f"input {i}": x for i, x in enumerate(inputs)}
  kinds = collections.defaultdict(list)
  for key in flat:
    kinds[re.sub(r"^(down|middle|up)/\d+/|/[a-z]+$", "", key)].append(key)
  assert len(kinds) > 50

  rng = np.random.default_rng(0)
  for kind, keys in kinds.items():
    # Of a derivative along normal numbers the deviation is the length of the gradient.
    length = np.sqrt(sum(np.square(grads[key]).sum() for key in keys))
    step = {key: np.float32(5e-4) * normal(*np.shape(flat[key]), seed=rng) for key in keys}
    there, back = (
      loss(flat | {key: flat[key] + sign * x for key, x in step.items()})
      for sign in (np.float32(1), np.float32(-1))
    )
    expected = sum(np.vdot(x, grads[key]) for key, x in step.items())
    assert abs((there - back) / 2 - expected) < 1e-2 * 5e-4 * length, kind


@pytest.mark.parametrize(("positions", "causal"), [(0, False), (0, True), (2, True)])
def test_a_temporal_transformer_has_the_gradients_of_torch(positions, causal):
  sizes = dict(c=8, heads=3, head_dim=4, depth=2, positions=positions, causal=causal, groups=2)
  sizes |= dict(dtype=jnp.float32)
  network = unet3d_transformers.TemporalTransformer
  check_function(
    gradients(lambda model, x: model(x), network, **sizes),
    networks.params(network, **sizes),
    lambda p, x: torch_networks.temporal_transformer(p, x, heads=3, groups=2, causal=causal),
    (normal(2, 5, 2, 3, 8),),
  )


def test_latte_has_the_gradients_of_torch():
  sizes = dict(c_in=6, c_out=3, size=6, frames=4, width=16, depth=4, heads=2, classes=3)

  def ours(model, x, frame, coarse, time, label):
    return model(x, time, label, frame, coarse)

  check_function(
    gradients(ours, latte.Latte, **sizes),
    networks.params(latte.Latte, **sizes),
    lambda p, *args: torch_networks.latte(p, *args, patch=2, heads=2),
    (normal(2, 3, 4, 6, 3), normal(2, 4, 6, 3, seed=1), normal(2, 3, 4, 6, 3, seed=2)),
    (TIME, np.array([1, 3], np.int32)),
    faint="positions/.*",  # not trained
  )


def test_the_resampler_has_the_gradients_of_torch():
  sizes = dict(c_in=5, c_out=6, width=8, depth=2, heads=3, head_dim=4, queries=2, frames=3)
  check_function(
    gradients(lambda model, image: model(image), resampler.Resampler, **sizes),
    networks.params(resampler.Resampler, **sizes),
    lambda p, image: torch_networks.resampler(p, image, heads=3, frames=3),
    (normal(2, 7, 5),),
  )
