"""FVD: the Fréchet distance of I3D's logits, under protocols whose numbers are not interchangeable.

styleganv    frames squeezed to 224x224; logits of the network as trained; covariance over N. The tool
             of StyleGAN-V and Latte, whose names for it are fvd2048_16f and its like
framebridge  styleganv on 2,048 clips of each, of 16 frames; true clips at every third frame
videogpt     shorter side to 224, centre; epsilon 1e-5 in the norms; mean over time; covariance
             over N - 1. The one of VideoGPT
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fbjax import errors
from fbjax.evaluation import resizing

SIZE = 224  # of the network's frames
LEAST = 9  # frames, of which the network makes one place in time


class Protocol(NamedTuple):
  """How an FVD is computed.

  prepare: uint8 clips to I3D's input. epsilon: of its batch normalization. unbiased: see
  `frechet.distance`. clips, frames, stride: of the published numbers; None where these differ.
  """

  prepare: Callable[[UInt8[Array, "b t h w 3"]], Float[Array, "b t 224 224 3"]]
  epsilon: float
  unbiased: bool
  clips: int | None = None
  frames: int | None = None
  stride: int | None = None


def check_frames(frames: int) -> None:
  """Raises a UserError for clips that are too short for the network."""
  if frames < LEAST:
    raise errors.UserError(f"FVD needs clips of {LEAST} frames or more, and these have {frames}")


def squeezed(clips: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t 224 224 3"]:
  """Frames of any shape as squares, in [-1, 1]."""
  return resizing.bilinear(clips.astype(jnp.float32), SIZE, SIZE) / 127.5 - 1


def cropped(clips: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t 224 224 3"]:
  """The shorter side as long as the square's, the longer one rounded up and cropped; in [-1, 1]."""
  h, w = clips.shape[2:4]
  short = min(h, w)
  height, width = (-(-x * SIZE // short) for x in (h, w))
  x = resizing.bilinear(clips.astype(jnp.float32), height, width)
  top, left = (height - SIZE) // 2, (width - SIZE) // 2
  return x[:, :, top : top + SIZE, left : left + SIZE] / 127.5 - 1


PROTOCOLS = {
  "styleganv": Protocol(squeezed, epsilon=1e-3, unbiased=False),
  "framebridge": Protocol(squeezed, epsilon=1e-3, unbiased=False, clips=2048, frames=16, stride=3),
  "videogpt": Protocol(cropped, epsilon=1e-5, unbiased=True),
}


def protocol(name: str) -> Protocol:
  """One of `PROTOCOLS`.

  Raises:
    UserError: when there is none of that name.
  """
  if name not in PROTOCOLS:
    raise errors.UserError(f"--fvd={name}: expected one of {', '.join(PROTOCOLS)}")
  return PROTOCOLS[name]
