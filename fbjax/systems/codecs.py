"""How a system turns videos in [-1, 1] into latents and back."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import einops
import jax
from jaxtyping import Array, Float


@runtime_checkable
class Codec(Protocol):
  """Frames to latents; `channels` per latent pixel, `factor` video pixels a latent pixel."""

  @property
  def channels(self) -> int: ...

  @property
  def factor(self) -> int: ...

  def encode(
    self, frozen: Any, video: Float[Array, "b t h w 3"], keys: jax.Array
  ) -> Float[Array, "b t hz wz c"]: ...

  def decode(self, frozen: Any, z: Float[Array, "b t hz wz c"]) -> Float[Array, "b t h w 3"]: ...


class Pixels(NamedTuple):
  """No autoencoder: blocks of `patch` x `patch` pixels become channels, times `scale`.

  `scale` brings the values near unit variance, which the bridges' noise levels are made for.
  """

  patch: int = 2
  scale: float = 1.0

  @property
  def channels(self) -> int:
    return 3 * self.patch**2

  @property
  def factor(self) -> int:
    return self.patch

  def encode(
    self, frozen: Any, video: Float[Array, "b t h w 3"], keys: jax.Array
  ) -> Float[Array, "b t hz wz c"]:
    return self.scale * einops.rearrange(
      video, "b t (h p) (w q) c -> b t h w (p q c)", p=self.patch, q=self.patch
    )

  def decode(self, frozen: Any, z: Float[Array, "b t hz wz c"]) -> Float[Array, "b t h w 3"]:
    return einops.rearrange(
      z / self.scale, "b t h w (p q c) -> b t (h p) (w q) c", p=self.patch, q=self.patch
    )
