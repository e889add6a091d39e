"""A bridge from scratch on WebVid-2M, 64x64, 8 frames, without a VAE: small, to see it learn.

Trains    what `folder` trains.
Costs     not measured.
Expect    not measured.
Deviates  from FrameBridge in all, as `folder` does.

The folder holds `results_2M_train.csv`, `2M_train/` and the same for `val`.
  python -m fbjax.main --config=configs/webvid.py --workdir=runs/webvid --config.data.path=webvid
"""

from ml_collections import ConfigDict

from configs import folder


def get_config(arg: str = "") -> ConfigDict:
  c = folder.get_config(arg)
  c.data = dict(name="webvid", path="", frames=8, size=64, strides=(1, 6))
  return c
