"""C3D fine-tuned on UCF-101: the classifier of the inception score of videos (TGAN, TGAN v2).

  video, RGB [-1, 1] "b 16 h w 3" -> logits "b 101" (arXiv:1412.0767)

Frames of any size are resized to 112 x 112 pixels. The network was trained on BGR in [0, 255] less
the mean clip, which is a weight here: of its 128 x 171 pixels the 112 x 112 from row and column 8
on are subtracted, as published.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fbjax import errors
from fbjax.models import layers

FRAMES, SIZE = 16, 112
MEAN = (16, 128, 171, 3)  # of the clips, BGR
CORNER = 8  # from where on the mean is taken
# Channels of the convolutions between two poolings, in parts of the first; the first pools no frames.
GROUPS = ((1,), (2,), (4, 4), (8, 8), (8, 8))


class C3D(nnx.Module):
  """The C3D classifier; raises a UserError for clips of other than 16 frames.

  Args:
    width: channels of the first convolution.
    hidden: hidden size of the two dense layers.
    classes: number of logits.
    dtype: of convolutions and products.
  """

  def __init__(
    self,
    width: int = 64,
    hidden: int = 4096,
    classes: int = 101,
    *,
    dtype: Any = jnp.float32,
    rngs: layers.Keys,
  ):
    c, groups = 3, []
    for parts in GROUPS:
      convs = []
      for part in parts:
        convs.append(layers.Conv3d(c, part * width, 3, dtype=dtype, rngs=rngs))
        c = part * width
      groups.append(nnx.List(convs))
    self.groups = nnx.List(groups)
    # 16 frames are halved four times, 112 pixels five times, rounded up the last time.
    dims = (16 * c, hidden, hidden, classes)
    dense = [
      layers.linear(a, b, dtype=dtype, rngs=rngs) for a, b in zip(dims, dims[1:], strict=False)
    ]
    self.dense = nnx.List(dense)
    self.mean = nnx.Param(jnp.zeros(MEAN))

  def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b classes"]:
    if video.shape[1] != FRAMES:
      raise errors.UserError(
        f"C3D looks at clips of {FRAMES} frames, and these have {video.shape[1]}"
      )
    part = slice(CORNER, CORNER + SIZE)
    x = 128 * aligned(video, SIZE)[..., ::-1] + (128 - self.mean[...][None, :, part, part])
    for i, convs in enumerate(self.groups):
      for conv in convs:
        x = nnx.relu(conv(x))
      window = (1 if i == 0 else 2, 2, 2)
      x = nnx.max_pool(
        x, window, window, [(0, -n % k) for n, k in zip(x.shape[1:4], window, strict=True)]
      )
    x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # channels first, as the dense layer was trained
    for dense in self.dense[:-1]:
      x = nnx.relu(dense(x))
    return self.dense[-1](x)


def aligned(video: Float[Array, "b t h w c"], size: int) -> Float[Array, "b t s s c"]:
  """Resizes frames to size x size: bilinear, corners aligned, no antialiasing."""
  rows, columns = (jnp.asarray(matrix(n, size)) for n in video.shape[2:4])
  x = jnp.einsum("ih,bthwc->btiwc", rows, video, precision="highest")
  return jnp.einsum("jw,btiwc->btijc", columns, x, precision="highest")


def matrix(n_in: int, n_out: int) -> Float[np.ndarray, "n_out n_in"]:
  """Matrix of linear interpolation along one axis, corners aligned."""
  place = np.arange(n_out) * (n_in - 1) / (n_out - 1)
  weights = np.maximum(1 - np.abs(place[:, None] - np.arange(n_in)[None]), 0)
  return weights.astype(np.float32)
