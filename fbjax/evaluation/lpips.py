"""LPIPS of frames against the true ones (AlexNet, version 0.1), without the first, given frame."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fbjax.evaluation import frames
from fbjax.models import lpips

LEAST = lpips.LEAST  # pixels a side


def distance(
  network: lpips.LPIPS, clips: UInt8[Array, "n t h w 3"], truth: UInt8[Array, "n t h w 3"]
) -> Float[Array, " n"]:
  """LPIPS averaged over the frames of each clip after the first."""

  def of(a: UInt8[Array, "n h w 3"], b: UInt8[Array, "n h w 3"]) -> Float[Array, " n"]:
    return network(*(x.astype(jnp.float32) / 127.5 - 1 for x in (a, b)))

  return frames.each(of, clips[:, 1:], truth[:, 1:]).mean(1)
