"""Start of fine-tuning from a pretrained diffusion network (§2.2, §2.3): pure array functions."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fbjax.bridge import prediction
from fbjax.bridge import process as process_lib

Clips = process_lib.Clips
PerClip = process_lib.PerClip


def widen_input(
  kernel: Float[Array, "*window c_in c_out"], channels: int
) -> Float[Array, "*window c_wide c_out"]:
  """Appends `channels` zero-initialised input channels to a pretrained kernel (§2.3).

  At step 0 the widened network computes what the pretrained one does; the reference reinitialises
  the whole kernel and so loses the pretrained one.
  """
  new = jnp.zeros((*kernel.shape[:-2], channels, kernel.shape[-1]), kernel.dtype)
  return jnp.concatenate([kernel, new], axis=-2)


def align_output(
  pretrained: prediction.Kind,
  kind: prediction.Kind,
  process: process_lib.Bridge,
  pred: Clips,
  zt: Clips,
  z1: Clips,
  time: PerClip,
  rescale: PerClip | None = None,
) -> Clips:
  """Converts the output of a network that predicts `pretrained` into a prediction of `kind` (§2.2).

  With it, fine-tuning towards `kind` starts from the pretrained denoiser. A noise prediction is
  completed with z0 = z1, the prior's guess, because recovering z0 from it multiplies its error by
  c / a; for psi without drift the result is sigma_bar_t / sigma_1 times the prediction.
  """
  if pretrained == "noise" and kind != "noise":
    return prediction.target(kind, process, z1, z1, pred, time, rescale)
  return prediction.convert(pretrained, kind, process, pred, zt, z1, time, rescale)
