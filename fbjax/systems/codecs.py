"""Codecs: videos in [-1, 1] to latents and back."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fbjax import checks, errors
from fbjax.models import vae_image, vae_video
from fbjax.systems import networks

KEY = "config.system.codec"

Moments = dict[str, Float[Array, "b tz hz wz c"]]


@runtime_checkable
class Codec(Protocol):
  """Videos to latents of `channels` channels, `factor` times smaller in height and in width.

  `networks` are its own; the system that has the codec lists them among its networks.
  """

  @property
  def networks(self) -> dict[str, networks.NetworkSpec]: ...

  @property
  def channels(self) -> int: ...

  @property
  def factor(self) -> int: ...

  def latent_frames(self, frames: int) -> int | None:
    """Latent frames of a clip of `frames` frames; None if decoding would give another length."""
    ...

  def moments(self, frozen: Any, video: Float[Array, "b t h w 3"]) -> Moments:
    """Moments of the latent's distribution: the mean, and the log-variance if `draw` samples."""
    ...

  def draw(self, moments: Moments, keys: jax.Array) -> Float[Array, "b tz hz wz c"]:
    """Scaled latents: sampled with one key per clip, or the mean; other moments are ignored."""
    ...

  def decode(self, frozen: Any, z: Float[Array, "b tz hz wz c"]) -> Float[Array, "b t h w 3"]: ...


class Pixels:
  """No autoencoder: blocks of `patch` x `patch` pixels become channels, times `scale`.

  `scale` brings the values near unit variance, which the bridges' noise levels are made for.
  """

  def __init__(self, patch: int = 2, scale: float = 1.0):
    self.patch = checks.whole(f"{KEY}.patch", patch)
    self.scale = checks.number(f"{KEY}.scale", scale, above=0)

  @property
  def networks(self) -> dict[str, networks.NetworkSpec]:
    return {}

  @property
  def channels(self) -> int:
    return 3 * self.patch**2

  @property
  def factor(self) -> int:
    return self.patch

  def latent_frames(self, frames: int) -> int | None:
    return frames

  def moments(self, frozen: Any, video: Float[Array, "b t h w 3"]) -> Moments:
    return {
      "mean": einops.rearrange(
        video, "b t (h p) (w q) c -> b t h w (p q c)", p=self.patch, q=self.patch
      )
    }

  def draw(self, moments: Moments, keys: jax.Array) -> Float[Array, "b t hz wz c"]:
    return self.scale * moments["mean"]

  def decode(self, frozen: Any, z: Float[Array, "b t hz wz c"]) -> Float[Array, "b t h w 3"]:
    return einops.rearrange(
      z / self.scale, "b t h w (p q c) -> b t (h p) (w q) c", p=self.patch, q=self.patch
    )


class VAE:
  """A variational autoencoder, frozen as the network "vae" of the system that owns the codec.

  Latents are those of the network times `scale`, which brings them to about unit variance. Of the
  posterior a "sample" is drawn, or its "mode" is taken.
  """

  def __init__(
    self,
    spec: networks.NetworkSpec,
    *,
    factor: int,
    scale: float,
    draw: str,
    options: Mapping[str, Any],
  ):
    """`options` are of the network's encode and decode."""
    if draw not in ("sample", "mode"):
      raise errors.UserError(f"{KEY}.draw is {draw!r}; expected 'sample' or 'mode'")
    checks.number(f"{KEY}.scale", scale, above=0)
    self.networks = {"vae": spec}
    self.channels, self.factor = spec.sizes["c_latent"], factor
    self.scale, self.samples, self.options = scale, draw == "sample", options
    self._run = networks.NetworkSet(self.networks).run

  def moments(self, frozen: Any, video: Float[Array, "b t h w 3"]) -> Moments:
    found = self._run("vae", frozen, "encode")(video, **self.options)
    return {"mean": found.mean} | ({"logvar": found.logvar} if self.samples else {})

  def draw(self, moments: Moments, keys: jax.Array) -> Float[Array, "b tz hz wz c"]:
    if not self.samples:
      return self.scale * moments["mean"]
    mean = moments["mean"]
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return self.scale * vae_image.Gaussian(mean, moments["logvar"]).sample(noise)

  def decode(self, frozen: Any, z: Float[Array, "b tz hz wz c"]) -> Float[Array, "b t h w 3"]:
    return self._run("vae", frozen, "decode")(z / self.scale, **self.options)


class Autoencoder(VAE):
  """Stable Diffusion's VAE, frame by frame (`models.vae_image`)."""

  def __init__(
    self,
    *,
    scale: float = 0.18215,
    draw: str = "sample",
    at_once: int | None = 8,
    dtype: Any = jnp.float32,
    c_latent: int = 4,
    width: int = 128,
    mult: Sequence[int] = (1, 2, 4, 4),
    blocks: int = 2,
    groups: int = 32,
  ):
    """
    Args:
      scale: brings latents to about unit variance.
      draw: "sample" of the posterior, as published, or its "mode".
      at_once: frames of a clip that are encoded or decoded together, which bounds the memory.
      dtype: of the VAE's arithmetic.
      c_latent, width, mult, blocks, groups: sizes of `vae_image.AutoencoderKL`.

    Raises:
      UserError: for another `draw`.
    """
    sizes = {"c_in": 3, "c_latent": c_latent, "width": width, "mult": mult, "blocks": blocks}
    spec = networks.NetworkSpec(
      vae_image.AutoencoderKL,
      sizes | {"groups": groups},
      network="vae_image",
      trained=False,
      options={"dtype": dtype},
    )
    spec.check(KEY)
    if at_once is not None:
      checks.whole(f"{KEY}.at_once", at_once)
    factor, options = 2 ** (len(mult) - 1), {"at_once": at_once}
    super().__init__(spec, factor=factor, scale=scale, draw=draw, options=options)

  def latent_frames(self, frames: int) -> int | None:
    return frames


class VideoAutoencoder(VAE):
  """CogVideoX's causal video VAE: T = 8 n + 1 frames become 2 n + 1 latent frames."""

  def __init__(
    self,
    *,
    scale: float = 1.15258426,
    draw: str = "mode",
    tiled: bool = True,
    tile: Sequence[int] = (240, 360),
    dtype: Any = jnp.float32,
    c_latent: int = 16,
    widths: Sequence[int] = (128, 256, 256, 512),
    blocks: int = 3,
    groups: int = 32,
  ):
    """
    Args:
      scale: brings latents to about unit variance.
      draw: "mode" of the posterior, as published for training, or a "sample" of it.
      tiled: frames larger than `tile` in overlapping tiles, as published; otherwise whole.
      tile: height and width in pixels; half the `sample_height` and `sample_width` of a published
        config.json.
      dtype: of the VAE's arithmetic.
      c_latent, widths, blocks, groups: sizes of `vae_video.CausalAutoencoder`.

    Raises:
      UserError: for another `draw`, or a tile that does not divide into latents.
    """
    tile = checks.pair(f"{KEY}.tile", tile, "height and width")
    sizes = {"c_in": 3, "c_latent": c_latent, "widths": widths, "blocks": blocks}
    spec = networks.NetworkSpec(
      vae_video.CausalAutoencoder,
      sizes | {"groups": groups, "tile": tile},
      network="vae_video",
      trained=False,
      options={"dtype": dtype},
    )
    spec.check(KEY)
    factor = 2 ** (len(widths) - 1)
    if tiled:
      vae_video.check_tile(tile, factor)
    super().__init__(spec, factor=factor, scale=scale, draw=draw, options={"tiled": tiled})

  def latent_frames(self, frames: int) -> int | None:
    # An even number of latent frames is decoded to four frames each.
    return (frames - 1) // 4 + 1 if frames % 8 == 1 else None


def still_moments(
  codec: Codec, frozen: Any, frame: Float[Array, "b h w 3"], frames: int
) -> Moments:
  """Moments of a clip whose `frames` frames are all `frame`, by encoding a single one.

  Of such a clip all latent frames are equal, if the codec is causal in time and pads with the first
  frame, or encodes frames one by one.
  """
  of_one = codec.moments(frozen, frame[:, None])
  count = codec.latent_frames(frames)
  return {name: jnp.repeat(x, count, axis=1) for name, x in of_one.items()}


def to_unit(video: jax.Array) -> jax.Array:
  """uint8 to float32 in [-1, 1]."""
  return video.astype(jnp.float32) / 127.5 - 1
