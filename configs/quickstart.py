"""A bridge from scratch on moving shapes with captions: a few minutes on two CPU cores.

Trains    the small Latte of `common.small_latte` and a toy text network, 0.7 M parameters, 500 steps of
          8 clips: it learns to move the object of a still image to where the caption says.
Costs     about 5 minutes and 2 GB on two CPU cores; no download, no GPU.
Expect    all held-out clips move where the caption says; see the README.
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
