"""Base class of systems that denoise a codec's latents: clip sizes, encoding and decoding."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fbjax import errors
from fbjax.systems import base, codecs, networks


class LatentSystem(networks.NetworkSet):
  """Networks around a codec, for clips of `frames` frames.

  Their weights depend on neither length nor size of a clip beyond what their sizes say, so that the
  same ones serve clips of other lengths and sizes (`for_clips`).
  """

  # Whether its latents may have fewer frames than the clip.
  squeezes_time = False

  def __init__(self, specs: Mapping[str, networks.NetworkSpec], codec: codecs.Codec, frames: int):
    if isinstance(codec, codecs.VideoAutoencoder) and not self.squeezes_time:
      raise errors.UserError(
        "config.system.codec.name is 'video_autoencoder', which makes one latent frame of several, and this "
        "system needs one of each: take 'autoencoder' or 'pixels', or the system cogvideox"
      )
    super().__init__(dict(specs) | codec.networks)
    self.codec, self.frames = codec, frames

  @property
  def decoders(self) -> tuple[str, ...]:
    return tuple(self.codec.networks)

  @property
  def unit(self) -> tuple[int, int]:
    """Latent frames, and latent pixels a side, whose multiples the network takes."""
    raise NotImplementedError

  def check_clip(self, frames: int, size: tuple[int, int]) -> None:
    time, side = self.unit

    def fits(frames: int) -> bool:
      latents = self.codec.latent_frames(frames)
      return latents is not None and latents % time == 0

    check_frames(frames, fits)
    check_size(size, self.codec.factor * side)

  def for_clips(self, frames: int, size: tuple[int, int]) -> "LatentSystem":
    self.check_clip(frames, size)
    other = copy.copy(self)
    other.frames = frames
    return other

  def encode(self, frozen: base.Params, batch: base.Batch, keys: jax.Array) -> base.Example:
    # Both halves split a clip's key in the same way, and each uses its own part.
    features = self.features(frozen, batch, jax.random.clone(keys)[:, None])
    return self.draw(frozen, features | self.nulls(frozen, batch), keys)

  def features(
    self, frozen: base.Params, batch: base.Batch, keys: Key[Array, "b n"]
  ) -> base.Features:
    raise NotImplementedError

  def nulls(self, frozen: base.Params, batch: base.Batch) -> base.Features:
    raise NotImplementedError

  def draw(self, frozen: base.Params, features: base.Features, keys: jax.Array) -> base.Example:
    raise NotImplementedError

  def embed(self, weights: base.Params, cond: base.Cond) -> base.Cond:
    del weights
    return cond

  def decode(
    self, frozen: base.Params, z: Float[Array, "b t h w c"]
  ) -> Float[Array, "b frames height width 3"]:
    return self.codec.decode(frozen, z)


def beside(x: Float[Array, "b t h w c"], *told: Any | None) -> Float[Array, "b t h w c2"]:
  """Concatenates x and conditioning videos along channels; None is left out."""
  return jnp.concatenate([x, *(video for video in told if video is not None)], axis=-1)


def null_tokens(
  batch: base.Batch, empty: Int[np.ndarray, "n"]
) -> Int[Array, "1 n"] | Int[Array, "b n"]:
  """Token ids of the unconditional text: the batch's negative prompts, or the empty caption."""
  return batch["null_tokens"] if "null_tokens" in batch else jnp.asarray(empty)[None]


def with_null(features: base.Features, name: str) -> tuple[Array | None, Array | None]:
  """A feature and its null, one for each clip; None for what the system is not told."""
  if name not in features:
    return None, None
  found = features[name]
  return found, jnp.broadcast_to(features[f"null_{name}"], found.shape)


def check_frames(frames: int, fits: Callable[[int], bool]) -> None:
  """Raises a UserError that names the nearest lengths that fit."""
  if frames > 0 and fits(frames):
    return
  near = [
    next((n for n in lengths if fits(n)), None)
    for lengths in (range(frames - 1, 0, -1), range(max(frames, 0) + 1, max(frames, 0) + 65))
  ]
  takes = " or ".join(str(n) for n in near if n is not None)
  raise errors.UserError(
    f"clips of {frames} frames do not fit this system; the nearest that do have "
    f"{takes or 'another number of'} frames (--frames, config.data.frames)"
  )


def check_size(size: tuple[int, int], multiple: int) -> None:
  """Raises a UserError that names the nearest sizes, height x width, with sides that are multiples."""
  if all(side > 0 and side % multiple == 0 for side in size):
    return
  below = [max(side // multiple, 1) * multiple for side in size]
  above = [max(-(-side // multiple), 1) * multiple for side in size]
  near = dict.fromkeys("x".join(map(str, sides)) for sides in (below, above))
  raise errors.UserError(
    f"clips of {'x'.join(map(str, size))} pixels do not fit this system: height and width must each "
    f"be a multiple of {multiple}, such as {' or '.join(near)} (--size, config.data.size)"
  )
