"""PIC: 1 - the DreamSim distance of each frame to the given image, as DynamiCrafter has it.

Frames are squeezed to squares of 224 pixels. All frames count, also the given one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fbjax.evaluation import frames, resizing
from fbjax.models import dreamsim

SIZE = 224


def prepare(images: UInt8[Array, "b h w 3"], size: int = SIZE) -> Float[Array, "b s s 3"]:
  """Squares in [0, 1] by PIL's bicubic filter."""
  return resizing.bicubic(images.astype(jnp.float32), size, size) / 255


def similarity(
  network: dreamsim.DreamSim, clips: UInt8[Array, "n t h w 3"], image: UInt8[Array, "n h w 3"]
) -> Float[Array, " n"]:
  """1 - DreamSim's distance to the image, averaged over the frames of each clip."""
  given = network(prepare(image))

  def of(images: UInt8[Array, "n h w 3"]) -> Float[Array, " n"]:
    return (network(prepare(images)) * given).sum(-1)

  return frames.each(of, clips).mean(1)
