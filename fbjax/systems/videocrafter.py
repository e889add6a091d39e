"""VideoCrafter: a video UNet that sees the given image as extra input channels, and reads text.

image -> codec -> latent frame, repeated over time = z1, and also concatenated to x on channels
caption -> text network (trained along) -> cross-attention
frame stride -> embedding, added to that of time
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fbjax.models import clip, layers, unet3d
from fbjax.systems import base, codecs


class Cond(NamedTuple):
  """What the UNet is told besides x and time. Text is token ids until `embed` has run."""

  frame: Float[Array, "b t h w c"]
  text: Int[Array, "b n"] | Float[Array, "b n d"]
  null_text: Int[Array, "b n"] | Float[Array, "b n d"]
  stride: Float[Array, "b"]


class VideoCrafter:
  """Implements `base.System`."""

  def __init__(
    self,
    *,
    codec: codecs.Codec,
    unet: Mapping[str, Any],
    text: Mapping[str, Any],
    null_tokens: np.ndarray,
    vocab: int,
    frames: int,
    dtype: Any = jnp.float32,
  ):
    """
    Args:
      codec: between videos and latents.
      unet: sizes of `unet3d.UNet3D`; channels follow from the codec.
      text: sizes of `clip.TextEncoder`; its width is the UNet's context.
      null_tokens: token ids of the empty caption, int32 [n].
      vocab: number of token ids.
      frames: frames a clip.
      dtype: of the networks' arithmetic; weights are float32.
    """
    self.codec = codec
    self.null_tokens = np.asarray(null_tokens, np.int32)
    self.frames = frames
    channels = codec.channels
    text_sizes = {"length": len(self.null_tokens), "vocab": vocab} | dict(text)
    self._make = {
      "unet": lambda key: unet3d.UNet3D(
        2 * channels,
        channels,
        context_dim=text["width"],
        dtype=dtype,
        **unet,
        rngs=layers.Keys(key),
      ),
      "text": lambda key: clip.TextEncoder(**text_sizes, dtype=dtype, rngs=layers.Keys(key)),
    }
    key = jax.random.key(0)
    self._graph = {
      name: nnx.split(nnx.eval_shape(make, key))[0] for name, make in self._make.items()
    }

  def init(self, key: jax.Array) -> base.Params:
    keys = jax.random.split(key, len(self._make))
    return {
      name: nnx.to_pure_dict(nnx.state(make(k), nnx.Param))
      for k, (name, make) in zip(keys, self._make.items(), strict=True)
    }

  def encode(
    self, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
  ) -> base.Example:
    if "video" in batch:
      z0 = self.codec.encode(frozen, to_unit(batch["video"]), keys)
      frame = z0[:, :1]
    else:
      z0 = None
      frame = self.codec.encode(frozen, to_unit(batch["image"][:, None]), keys)
    z1 = jnp.repeat(frame, self.frames, axis=1)
    tokens = batch["tokens"]
    null = jnp.broadcast_to(jnp.asarray(self.null_tokens), tokens.shape)
    return base.Example(z0, z1, Cond(z1, tokens, null, batch["stride"].astype(jnp.float32)))

  def drop(self, cond: Cond, text: Bool[Array, "b"], image: Bool[Array, "b"]) -> Cond:
    # The given frame is prior and condition at once: it is never dropped (FrameBridge, 2.4).
    mask = text.reshape(-1, *[1] * (cond.text.ndim - 1))
    return cond._replace(text=jnp.where(mask, cond.null_text, cond.text))

  def embed(self, params: base.Params, cond: Cond) -> Cond:
    network = nnx.merge(self._graph["text"], params["text"])
    return cond._replace(text=network(cond.text), null_text=network(cond.null_text))

  def denoise(
    self,
    params: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: Cond,
    key: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    network = nnx.merge(self._graph["unet"], params["unet"])
    x = jnp.concatenate([x, cond.frame], axis=-1)
    return network(x, t_net, cond.text, None, cond.stride, key).astype(jnp.float32)

  def decode(
    self, frozen: base.Params, z: Float[Array, "b t h w c"]
  ) -> Float[Array, "b frames height width 3"]:
    return self.codec.decode(frozen, z)


def to_unit(video: jax.Array) -> jax.Array:
  """uint8 to float32 in [-1, 1]."""
  return video.astype(jnp.float32) / 127.5 - 1
