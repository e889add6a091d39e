"""Latte: a transformer over patches, told a class or a text, with the given frame in front in time.

given frame -> codec -> latent frame, repeated over time = z1, and also put before x in time
class       -> embedding, added to that of time
caption     -> text network, trained along -> one vector, added likewise

A coarse video, where a neural prior makes one, is concatenated along channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from fbjax.models import clip, latte
from fbjax.systems import base, codecs, latents, networks, neural_prior
from fbjax.systems import remat as remat_lib


class Cond(NamedTuple):
  """What the network is told besides x and time; text is token ids until `embed` has read them."""

  frame: Float[Array, "b h w c"]
  label: Int[Array, "b"]
  null_label: Int[Array, "b"]
  text: Int[Array, "b n"] | Float[Array, "b d"] | None = None
  null_text: Int[Array, "b n"] | Float[Array, "b d"] | None = None
  coarse: Float[Array, "b t h w c"] | None = None


class Latte(latents.LatentSystem):
  """Latte with its codec. Implements `base.System`."""

  fixed = (r"(^|/)positions/(space|time)$",)

  def __init__(
    self,
    *,
    codec: codecs.Codec,
    latte: Mapping[str, Any],
    text: Mapping[str, Any] | None = None,
    coarse: bool = False,
    remat: str | bool = "none",
    null_tokens: np.ndarray | None = None,
    frames: int,
    dtype: Any = jnp.float32,
  ):
    """
    Args:
      codec: between videos and latents.
      latte: sizes of `latte.Latte`; channels and frames are given by the others.
      text: sizes of `clip.TextEncoder`, trained along, whose `pool` is the text; None without.
      coarse: the network is told a coarse video as well.
      remat: what blocks keep for the backward pass, see `remat.wrap`.
      null_tokens: token ids of the empty caption, int32 [n]; None where nothing will be encoded.
      frames: frames a clip.
      dtype: of the networks' arithmetic; weights are float32.
    """
    self.classes, self.null_tokens = latte.get("classes"), null_tokens
    told = {"label": bool(self.classes), "text": text is not None}
    self.conditions = frozenset(name for name in told if told[name])
    c = codec.channels
    given = {"c_in": 2 * c if coarse else c, "c_out": c, "frames": frames}
    given |= {"text": None if text is None else text["width"]}
    options = {"dtype": dtype} | {"wrap": remat_lib.wrap(remat)}
    specs = {"latte": self._network(latte, given, options)}
    if text is not None:
      specs["text"] = networks.NetworkSpec(
        clip.TextEncoder, text, network="clip_text", trained=True, options={"dtype": dtype}
      )
    super().__init__(specs, codec, frames)

  def _network(
    self, chosen: Mapping[str, Any], given: Mapping[str, Any], options: Mapping[str, Any]
  ) -> networks.NetworkSpec:
    given = dict(given) | {"frames": given["frames"] + 1}  # the given frame stands in front
    options = dict(options) | {"timed": True}
    return network(latte.Latte, "latte", chosen, given=given, options=options)

  @property
  def unit(self) -> tuple[int, int]:
    return 1, self.networks["latte"].sizes["patch"]

  def features(
    self, frozen: base.Params, batch: Mapping[str, jax.Array], keys: Key[Array, "b n"]
  ) -> base.Features:
    del keys  # Pixels are encoded as they are.
    shown = batch["video"][:, :1] if "video" in batch else batch["image"][:, None]
    found = {"frame": self.codec.moments(frozen, codecs.to_unit(shown))}
    if "video" in batch:
      found["clip"] = self.codec.moments(frozen, codecs.to_unit(batch["video"]))
    found["label"] = batch.get("label", jnp.full(len(shown), -1, jnp.int32))
    return found | ({"text": batch["tokens"]} if "text" in self.networks else {})

  def nulls(self, frozen: base.Params, batch: base.Batch) -> base.Features:
    if "text" not in self.networks:
      return {}
    return {"null_text": latents.null_tokens(batch, self.null_tokens)}

  def draw(self, frozen: base.Params, features: base.Features, keys: jax.Array) -> base.Example:
    del frozen
    # Frame and clip are drawn apart, as published.
    purposes = jax.vmap(jax.random.split)(keys)
    frame = self.codec.draw(features["frame"], purposes[:, 0])[:, 0]
    z0 = self.codec.draw(features["clip"], purposes[:, 1]) if "clip" in features else None
    z1 = jnp.repeat(frame[:, None], self.frames, axis=1)
    label, null = labels(features["label"], self.classes)
    cond = Cond(frame, label, null, *latents.with_null(features, "text"))
    return base.Example(z0, z1, cond)

  def drop(self, cond: Cond, text: Bool[Array, "b"], image: Bool[Array, "b"]) -> Cond:
    """Class and text go together; the frame is never dropped."""
    del image
    cond = cond._replace(label=jnp.where(text, cond.null_label, cond.label))
    if cond.text is None:
      return cond
    return cond._replace(text=jnp.where(text[:, None], cond.null_text, cond.text))

  def embed(self, weights: base.Params, cond: Cond) -> Cond:
    if cond.text is None:
      return cond
    read = self.run("text", weights, "pool")
    return cond._replace(text=read(cond.text), null_text=read(cond.null_text))

  def denoise(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: Cond,
    keys: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    del keys  # Nothing drops out.
    run = self.run("latte", weights)
    return run(x, t_net, self._label(cond), cond.frame, cond.coarse, cond.text)

  def _label(self, cond: Cond) -> Int[Array, "b"] | None:
    return None if self.classes is None else cond.label


class LattePrior(neural_prior.NeuralPrior, Latte):
  """Its neural prior: a Latte without time that makes a coarse video of frame and class."""

  def _network(
    self, chosen: Mapping[str, Any], given: Mapping[str, Any], options: Mapping[str, Any]
  ) -> networks.NetworkSpec:
    return network(latte.NeuralPrior, "latte_prior", chosen, given=given, options=options)

  def coarse(
    self, weights: base.Params, cond: Cond, keys: jax.Array | None = None
  ) -> Float[Array, "b t h w c"]:
    del keys
    return self.run("latte", weights)(cond.frame, self._label(cond), self.frames, cond.text)


def network(
  make: type[nnx.Module],
  name: str,
  chosen: Mapping[str, Any],
  *,
  given: Mapping[str, Any],
  options: Mapping[str, Any],
) -> networks.NetworkSpec:
  """A Latte of the config's sizes `chosen`; its patch is 2 where they name none."""
  sizes = networks.sizes_of("config.system.latte", {"patch": 2} | dict(chosen), given)
  return networks.NetworkSpec(
    make, sizes, network=name, trained=True, options=options, given=tuple(given)
  )


def labels(label: Int[Array, "b"], classes: int | None) -> tuple[Int[Array, "b"], Int[Array, "b"]]:
  """Class and null class of each clip; a clip without a class, which is -1, has the null one."""
  null = jnp.full(len(label), classes or 0, jnp.int32)
  return jnp.where(label < 0, null, label).astype(jnp.int32), null
