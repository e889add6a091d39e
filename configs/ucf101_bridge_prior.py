"""FrameBridge on UCF-101 that starts from a coarse video: Latte-S/2 and a frozen neural prior.

`configs/ucf101_prior.py` trains that prior; its workdir is `prior_run` here.
  python -m fbjax.main --config=configs/ucf101_bridge_prior.py --workdir=runs/ucf101_bridge_prior \
      --config.prior_run=runs/ucf101_prior --config.data.path=ucf101
"""

from ml_collections import ConfigDict

from configs import common


def smoke(c: ConfigDict) -> None:
  """Two steps of the same code at toy size."""
  common.toy_latte(c)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  common.from_prior(c)
  c.prior_run = "runs/ucf101_prior"
  c.train.batch_size = 32
  return common.changed(c, arg, smoke)
