"""The diffusion counterpart of `ucf101_bridge`: same network, data, steps and conditions.

It starts from noise, predicts noise and is sampled by DDPM in 250 steps.
  python -m fbjax.main --config=configs/ucf101_diffusion.py --workdir=runs/ucf101_diffusion --config.data.path=ucf101
"""

from ml_collections import ConfigDict

from configs import common


def smoke(c: ConfigDict) -> None:
  """Two steps of the same code at toy size."""
  common.toy_latte(c)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  c.bridge = dict(name="diffusion")
  c.diffusion = dict(name="linear")
  c.objective.predict = "noise"
  c.sampling.sampler = dict(name="ddpm")
  c.sampling.grid = dict(name="latte_indices")
  c.sampling.steps = 250
  return common.changed(c, arg, smoke)
