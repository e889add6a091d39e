"""FrameBridge from scratch on UCF-101: Latte-S/2, class conditional, 256x256, 16 frames.

Trains    Latte-S/2, 32.5 M parameters, on all 13,320 clips as published: psi, batch 64, 1 M steps at
          most; --config.data.protocol=official keeps the test list.
Costs     not measured on an accelerator yet.
Expect    FVD 122 in the paper (arXiv:2410.15371), 171 for the diffusion; not measured here.
Deviates  from the released code: frames are 3 apart, not 3 to 4; no clip is mirrored; gradients are not
          clipped after 100k steps; the average of the weights warms up; the first step starts from noise
          around the prior. `:published` undoes all five.

The folder weights/sd_vae is made once of the autoencoder stabilityai/sd-vae-ft-ema, for all ucf101_*:
  python -m fbjax.main --config=configs/ucf101_bridge.py --mode=port --weights=sd-vae-ft-ema --out=weights/sd_vae
  python -m fbjax.main --config=configs/ucf101_bridge.py --workdir=runs/ucf101 --config.data.path=ucf101

Named behind the colon: published, released (a checkpoint of the released code, ported with the VAE),
smoke.
"""

from ml_collections import ConfigDict

from configs import common


def published(c: ConfigDict) -> None:
  """The released training and sampling, to the letter."""
  common.published_latte(c)
  common.published_sampling(c)


def released(c: ConfigDict) -> None:
  """A checkpoint that the released code has trained: nothing in it starts anew."""
  published(c)
  c.weights = "weights/framebridge_latte"
  c.start = dict()


CHANGES = dict(published=published, released=released, smoke=common.toy_latte)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  return common.changed(c, arg, CHANGES)
