"""FrameBridge on UCF-101 that starts from a coarse video: Latte-S/2 and a frozen neural prior.

Trains    Latte-S/2 as in `ucf101_bridge`, batch 32; `ucf101_prior` has trained the prior, whose workdir
          is `prior_run` here.
Costs     not measured on an accelerator yet.
Expect    not measured here.
Deviates  as `ucf101_bridge` does; `:published` undoes it.

  python -m fbjax.main --config=configs/ucf101_bridge_prior.py --workdir=runs/ucf101_bridge_prior \
      --config.prior_run=runs/ucf101_prior --config.data.path=ucf101

Named behind the colon: published, smoke.
"""

from ml_collections import ConfigDict

from configs import common, ucf101_bridge

CHANGES = dict(published=ucf101_bridge.published, smoke=common.toy_latte)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  common.from_prior(c)
  c.prior_run = "runs/ucf101_prior"
  c.train.batch_size = 32
  return common.changed(c, arg, CHANGES)
