"""Latte: a transformer over patches, class conditional, with the given frame in front in time.

given frame -> codec -> latent frame, repeated over time = z1, and also put before x in time
class       -> embedding, added to that of time

A coarse video, where a neural prior makes one, is told as more channels (FrameBridge, §4e).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fbjax.models import latte
from fbjax.systems import base, codecs, latents, networks, neural_prior


class Cond(NamedTuple):
  """What the network is told besides x and time."""

  frame: Float[Array, "b h w c"]
  label: Int[Array, "b"]
  null_label: Int[Array, "b"]
  coarse: Float[Array, "b t h w c"] | None = None


class Latte(latents.LatentSystem):
  """Latte with its codec. Implements `base.System`."""

  fixed = (r"(^|/)positions/(space|time)$",)

  def __init__(
    self,
    *,
    codec: codecs.Codec,
    latte: Mapping[str, Any],
    coarse: bool = False,
    remat: bool = False,
    frames: int,
    dtype: Any = jnp.float32,
  ):
    """
    Args:
      codec: between videos and latents.
      latte: sizes of `latte.Latte`; channels and frames are given by the others.
      coarse: the network is told a coarse video as well.
      remat: blocks are computed again in the backward pass, which saves their memory.
      frames: frames a clip.
      dtype: of the networks' arithmetic; weights are float32.
    """
    self.classes = latte.get("classes")
    self.conditions = frozenset({"label"} if self.classes else ())
    c = codec.channels
    given = {"c_in": 2 * c if coarse else c, "c_out": c, "frames": frames, "patch": 2}
    options = {"dtype": dtype} | ({"wrap": jax.checkpoint} if remat else {})
    spec = self._network(given | dict(latte), options)
    super().__init__({"latte": spec}, codec, frames)

  def _network(self, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> networks.NetworkSpec:
    sizes = dict(sizes) | {"frames": sizes["frames"] + 1}  # the given frame stands in front
    return networks.NetworkSpec(latte.Latte, sizes, network="latte", trained=True, options=options)

  @property
  def unit(self) -> tuple[int, int]:
    return 1, self.networks["latte"].sizes["patch"]

  def encode(
    self, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
  ) -> base.Example:
    z0, frame = encode_clip(self.codec, frozen, batch, keys)
    label, null = labels(batch, len(frame), self.classes)
    z1 = jnp.repeat(frame[:, None], self.frames, axis=1)
    return base.Example(z0, z1, Cond(frame, label, null))

  def drop(self, cond: Cond, text: Bool[Array, "b"], image: Bool[Array, "b"]) -> Cond:
    """The class takes the place of the text; the frame is never dropped."""
    del image
    return cond._replace(label=jnp.where(text, cond.null_label, cond.label))

  def denoise(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: Cond,
    keys: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    del keys  # Nothing drops out.
    return self.run("latte", weights)(x, t_net, self._label(cond), cond.frame, cond.coarse)

  def _label(self, cond: Cond) -> Int[Array, "b"] | None:
    return None if self.classes is None else cond.label


class LattePrior(neural_prior.NeuralPrior, Latte):
  """Its neural prior: a Latte without time that makes a coarse video of frame and class."""

  def _network(self, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> networks.NetworkSpec:
    return networks.NetworkSpec(
      latte.NeuralPrior, sizes, network="latte_prior", trained=True, options=options
    )

  def coarse(
    self, weights: base.Params, cond: Cond, keys: jax.Array | None = None
  ) -> Float[Array, "b t h w c"]:
    del keys
    return self.run("latte", weights)(cond.frame, self._label(cond), self.frames)


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
