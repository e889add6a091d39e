"""FrameBridge from scratch on UCF-101: Latte-S/2, class conditional, 256x256, 16 frames.

The published setting trains on all 13,320 clips; --config.data.protocol=official keeps the test list.
The folder weights/sd_vae is made once of the autoencoder stabilityai/sd-vae-ft-ema:
  python -m fbjax.main --config=configs/ucf101_bridge.py --mode=port --weights=sd-vae-ft-ema --out=weights/sd_vae
  python -m fbjax.main --config=configs/ucf101_bridge.py --workdir=runs/ucf101 --config.data.path=ucf101
"""

from ml_collections import ConfigDict

from configs import common


def smoke(c: ConfigDict) -> None:
  """Two steps of the same code at toy size."""
  common.toy_latte(c)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  return common.changed(c, arg, smoke)
