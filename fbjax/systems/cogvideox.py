"""CogVideoX: a transformer over text and video together, with the given frame as extra channels.

given frame, repeated over time -> causal video VAE -> z1, and also concatenated to x
caption -> T5 -> text tokens

In training, condition and prior are encoded from frames with a little noise, drawn independently;
in sampling from the frame as it is. A coarse video, where a neural prior makes one, is concatenated
to x as the frame is.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from fbjax.models import cogvideox, t5
from fbjax.systems import base, codecs, latents, networks, neural_prior
from fbjax.systems import remat as remat_lib

# log of the noise's deviation: mean and deviation of a normal distribution, as published.
NOISE = (-3.0, 0.5)
# Parts of a clip's key: noise of frame and prior, or which of their noisy versions; draws of clip,
# frame and prior.
PURPOSES = 5


class Cond(NamedTuple):
  """What the network is told besides x and time."""

  frame: Float[Array, "b t h w c"]
  text: Float[Array, "b n d"]
  null_text: Float[Array, "b n d"]
  coarse: Float[Array, "b t h w c"] | None = None


class CogVideoX(latents.LatentSystem):
  """The transformer with its codec and T5. Implements `base.System`."""

  # What the transformer sees: the state and the given frame.
  inputs = 2
  squeezes_time = True

  def __init__(
    self,
    *,
    codec: codecs.Codec,
    transformer: Mapping[str, Any],
    text: Mapping[str, Any],
    noisy_frame: bool = True,
    noisy_prior: bool = True,
    coarse: bool = False,
    remat: str | bool = "none",
    null_tokens: np.ndarray | None,
    frames: int,
    dtype: Any = jnp.float32,
  ):
    """
    Args:
      codec: between videos and latents.
      transformer: sizes of `cogvideox.CogVideoX`; channels and text width are given by the others.
      text: sizes of `t5.Encoder`, frozen; `length` is how many tokens it reads.
      noisy_frame, noisy_prior: noise on the frame before it is encoded as condition or as prior.
      coarse: the transformer is told a coarse video as well.
      remat: what blocks keep for the backward pass, see `remat.wrap`.
      null_tokens: token ids of the empty caption, int32 [n]; None where nothing will be encoded.
      frames: frames a clip, 8 n + 1 for the published VAE.
      dtype: of the networks' arithmetic; weights are float32.
    """
    self.null_tokens = null_tokens
    self.conditions = frozenset({"text"})
    told = {"frame": noisy_frame, "prior": noisy_prior}
    self.noisy = tuple(name for name in told if told[name])
    options = {"dtype": dtype}
    c = codec.channels
    given = {"c_in": (self.inputs + coarse) * c, "c_out": c, "text_dim": text["width"]}
    chosen = {"patch": 2, "patch_time": 1} | dict(transformer)
    encoder = {name: size for name, size in text.items() if name != "length"}
    super().__init__(
      {
        "transformer": networks.NetworkSpec(
          cogvideox.CogVideoX,
          networks.sizes_of("config.system.transformer", chosen, given),
          network="cogvideox",
          trained=True,
          options=options | {"wrap": remat_lib.wrap(remat)},
          given=tuple(given),
        ),
        "text": networks.NetworkSpec(
          t5.Encoder, encoder, network="t5", trained=False, options=options
        ),
      },
      codec,
      frames,
    )

  @property
  def unit(self) -> tuple[int, int]:
    sizes = self.networks["transformer"].sizes
    return sizes["patch_time"], sizes["patch"]

  def features(
    self, frozen: base.Params, batch: Mapping[str, jax.Array], keys: Key[Array, "b n"]
  ) -> base.Features:
    text = self.run("text", frozen)(batch["tokens"])
    if "video" not in batch:
      return {"still": self._still(frozen, codecs.to_unit(batch["image"])), "text": text}
    video = codecs.to_unit(batch["video"])
    still = jnp.repeat(video[:, :1], self.frames, axis=1)
    found = {"clip": self.codec.moments(frozen, video), "text": text}

    def noisy(keys: jax.Array) -> dict[str, codecs.Moments]:
      purposes = jax.vmap(lambda key: jax.random.split(key, PURPOSES))(keys)
      # One field of noise, the same in every frame, and another one in each.
      makes = {
        "frame": lambda key: self._still(
          frozen, (still[:, :1] + noise(key, (1, *still.shape[2:])))[:, 0]
        ),
        "prior": lambda key: self.codec.moments(frozen, still + noise(key, still.shape[1:])),
      }
      return {
        name: make(purposes[:, i])
        for i, (name, make) in enumerate(makes.items())
        if name in self.noisy
      }

    found |= versions(noisy, keys)
    return found | ({"still": self._still(frozen, video[:, 0])} if len(self.noisy) < 2 else {})

  def _still(self, frozen: base.Params, frame: Float[Array, "b h w 3"]) -> codecs.Moments:
    return codecs.still_moments(self.codec, frozen, frame, self.frames)

  def nulls(self, frozen: base.Params, batch: base.Batch) -> base.Features:
    return {"null_text": self.run("text", frozen)(latents.null_tokens(batch, self.null_tokens))}

  def draw(self, frozen: base.Params, features: base.Features, keys: jax.Array) -> base.Example:
    del frozen
    text, null_text = latents.with_null(features, "text")
    if "clip" not in features:
      z1 = self.codec.draw(features["still"], keys)
      return base.Example(None, z1, Cond(z1, text, null_text))
    purposes = jax.vmap(lambda key: jax.random.split(key, PURPOSES))(keys)
    z0 = self.codec.draw(features["clip"], purposes[:, 2])
    shown, z1 = (
      self.codec.draw(
        pick(features[name], purposes[:, i]) if name in self.noisy else features["still"],
        purposes[:, 3 + i],
      )
      for i, name in enumerate(("frame", "prior"))
    )
    return base.Example(z0, z1, Cond(shown, text, null_text))

  def drop(self, cond: Cond, text: Bool[Array, "b"], image: Bool[Array, "b"]) -> Cond:
    del image  # The given frame is prior and condition at once: it is never dropped.
    return cond._replace(text=jnp.where(text[:, None, None], cond.null_text, cond.text))

  def denoise(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: Cond,
    keys: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    del keys  # Nothing drops out.
    x = latents.beside(x, cond.frame, cond.coarse)
    return self.run("transformer", weights)(x, t_net, cond.text)


class CogVideoXPrior(neural_prior.NeuralPrior, CogVideoX):
  """Its neural prior: the transformer sees the given frame repeated, at time 0, in place of a state.

  It has the input channels of the text-to-video network, whose weights it can start from.
  """

  inputs = 1

  def coarse(
    self, weights: base.Params, cond: Cond, keys: jax.Array | None = None
  ) -> Float[Array, "b t h w c"]:
    del keys
    return self.run("transformer", weights)(cond.frame, jnp.zeros(len(cond.frame)), cond.text)


def versions(
  encode: Callable[[jax.Array], dict[str, codecs.Moments]], keys: Key[Array, "b n"]
) -> dict[str, dict[str, Float[Array, "b n t h w c"]]]:
  """Stacks `encode` of n keys per clip along a second axis, one at a time to bound the memory."""
  # To JAX's check for keys that are used twice, transposing is a use.
  found = jax.lax.map(encode, jax.random.clone(keys.swapaxes(0, 1)))
  return jax.tree.map(lambda x: x.swapaxes(0, 1), found)


def pick(
  moments: Mapping[str, Float[Array, "b n t h w c"]], keys: Key[Array, "b"]
) -> codecs.Moments:
  """Draws one of the n versions of each clip, uniformly."""
  n = moments["mean"].shape[1]
  if n == 1:
    return {name: x[:, 0] for name, x in moments.items()}
  chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, n))(keys)
  return {name: x[jnp.arange(len(x)), chosen] for name, x in moments.items()}


def noise(keys: jax.Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
  """Normal noise; each clip draws its log standard deviation from a normal of mean, std `NOISE`."""

  def of_clip(key: jax.Array) -> jax.Array:
    one, two = jax.random.split(key)
    deviation = jnp.exp(NOISE[0] + NOISE[1] * jax.random.normal(one))
    return deviation * jax.random.normal(two, shape)

  return jax.vmap(of_clip)(keys)
