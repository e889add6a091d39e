"""Neural prior (FrameBridge, arXiv:2410.15371): a coarse video from which the bridge starts.

conditions -> neural prior -> coarse video -> prior z1 of the bridge, and a condition of the network

The neural prior is a system of the same family, `LattePrior` for `Latte`, so that one encoding of a
clip serves both. A frozen one was trained by regression in another run. Trained jointly, it learns
from the loss of the network that its video conditions, from a regression loss, or from both.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Key

from fbjax import errors
from fbjax.systems import base, networks

PREFIX = "prior_"  # before the names of the neural prior's networks, among the system's own


def names_in(names: Iterable[str]) -> list[str]:
  """Those of a system's networks that are its neural prior's."""
  return [name for name in names if name.startswith(PREFIX)]


class NeuralPrior:
  """Mixin of the systems that are neural priors: they predict z0 from the conditions alone.

  As a denoiser such a system ignores state and time, so that the loss of a bridge that predicts z0 is
  regression on the clip, and one step of a sampler gives the coarse video.
  """

  def coarse(
    self, weights: base.Params, cond: base.Cond, keys: jax.Array | None = None
  ) -> Float[Array, "b t h w c"]:
    """The coarse latent video of embedded conditions."""
    raise NotImplementedError

  def denoise(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: base.Cond,
    keys: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    del x, t_net
    return self.coarse(weights, cond, keys)


class WithNeuralPrior(networks.NetworkSet):
  """A system and the neural prior in front of it. Implements `base.System`."""

  def __init__(
    self,
    *,
    system: base.System,
    prior: NeuralPrior,
    use: str = "prior",
    trained: bool = False,
  ):
    """
    Args:
      system: whose network has input channels for a coarse video.
      prior: the neural prior, of the same family and with the same codec.
      use: "prior": the coarse video is z1 and a condition; "condition": a condition alone.
      trained: train the neural prior jointly, through the condition; otherwise it is frozen.

    Raises:
      UserError: for another `use`, or a trained "prior".
    """
    if use not in ("prior", "condition"):
      raise errors.UserError(f"config.prior.use is {use!r}; expected 'prior' or 'condition'")
    if trained and use == "prior":
      raise errors.UserError(
        "config.prior.trained supervises the neural prior through the condition: set "
        "config.prior.use=condition"
      )
    self.system, self.prior, self.use, self.trained = system, prior, use, trained
    self.conditions, self.classes = system.conditions, system.classes
    own = {n: spec for n, spec in prior.networks.items() if spec.trained}
    named = {PREFIX + name: spec._replace(trained=trained) for name, spec in own.items()}
    super().__init__(dict(system.networks) | named)

  @property
  def fixed(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(self.system.fixed + self.prior.fixed))

  def check_clip(self, frames: int, size: tuple[int, int]) -> None:
    self.system.check_clip(frames, size)
    self.prior.check_clip(frames, size)

  def for_clips(self, frames: int, size: tuple[int, int]) -> "WithNeuralPrior":
    other = copy.copy(self)
    other.system, other.prior = (x.for_clips(frames, size) for x in (self.system, self.prior))
    return other

  @property
  def encoders(self) -> tuple[str, ...]:
    return self.system.encoders

  @property
  def decoders(self) -> tuple[str, ...]:
    return self.system.decoders

  def encode(self, frozen: base.Params, batch: base.Batch, keys: jax.Array) -> base.Example:
    return self._behind(frozen, self.system.encode(frozen, batch, keys))

  def features(
    self, frozen: base.Params, batch: base.Batch, keys: Key[Array, "b n"]
  ) -> base.Features:
    return self.system.features(frozen, batch, keys)

  def nulls(self, frozen: base.Params, batch: base.Batch) -> base.Features:
    return self.system.nulls(frozen, batch)

  def draw(self, frozen: base.Params, features: base.Features, keys: jax.Array) -> base.Example:
    return self._behind(frozen, self.system.draw(frozen, features, keys))

  def _behind(self, frozen: base.Params, example: base.Example) -> base.Example:
    z0, z1, cond = example
    if self.trained:
      return base.Example(z0, z1, cond)
    coarse = jax.lax.stop_gradient(self._coarse(frozen, cond))
    return base.Example(z0, coarse if self.use == "prior" else z1, cond._replace(coarse=coarse))

  def embed(self, weights: base.Params, cond: base.Cond) -> base.Cond:
    if self.trained:
      cond = cond._replace(coarse=self._coarse(weights, cond))
    return self.system.embed(weights, cond)

  def drop(self, cond: base.Cond, text: Bool[Array, "b"], image: Bool[Array, "b"]) -> base.Cond:
    return self.system.drop(cond, text, image)

  def denoise(
    self,
    weights: base.Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: base.Cond,
    keys: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    return self.system.denoise(weights, x, t_net, cond, keys)

  def decode(
    self, frozen: base.Params, z: Float[Array, "b t h w c"]
  ) -> Float[Array, "b frames height width 3"]:
    return self.system.decode(frozen, z)

  def _coarse(self, weights: Mapping[str, Any], cond: base.Cond) -> Float[Array, "b t h w c"]:
    own = {name.removeprefix(PREFIX): weights[name] for name in names_in(weights)}
    return self.prior.coarse(own, self.prior.embed(own, cond))
