"""From a network to a denoiser: align, predict every branch, guide, read z0 back (§2.1, §3.4)."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array

from fbjax.bridge import alignment, grids, guidance, initialise, prediction
from fbjax.bridge import diffusion as diffusion_lib
from fbjax.bridge import process as process_lib

Clips = process_lib.Clips
PerClip = process_lib.PerClip


def denoiser(
  process: process_lib.Process,
  predict: Callable[[Array, Array, Any], Array],
  kind: prediction.Kind,
  z1: Clips,
  conds: Sequence[Any],
  combine: guidance.Combine | None = None,
  *,
  diffusion: diffusion_lib.Diffusion | None = None,
  rule: alignment.Rule = "exact",
  pretrained: prediction.Kind | None = None,
  steps: int = grids.STEPS,
) -> Callable[[Array, Array], Array]:
  """denoise(zt, time) -> z0_hat for `samplers`, from a network predict(x, t_net, cond) -> `kind`.

  `conds` are the conditions of each guidance branch, in the order that `combine` expects.
  `diffusion` is the pretrained diffusion to align with: None for a network trained from scratch,
  the process itself for the diffusion baseline. `pretrained` is the kind that the pretrained
  network predicts, if its output is converted to `kind` too (`initialise.align_output`). `steps` is
  the number of bridge times of training.
  """
  combine = combine or guidance.none()

  def denoise(zt: Clips, time: PerClip) -> Clips:
    x, t_net = alignment.align(process, diffusion, zt, z1, time, rule, steps)
    pred = combine(guidance.evaluate(predict, x, t_net, conds), time)
    rescale = None if diffusion is None else diffusion.rescale_at(t_net)
    if pretrained is not None:
      # Affine in the prediction: the same after guidance as in each branch before it.
      pred = initialise.align_output(pretrained, kind, process, pred, zt, z1, time, rescale)
    return prediction.recover(kind, process, pred, zt, z1, time, rescale)

  return denoise
