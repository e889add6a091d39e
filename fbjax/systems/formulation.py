"""Process, prediction and alignment of a model, read by its loss and by its sampler alike."""

from typing import NamedTuple

from fbjax.bridge import alignment, grids, prediction
from fbjax.bridge import diffusion as diffusion_lib
from fbjax.bridge import process as process_lib


class Formulation(NamedTuple):
  """A bridge, the kind of prediction, and the diffusion that the network is aligned with (SAF).

  Without a diffusion the network sees the bridge's state as it is. With `pretrained`, the kind it
  predicted before it was fine-tuned, its output is read as that and converted (§2.2). `steps` is how
  many times the network knows: training draws them, the network is told an index among them, and
  the grids of indices choose from them; those of a diffusion are its own.
  """

  process: process_lib.Process
  predict: prediction.Kind
  diffusion: diffusion_lib.Diffusion | None = None
  rule: alignment.Rule = "exact"
  pretrained: prediction.Kind | None = None
  steps: int = grids.STEPS
