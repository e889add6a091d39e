"""FID of frames: the Fréchet distance of their Inception-v3 features (arXiv:1706.08500).

As in pytorch-fid: the weights of the original TensorFlow program, frames resized bilinearly to
299x299 without antialiasing. All frames of a clip count, also the given one.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fbjax.evaluation import frames, resizing

SIZE = 299


def prepare(images: UInt8[Array, "b h w 3"], size: int = SIZE) -> Float[Array, "b s s 3"]:
  """Frames resized bilinearly to squares, without antialiasing, in [-1, 1]."""
  return resizing.bilinear(images.astype(jnp.float32), size, size) / 127.5 - 1


def features(
  network: Callable[[Array], Array], clips: UInt8[Array, "n t h w 3"]
) -> Float[Array, "n t d"]:
  """Pooled features of each frame, d = 2048; `network` is a `models.inception.Inception`."""
  return frames.each(lambda images: network(prepare(images)), clips)
