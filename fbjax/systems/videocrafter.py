"""VideoCrafter: a video UNet that sees the given frame as extra input channels, text, and image.

given frame -> codec -> latent frame, repeated over time = z1, and also concatenated to x
            -> CLIP -> Resampler -> image tokens, each frame its own, for cross-attention (optional)
caption     -> text network -> text tokens for cross-attention
stride      -> embedding, added to that of time

With two given frames, the first and the last, z1 runs from the one to the other. With none it is a
text-to-video network: z1 is zero, and the image lends nothing but its size. A coarse video,
where a neural prior makes one, is concatenated to x as the frame is.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fbjax import errors
from fbjax.models import clip, resampler, unet3d
from fbjax.systems import base, codecs, latents, networks, neural_prior
from fbjax.systems import remat as remat_lib

Given = Literal["first", "ends", "none"]


class Cond(NamedTuple):
  """What the UNet is told besides x and time.

  `text` holds token ids, if the text network trains, and `image` CLIP's tokens until `embed` runs.
  """

  frame: Float[Array, "b t h w c"]
  stride: Float[Array, "b"]
  text: Int[Array, "b n"] | Float[Array, "b n d"]
  null_text: Int[Array, "b n"] | Float[Array, "b n d"]
  image: Float[Array, "b m e"] | Float[Array, "b t m d"] | None = None
  null_image: Float[Array, "b m e"] | Float[Array, "b t m d"] | None = None
  coarse: Float[Array, "b t h w c"] | None = None


class VideoCrafter(latents.LatentSystem):
  """The video UNet with its codec, text and image networks. Implements `base.System`."""

  # What the UNet sees: the state and the given frame.
  inputs = 2

  def __init__(
    self,
    *,
    codec: codecs.Codec,
    unet: Mapping[str, Any],
    text: Mapping[str, Any],
    train_text: bool = False,
    image: Mapping[str, Any] | None = None,
    resampler: Mapping[str, Any] | None = None,
    given: Given = "first",
    coarse: bool = False,
    remat: str | bool = "none",
    null_tokens: np.ndarray | None,
    frames: int,
    dtype: Any = jnp.float32,
  ):
    """
    Args:
      codec: between videos and latents.
      unet: sizes of `unet3d.UNet3D`; channels follow from the codec.
      text: sizes of `clip.TextEncoder`; its width is the UNet's context.
      train_text: the text network is trained along; otherwise it is frozen.
      image: sizes of `clip.ImageEncoder`, frozen; None for a UNet without image tokens.
      resampler: sizes of `resampler.Resampler`, trained; its channels follow from the others.
      given: "first" frame, both "ends", or "none".
      coarse: the UNet is told a coarse video as well.
      remat: what stages of the UNet keep for the backward pass, see `remat.wrap`.
      null_tokens: token ids of the empty caption, int32 [n]; None where nothing will be encoded.
      frames: frames of a clip that it is trained at, which the Resampler's queries are for.
      dtype: of the networks' arithmetic; weights are float32.

    Raises:
      UserError: when only one of `image` and `resampler` is there, or for another `given`.
    """
    if (image is None) != (resampler is None):
      raise errors.UserError("config.system needs both 'image' and 'resampler', or neither")
    if given not in get_args(Given):
      raise errors.UserError(
        f"config.system.given is {given!r}; expected 'first', 'ends' or 'none'"
      )
    self.null_tokens = null_tokens
    self.given = given
    self.trains_text = train_text
    told = {"text"} | ({"stride"} if unet.get("stride_embedding", True) else set())
    told |= ({"image"} if image is not None else set()) | ({"last"} if given == "ends" else set())
    self.conditions = frozenset(told)
    options = {"dtype": dtype}
    inputs = self.inputs if given != "none" else 1
    sizes = {"c_in": (inputs + coarse) * codec.channels, "c_out": codec.channels}
    sizes |= {"context_dim": text["width"], "image_attention": image is not None}
    specs = {
      "unet": networks.NetworkSpec(
        unet3d.UNet3D,
        networks.sizes_of("config.system.unet", unet, sizes),
        network="videocrafter_unet",
        trained=True,
        options=options | {"wrap": remat_lib.wrap(remat)},
        given=tuple(sizes),
      ),
      "text": networks.NetworkSpec(
        clip.TextEncoder, dict(text), network="clip_text", trained=train_text, options=options
      ),
    }
    if image is not None:
      specs |= image_networks(image, resampler, text["width"], frames, options)
    super().__init__(specs, codec, frames)

  @property
  def unit(self) -> tuple[int, int]:
    return 1, 2 ** (len(self.networks["unet"].sizes["mult"]) - 1)

  def features(
    self, frozen: base.Params, batch: Mapping[str, jax.Array], keys: Key[Array, "b n"]
  ) -> base.Features:
    del keys  # Pixels are encoded as they are.
    if "video" in batch:
      name, shown = "clip", codecs.to_unit(batch["video"])
    else:
      names = ["image", "last"] if self.given == "ends" else ["image"]
      name, shown = "ends", jnp.stack([codecs.to_unit(batch[name]) for name in names], axis=1)
    found = {name: self.codec.moments(frozen, shown), "stride": batch["stride"]}
    found |= {"text": self._read(frozen, batch["tokens"])}
    return found | ({"image": self._look(frozen, shown[:, 0])} if "image" in self.networks else {})

  def nulls(self, frozen: base.Params, batch: base.Batch) -> base.Features:
    found = {"null_text": self._read(frozen, latents.null_tokens(batch, self.null_tokens))}
    if "image" not in self.networks:
      return found
    # The null image is grey, as training has always dropped it.
    size = self.networks["image"].sizes["size"]
    return found | {"null_image": self._look(frozen, jnp.zeros((1, size, size, 3)))}

  def draw(self, frozen: base.Params, features: base.Features, keys: jax.Array) -> base.Example:
    del frozen
    if "clip" in features:
      z0 = self.codec.draw(features["clip"], keys)
      ends = z0[:, :: max(self.frames - 1, 1)]
    else:
      z0, ends = None, self.codec.draw(features["ends"], keys)
    z1 = prior(ends, self.given, self.frames)
    stride = features["stride"].astype(jnp.float32)
    text, null_text = latents.with_null(features, "text")
    image, null_image = latents.with_null(features, "image")
    return base.Example(z0, z1, Cond(z1, stride, text, null_text, image, null_image))

  def _read(self, frozen: base.Params, tokens: Int[Array, "b n"]) -> jax.Array:
    """What the UNet hears of a text, or its tokens where the text network trains."""
    return tokens if self.trains_text else self.run("text", frozen)(tokens)

  def _look(self, frozen: base.Params, shown: Float[Array, "b h w 3"]) -> jax.Array:
    size = self.networks["image"].sizes["size"]
    return self.run("image", frozen)(clip.preprocess(shown, size=size))

  def drop(self, cond: Cond, text: Bool[Array, "b"], image: Bool[Array, "b"]) -> Cond:
    # The given frame is prior and condition at once: it is never dropped.
    cond = cond._replace(text=_where(text, cond.null_text, cond.text))
    if cond.image is None:
      return cond
    return cond._replace(image=_where(image, cond.null_image, cond.image))

  def embed(self, weights: base.Params, cond: Cond) -> Cond:
    if self.trains_text:
      read = self.run("text", weights)
      cond = cond._replace(text=read(cond.text), null_text=read(cond.null_text))
    if cond.image is None:
      return cond
    project = self.run("resampler", weights)
    image, null = (along_time(project(x), self.frames) for x in (cond.image, cond.null_image))
    return cond._replace(image=image, null_image=null)

  def denoise(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: Cond,
    keys: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    frame = None if self.given == "none" else cond.frame
    x = latents.beside(x, frame, cond.coarse)
    return self._predict(weights, x, t_net, cond, keys)

  def _predict(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c_in"],
    t_net: Float[Array, "b"],
    cond: Cond,
    keys: jax.Array | None,
  ) -> Float[Array, "b t h w c_out"]:
    stride = cond.stride if self.networks["unet"].sizes.get("stride_embedding", True) else None
    return self.run("unet", weights)(x, t_net, cond.text, cond.image, stride, keys)


class VideoCrafterPrior(neural_prior.NeuralPrior, VideoCrafter):
  """Its neural prior: the UNet sees the given frame repeated, at time 0, in place of a noisy state.

  It has the input channels of the text-to-video network, whose weights it can start from.
  """

  inputs = 1

  def coarse(
    self, weights: base.Params, cond: Cond, keys: jax.Array | None = None
  ) -> Float[Array, "b t h w c"]:
    return self._predict(weights, cond.frame, jnp.zeros(len(cond.frame)), cond, keys)


def image_networks(
  image: Mapping[str, Any],
  projector: Mapping[str, Any],
  width: int,
  frames: int,
  options: Mapping[str, Any],
) -> dict[str, networks.NetworkSpec]:
  """CLIP's image network and the Resampler between it and a UNet with context `width`."""
  given = {"c_in": image["width"], "c_out": width, "frames": frames}
  sizes = networks.sizes_of("config.system.resampler", projector, given)
  return {
    "image": networks.NetworkSpec(
      clip.ImageEncoder, dict(image), network="clip_image", trained=False, options=options
    ),
    "resampler": networks.NetworkSpec(
      resampler.Resampler,
      sizes,
      network="resampler",
      trained=True,
      options=options,
      given=tuple(given),
    ),
  }


def prior(
  ends: Float[Array, "b n h w c"], given: Given, frames: int
) -> Float[Array, "b {frames} h w c"]:
  """The first latent frame repeated, a straight way from the first to the last, or zero."""
  if given == "none":
    return jnp.zeros((len(ends), frames, *ends.shape[2:]), ends.dtype)
  if given == "first":
    return jnp.repeat(ends[:, :1], frames, axis=1)
  weight = jnp.linspace(0.0, 1.0, frames).reshape(1, frames, 1, 1, 1)
  return (1 - weight) * ends[:, :1] + weight * ends[:, -1:]


def along_time(tokens: Float[Array, "b t m d"], frames: int) -> Float[Array, "b {frames} m d"]:
  """Linearly interpolates tokens of each frame to another number of frames; both ends stay."""
  t = tokens.shape[1]
  if t == frames:
    return tokens
  place = np.linspace(0, t - 1, frames)
  weight = np.maximum(0, 1 - abs(place[:, None] - np.arange(t)))
  return jnp.einsum("ft,btmd->bfmd", jnp.asarray(weight, tokens.dtype), tokens)


def _where(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.where(mask.reshape(-1, *[1] * (y.ndim - 1)), x, y)
