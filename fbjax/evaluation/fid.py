"""FID of frames: the Fréchet distance of what Inception-v3 makes of each frame (arXiv:1706.08500).

As pytorch-fid has it: its weights are those of TensorFlow's program, frames become squares of 299 pixels
without a filter. All frames of a clip count, also the given one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fbjax.evaluation import frames, resizing
from fbjax.models import inception

SIZE = 299


def prepare(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
  """Squares in [-1, 1]."""
  return resizing.bilinear(images.astype(jnp.float32), SIZE, SIZE) / 127.5 - 1


def features(
  network: inception.Inception, clips: UInt8[Array, "n t h w 3"]
) -> Float[Array, "n t 2048"]:
  return frames.each(lambda images: network(prepare(images)), clips)
