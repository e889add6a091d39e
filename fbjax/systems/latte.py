"""Latte: a transformer over patches, class conditional, with the given frame in front in time.

given frame -> codec -> latent frame, repeated over time = z1, and also put before x in time
class       -> embedding, added to that of time

With a neural prior, a frozen network makes a coarse video of frame and class. It is told to the
network as more channels, and becomes z1 in place of the still frame (FrameBridge, §4e).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fbjax.models import latte
from fbjax.systems import base, codecs
from fbjax.systems import parts as parts_lib


class Cond(NamedTuple):
  """What the network is told besides x and time."""

  frame: Float[Array, "b h w c"]
  label: Int[Array, "b"]
  null_label: Int[Array, "b"]
  coarse: Float[Array, "b t h w c"] | None = None


class Latte(parts_lib.Networks):
  """Implements `base.System`."""

  def __init__(
    self,
    *,
    codec: codecs.Codec,
    latte: Mapping[str, Any],
    prior: Mapping[str, Any] | None = None,
    prior_as: Literal["prior", "condition"] = "prior",
    remat: bool = False,
    frames: int,
    dtype: Any = jnp.float32,
  ):
    """
    Args:
      codec: between videos and latents.
      latte: sizes of `latte.Latte`; channels, frames and dropout of labels are given by the others.
      prior: sizes of `latte.NeuralPrior`, frozen; None starts from the still frame.
      prior_as: the coarse video is "prior" and condition, or "condition" alone.
      remat: blocks are computed again in the backward pass, which saves their memory.
      frames: frames a clip.
      dtype: of the networks' arithmetic; weights are float32.

    Raises:
      ValueError: for another `prior_as`.
    """
    if prior_as not in ("prior", "condition"):
      raise ValueError(f"config.system.prior_as is {prior_as!r}; expected 'prior' or 'condition'")
    self.codec, self.frames, self.prior_as = codec, frames, prior_as
    self.classes = latte.get("classes")
    c = codec.channels
    parts = {
      "latte": network(
        {"c_in": c if prior is None else 2 * c, "c_out": c, "frames": frames + 1} | dict(latte),
        dtype,
        remat,
      )
    }
    if prior is not None:
      sizes = {"c_in": c, "c_out": c, "frames": frames} | dict(prior)
      parts["prior"] = prior_part(sizes, dtype, trained=False)
    super().__init__(parts | codec.parts)

  def encode(
    self, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
  ) -> base.Example:
    z0, frame = encode_clip(self.codec, frozen, batch, keys)
    label, null = labels(batch, len(frame), self.classes)
    z1 = jnp.repeat(frame[:, None], self.frames, axis=1)
    if "prior" not in self.parts:
      return base.Example(z0, z1, Cond(frame, label, null))
    coarse = jax.lax.stop_gradient(self.run("prior", frozen)(frame, label))
    z1 = coarse if self.prior_as == "prior" else z1
    return base.Example(z0, z1, Cond(frame, label, null, coarse))

  def drop(self, cond: Cond, text: Bool[Array, "b"], image: Bool[Array, "b"]) -> Cond:
    """The class takes the place of the text; the frame is never dropped."""
    del image
    return cond._replace(label=jnp.where(text, cond.null_label, cond.label))

  def embed(self, weights: base.Params, cond: Cond) -> Cond:
    del weights
    return cond

  def denoise(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: Cond,
    key: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    del key  # Labels are dropped by the objective, as every condition is.
    label = None if self.classes is None else cond.label
    return self.run("latte", weights)(x, t_net, label, cond.frame, cond.coarse)

  def decode(
    self, frozen: base.Params, z: Float[Array, "b t h w c"]
  ) -> Float[Array, "b frames height width 3"]:
    return self.codec.decode(frozen, z)


class NeuralPrior(parts_lib.Networks):
  """The neural prior by itself: a denoiser that looks at neither state nor time.

  Trained to predict z0, the loss of a bridge is then regression on the video, and a sampler of one
  step shows what it makes (FrameBridge, §4e). Implements `base.System`.
  """

  def __init__(
    self,
    *,
    codec: codecs.Codec,
    prior: Mapping[str, Any],
    frames: int,
    dtype: Any = jnp.float32,
  ):
    """
    Args:
      codec: between videos and latents.
      prior: sizes of `latte.NeuralPrior`; channels and frames are given by the others.
      frames: frames a clip.
      dtype: of the networks' arithmetic; weights are float32.
    """
    self.codec, self.frames, self.classes = codec, frames, prior.get("classes")
    c = codec.channels
    sizes = {"c_in": c, "c_out": c, "frames": frames} | dict(prior)
    super().__init__({"prior": prior_part(sizes, dtype, trained=True)} | codec.parts)

  def encode(
    self, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
  ) -> base.Example:
    z0, frame = encode_clip(self.codec, frozen, batch, keys)
    label, null = labels(batch, len(frame), self.classes)
    z1 = jnp.repeat(frame[:, None], self.frames, axis=1)
    return base.Example(z0, z1, Cond(frame, label, null))

  drop = Latte.drop
  embed = Latte.embed
  decode = Latte.decode

  def denoise(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: Cond,
    key: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    del x, t_net, key
    return self.run("prior", weights)(cond.frame, None if self.classes is None else cond.label)


def network(sizes: Mapping[str, Any], dtype: Any, remat: bool) -> parts_lib.Part:
  options = {"dtype": dtype, "label_dropout": 0.0} | ({"wrap": jax.checkpoint} if remat else {})
  return parts_lib.Part(latte.Latte, sizes, network="latte", trained=True, options=options)


def prior_part(sizes: Mapping[str, Any], dtype: Any, *, trained: bool) -> parts_lib.Part:
  options = {"dtype": dtype, "label_dropout": 0.0}
  return parts_lib.Part(
    latte.NeuralPrior, sizes, network="latte_prior", trained=trained, options=options
  )


def encode_clip(
  codec: codecs.Codec, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
  """Latents of a clip, if there is one, and of its first frame, drawn apart as published."""
  purposes = jax.vmap(jax.random.split)(keys)
  if "video" not in batch:
    return None, codec.encode(frozen, codecs.to_unit(batch["image"][:, None]), purposes[:, 0])[:, 0]
  video = codecs.to_unit(batch["video"])
  frame = codec.encode(frozen, video[:, :1], purposes[:, 0])[:, 0]
  return codec.encode(frozen, video, purposes[:, 1]), frame


def labels(
  batch: Mapping[str, jax.Array], n: int, classes: int | None
) -> tuple[Int[Array, "b"], Int[Array, "b"]]:
  """Class and null class of each clip; a clip without a class has the null one."""
  null = jnp.full(n, classes or 0, jnp.int32)
  label = batch.get("label", null)
  return jnp.where(label < 0, null, label).astype(jnp.int32), null
