"""Step 0 of fine-tuning made as good as it can be (§2.2, §2.3): pure array functions."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fbjax.bridge import prediction
from fbjax.bridge import process as process_lib

Clips = process_lib.Clips
PerClip = process_lib.PerClip


def widen_input(
  kernel: Float[Array, "*window c_in c_out"], channels: int
) -> Float[Array, "*window c_wide c_out"]:
  """The pretrained input kernel with `channels` more inputs, after its own and of weight 0 (§2.3).

  The widened network ignores the new channels until training says otherwise; the reference draws
  the whole kernel anew and so forgets the pretrained one.
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
) -> Clips:
  """What a network that still predicts `pretrained` has to say about `kind` (§2.2).

  Fine-tuning towards `kind` with this behind the network starts as the pretrained denoiser. A
  noise prediction is completed with z0 = z1, the prior's guess, because reading z0 from it costs
  a / c in accuracy: for psi without drift, sigma_bar_t / sigma_1 times the prediction.
  """
  if pretrained == "noise" and kind != "noise":
    return prediction.target(kind, process, z1, z1, pred, time)
  return prediction.convert(pretrained, kind, process, pred, zt, z1, time)
