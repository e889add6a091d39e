"""A bridge from scratch on moving shapes with captions: a few minutes on two CPU cores.

Trains    the small UNet of `common.small_unet` and a toy text network, 1 M parameters, 440 steps of 8
          clips: it learns to move the object of a still image to where the caption says.
Costs     5 min 35 s and 2.2 GB on two CPU cores; no download, no GPU.
Expect    see the README; it varies with the processor.
Deviates  from FrameBridge in all: pixels, a narrow bridge, velocity, no pretrained network.

  python -m fbjax.main --config=configs/quickstart.py --workdir=runs/quickstart
  python -m fbjax.main --config=configs/quickstart.py:smoke --workdir=runs/smoke     # two steps
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  c.data = dict(
    name="synthetic",
    frames=8,
    size=32,
    motions=("right", "left", "up", "down"),
    speeds=("quick",),
    textures=("plain",),
    shapes=("circle", "square", "triangle"),
    backgrounds=("plain", "gradient"),
  )
  c.tokenizer = dict(name="bytes", length=16)
  common.small_latte(c)
  c.train.update(steps=500, batch_size=8, save_every=250, preview_every=250)
  return common.changed(c, arg, dict(smoke=common.smoke))
