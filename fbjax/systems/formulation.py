"""Process, prediction and alignment of a model, read by its loss and by its sampler alike."""

from typing import NamedTuple

from fbjax.bridge import alignment, grids, prediction
from fbjax.bridge import diffusion as diffusion_lib
from fbjax.bridge import process as process_lib


class Formulation(NamedTuple):
  """A bridge, the kind of prediction, and the diffusion that the network is aligned with (SAF).

  Without a diffusion the network sees the bridge's state as it is. With `pretrained`, the kind of
  the pretrained network, the output is converted from it to `predict` (docs/bridge.md, 2.2).
  `steps` is N, the number of discrete times: training draws from them, and grids of indices choose
  among them; of a diffusion it is the length of its schedule.
  """

  process: process_lib.Process
  predict: prediction.Kind
  diffusion: diffusion_lib.Diffusion | None = None
  rule: alignment.Rule = "exact"
  pretrained: prediction.Kind | None = None
  steps: int = grids.STEPS
