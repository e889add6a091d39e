"""A bridge from scratch on a folder of your own videos, 64x64, 8 frames, without a VAE.

Trains    the small UNet of `common.small_unet` and a toy text network, on pixels.
Costs     not measured; small enough to try on a laptop.
Expect    not measured.
Deviates  from FrameBridge in all: a narrow bridge, velocity, no pretrained network.

See docs/data.md for where captions come from, and for tables, tars and buckets.
  python -m fbjax.main --config=configs/folder.py --workdir=runs/mine --config.data.path=my_videos
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.small_unet(c)
  c.data = dict(name="folder", path="", frames=8, size=64, strides=(1, 4))
  c.tokenizer = dict(name="bytes", length=64)
  c.train.update(steps=20_000, batch_size=16)
  return common.changed(c, arg, dict(smoke=common.smoke))
