"""FID of frames: the Fréchet distance of what Inception-v3 makes of each frame (arXiv:1706.08500).

As pytorch-fid has it: its weights are those of TensorFlow's program, frames become squares of 299 pixels
without a filter. All frames of a clip count, also the given one.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fbjax.evaluation import frames, resizing

SIZE = 299


def prepare(images: UInt8[Array, "b h w 3"], size: int = SIZE) -> Float[Array, "b s s 3"]:
  """Squares in [-1, 1]."""
  return resizing.bilinear(images.astype(jnp.float32), size, size) / 127.5 - 1


def features(
  network: Callable[[Array], Array], clips: UInt8[Array, "n t h w 3"]
) -> Float[Array, "n t d"]:
  """What `models.inception.Inception` makes of each frame."""
  return frames.each(lambda images: network(prepare(images)), clips)
