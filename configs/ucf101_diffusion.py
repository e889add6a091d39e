"""The diffusion counterpart of `ucf101_bridge`: same network, data, steps and conditions.

Trains    Latte-S/2 as a diffusion that predicts noise, sampled by DDPM in 250 steps.
Costs     what `ucf101_bridge` does.
Expect    FVD 171 in the paper (arXiv:2410.15371); not measured here.
Deviates  as `ucf101_bridge` does, but for the start, which is noise anyway; `:published` undoes it.

  python -m fbjax.main --config=configs/ucf101_diffusion.py --workdir=runs/ucf101_diffusion --config.data.path=ucf101

Named behind the colon: published, smoke.
"""

from ml_collections import ConfigDict

from configs import common

CHANGES = dict(published=common.published_latte, smoke=common.toy_latte)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  c.bridge = dict(name="diffusion")
  c.diffusion = dict(name="linear")
  c.objective.predict = "noise"
  c.sampling.sampler = dict(name="ddpm")
  c.sampling.grid = dict(name="latte_indices")
  c.sampling.steps = 250
  return common.changed(c, arg, CHANGES)
