"""What a network is asked: which bridge, how its state is shown, and what is to be predicted.

Training and sampling both go through here, so they cannot disagree.
"""

from typing import NamedTuple

from jaxtyping import Array, Float

from fbjax.bridge import alignment, diffusion, prediction, process

# What a network that is not aligned to a diffusion is told, so that its embedding is used in full.
TIME_SCALE = 1000.0


class Formulation(NamedTuple):
  """A bridge with SNR alignment (`diffusion` given) or without, and the kind of prediction."""

  process: process.Process
  predict: prediction.Kind
  diffusion: diffusion.Diffusion | None = None

  def network_input(
    self, zt: Float[Array, "b ..."], z1: Float[Array, "b ..."], time: Float[Array, "b"]
  ) -> tuple[Float[Array, "b ..."], Float[Array, "b"]]:
    """What the network sees and the time it is told."""
    if self.diffusion is None:
      return zt, TIME_SCALE * time
    return alignment.align(self.process, self.diffusion, zt, z1, time)

  def target(
    self,
    z0: Float[Array, "b ..."],
    z1: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    time: Float[Array, "b"],
  ) -> Float[Array, "b ..."]:
    """What the network should answer."""
    return prediction.target(self.predict, self.process, z0, z1, noise, time)

  def recover(
    self,
    pred: Float[Array, "b ..."],
    zt: Float[Array, "b ..."],
    z1: Float[Array, "b ..."],
    time: Float[Array, "b"],
  ) -> Float[Array, "b ..."]:
    """The clean latent that an answer means."""
    return prediction.recover(self.predict, self.process, pred, zt, z1, time)
