"""PSNR and SSIM of frames against their truth; no network is needed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

WINDOW, SIGMA = 11, 1.5  # of SSIM, as published
LARGEST_PSNR = 100.0  # that of equal frames


def psnr(made: UInt8[Array, "*n h w 3"], truth: UInt8[Array, "*n h w 3"]) -> Float[Array, "*n"]:
  """Peak signal-to-noise ratio of each frame in dB, at most `LARGEST_PSNR`."""
  error = jnp.square(made.astype(jnp.float32) - truth.astype(jnp.float32)).mean((-3, -2, -1))
  return jnp.minimum(20 * jnp.log10(255.0) - 10 * jnp.log10(error + 1e-9), LARGEST_PSNR)


def ssim(made: UInt8[Array, "*n h w 3"], truth: UInt8[Array, "*n h w 3"]) -> Float[Array, "*n"]:
  """Structural similarity of each frame, the mean of its channels (Wang et al., 2004).

  Gaussian windows that lie wholly inside the frame, which is 11 pixels or more each way.
  """
  x, y = (_planes(v) for v in (made, truth))
  mean_x, mean_y = _blur(x), _blur(y)
  # Of centred values: E[x^2] - E[x]^2 of pixels up to 255 would lose the variance of flat regions.
  centre = x.mean((1, 2), keepdims=True)
  dx, dy = x - centre, y - centre
  shift_x, shift_y = mean_x - centre, mean_y - centre
  var_x = _blur(dx * dx) - shift_x * shift_x
  var_y = _blur(dy * dy) - shift_y * shift_y
  both = _blur(dx * dy) - shift_x * shift_y
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  similar = (2 * mean_x * mean_y + c1) * (2 * both + c2)
  similar /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
  return similar.mean((1, 2)).reshape(*made.shape[:-3], 3).mean(-1)


def _planes(frames: UInt8[Array, "*n h w 3"]) -> Float[Array, "m h w"]:
  """Every channel of every frame by itself."""
  *_, h, w, _ = frames.shape
  return jnp.moveaxis(frames.astype(jnp.float32), -1, -3).reshape(-1, h, w)


def _blur(x: Float[Array, "m h w"]) -> Float[Array, "m h2 w2"]:
  """Weighted means over the windows: along rows, then along columns."""
  place = np.arange(WINDOW) - WINDOW // 2
  weights = np.exp(-np.square(place) / (2 * SIGMA**2))
  weights = jnp.asarray(weights / weights.sum(), jnp.float32)

  def along(x: Float[Array, "m h w"], shape: tuple[int, ...]) -> Float[Array, "m h2 w2"]:
    kernel = weights.reshape(1, 1, *shape)
    precise = jax.lax.Precision.HIGHEST
    return jax.lax.conv(x[:, None], kernel, (1, 1), "VALID", precision=precise)[:, 0]

  return along(along(x, (WINDOW, 1)), (1, WINDOW))
