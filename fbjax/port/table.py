"""Which networks can be ported, and by whose names and sizes."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fbjax import errors
from fbjax.port import leaf
from fbjax.port.names import (
  c3d,
  clip,
  cogvideox,
  dreamsim,
  i3d,
  inception,
  latte,
  lpips,
  resampler,
  t5,
  unet3d,
  vae_image,
  vae_video,
)


class Layout(NamedTuple):
  """What the checkpoints of a network look like, as one code base writes them.

  table: spells the leaves out from the arguments of the model's constructor.
  sizes: reads these arguments off the published config.
  mark: a key that the published config has and the arguments have not.
  sign: a regex for one key that tells such a checkpoint from the others.
  prefix: what stands before the keys in a whole checkpoint.
  aliases: regexes of old spellings and what they became.
  left_over: regexes of keys that such files carry and nobody needs.
  config: the config.json of a folder, from the arguments of the model's constructor.
  file: where the weights are in the folder of a whole pipeline.
  """

  table: Callable[..., leaf.Table]
  sizes: Callable[[dict[str, Any]], dict[str, Any]]
  mark: str
  sign: str
  prefix: str = ""
  aliases: tuple[tuple[str, str], ...] = ()
  left_over: tuple[str, ...] = ()
  config: Callable[..., dict[str, Any]] | None = None
  file: str = ""

  def published(self, sizes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The published config in `sizes`, which yaml files wrap in `params`, if it is one."""
    for config in (sizes, *sizes.values()):
      if isinstance(config, Mapping) and self.mark in config:
        return config
    return None

  def arguments(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the model's constructor: `sizes` itself, or read off the published config.

    Raises:
      UserError: for a published config that lacks a key, or has it in another form.
    """
    config = self.published(sizes)
    if config is None:
      return dict(sizes)
    try:
      return self.sizes(dict(config))
    except (LookupError, TypeError, AttributeError) as error:
      raise errors.UserError(
        f"the published config with {self.mark!r} cannot be read, because of {error}: take it from "
        "where its checkpoint was published"
      ) from error

  def leaves(self, sizes: Mapping[str, Any]) -> leaf.Table:
    return self.table(**self.arguments(sizes))

  def plain(self, key: str) -> str:
    """The key without the prefix, and old spellings renewed."""
    key = key.removeprefix(self.prefix)
    for old, new in self.aliases:
      key = re.sub(old, new, key)
    return key

  def unneeded(self, key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in self.left_over)


# The first layout of a network is the one written unless another is asked for.
NETWORKS: dict[str, dict[str, Layout]] = {
  "videocrafter_unet": {
    "videocrafter": Layout(
      unet3d.table,
      unet3d.sizes,
      mark="model_channels",
      sign=r"input_blocks\.0\.0\.weight",
      prefix=unet3d.PREFIX,
      aliases=unet3d.ALIASES,
    )
  },
  "resampler": {
    "dynamicrafter": Layout(
      resampler.table,
      resampler.sizes,
      mark="num_queries",
      sign=r"layers\.0\.0\.to_kv\.weight",
      prefix=resampler.PREFIX,
    )
  },
  "vae_image": {
    "ldm": Layout(
      vae_image.ldm_table,
      vae_image.ldm_sizes,
      mark="ddconfig",
      sign=r"encoder\.mid\.attn_1\.q\.weight",
      prefix=vae_image.PREFIX,
      left_over=(r"loss\..*",),
    ),
    "diffusers": Layout(
      vae_image.diffusers_table,
      vae_image.diffusers_sizes,
      mark="block_out_channels",
      sign=r"encoder\.mid_block\.attentions\.0\.group_norm\.weight",
      aliases=vae_image.DIFFUSERS_ALIASES,
    ),
  },
  "vae_video": {
    "diffusers": Layout(
      vae_video.table,
      vae_video.sizes,
      mark="block_out_channels",
      sign=r"encoder\.conv_in\.conv\.weight",
      config=vae_video.config,
      file="vae/diffusion_pytorch_model.safetensors",
    )
  },
  "cogvideox": {
    "diffusers": Layout(
      cogvideox.table,
      cogvideox.sizes,
      mark="text_embed_dim",
      sign=r"patch_embed\.text_proj\.weight",
      config=cogvideox.config,
      file="transformer/diffusion_pytorch_model.safetensors",
    )
  },
  "t5": {
    "transformers": Layout(
      t5.table,
      t5.sizes,
      mark="d_kv",
      sign=r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight",
      aliases=t5.ALIASES,
      left_over=t5.LEFT_OVER,
      config=t5.config,
      file="text_encoder/model.safetensors",
    )
  },
  "clip_text": {
    "openclip": Layout(
      clip.text_table,
      clip.text_sizes,
      mark="text_cfg",
      sign=r"(?<!visual\.)transformer\.resblocks\.0\.ln_1\.weight",
      prefix=clip.TEXT_PREFIX,
      left_over=(r"attn_mask",),
    )
  },
  "clip_image": {
    "openclip": Layout(
      clip.image_table,
      clip.image_sizes,
      mark="vision_cfg",
      sign=r"visual\.conv1\.weight",
      prefix=clip.IMAGE_PREFIX,
      left_over=clip.LEFT_OVER,
    )
  },
  "clip_b32": {
    "openclip": Layout(
      clip.pair_table,
      clip.pair_sizes,
      mark="vision_cfg",
      sign=r"(?<!visual\.)transformer\.resblocks\.0\.ln_1\.weight",
      left_over=clip.OPENAI,
    )
  },
  "i3d": {
    "pytorch": Layout(
      i3d.table,
      i3d.sizes,
      mark="num_classes",
      sign=r"Conv3d_1a_7x7\.conv3d\.weight",
      left_over=i3d.LEFT_OVER,
    )
  },
  "inception": {
    "pytorch-fid": Layout(
      inception.table,
      inception.sizes,
      mark="aux_logits",
      sign=r"Mixed_7c\.branch3x3dbl_3a\.conv\.weight",
      left_over=inception.LEFT_OVER,
    )
  },
  "c3d": {
    "tgan2": Layout(
      c3d.table,
      c3d.sizes,
      mark="num_classes",
      sign=r"conv5b/W",
      aliases=c3d.ALIASES,
    )
  },
  "lpips": {
    "lpips": Layout(
      lpips.table,
      lpips.sizes,
      mark="pnet_type",
      sign=r"lin0\.model\.1\.weight",
      aliases=lpips.ALIASES,
      left_over=lpips.LEFT_OVER,
    )
  },
  "dreamsim": {
    "dreamsim": Layout(
      dreamsim.table,
      dreamsim.sizes,
      mark="model_type",
      sign=r"extractor_list\.0\.model\.cls_token",
      left_over=dreamsim.LEFT_OVER,
    )
  },
  "latte": {
    "latte": Layout(
      latte.table,
      latte.sizes,
      mark="learn_sigma",
      sign=r"t_embedder\.mlp\.0\.weight",
      prefix=latte.PREFIX,
    )
  },
  "latte_prior": {
    "latte": Layout(
      latte.prior_table,
      latte.prior_sizes,
      mark="learn_sigma",
      sign=r"(?<=nwarp_model\.)x_embedder\.proj\.weight",
      prefix=latte.PRIOR_PREFIX,
      left_over=latte.PRIOR_LEFT_OVER,
    )
  },
}


def find(network: str) -> dict[str, Layout]:
  if network not in NETWORKS:
    raise errors.UserError(f"no network is called {network!r}; there are {', '.join(NETWORKS)}")
  return NETWORKS[network]


def layout(
  network: str, sizes: Mapping[str, Any], keys: Iterable[str] = (), name: str | None = None
) -> Layout:
  """The layout called `name`, or that of the published config, or that of the keys, or the first."""
  layouts = find(network)
  if name is not None:
    if name not in layouts:
      raise errors.UserError(f"{network} has no layout {name!r}; there are {', '.join(layouts)}")
    return layouts[name]
  keys = list(keys)
  fits = [x for x in layouts.values() if x.published(sizes) is not None]
  fits += [x for x in layouts.values() if any(re.search(x.sign + "$", key) for key in keys)]
  return (fits or list(layouts.values()))[0]


def arguments(network: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
  """Arguments of the model's constructor, from themselves or from any published config."""
  return layout(network, sizes).arguments(sizes)


def layout_name(network: str, sizes: Mapping[str, Any], keys: Iterable[str] = ()) -> str:
  """The name of what `layout` finds."""
  found = layout(network, sizes, keys)
  return next(name for name, x in find(network).items() if x is found)


def prefix(network: str, name: str) -> str:
  """What a whole checkpoint has before the keys of a network."""
  return layout(network, {}, name=name).prefix


def locate(network: str, keys: Iterable[str]) -> str | None:
  """What stands before the keys of a network in a checkpoint; None if it is not there."""
  for key in keys:
    for x in find(network).values():
      if match := re.fullmatch(rf"(.*?)({x.sign})", key):
        return match[1]
  return None


def recognize(keys: Iterable[str]) -> dict[str, str]:
  """The networks in a whole checkpoint: {prefix: network}."""
  found: dict[str, str] = {}
  for key in keys:
    for network, layouts in NETWORKS.items():
      for x in layouts.values():
        if match := re.fullmatch(rf"(.*?)({x.sign})", key):
          found.setdefault(match[1], network)
  return found
