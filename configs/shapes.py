"""A bridge on all that the moving shapes can do, 64x64, 16 frames.

Trains    a Latte on 4x4 pixels and a toy text network, 4.5 M parameters, 7,000 steps of 16 clips: all
          motions, speeds, shapes, textures and backgrounds of the synthetic set.
Costs     6 minutes on one H200, 26 steps a second; days on two CPU cores.
Expect    see zoo/shapes/README.md, the card of what it has made.
Deviates  from FrameBridge in all: pixels, a narrow bridge, velocity, no pretrained network.

Named behind the colon: straight (four directions at one speed), smoke (two steps of a few small clips).

Few words, all of which matter, are learnt sooner: begin with :straight, stop it by SIGTERM (`kill`), which
saves, once its loss has fallen to a third (after some 300 steps), and go on with all motions in the same
workdir. The log tells of the change of the data.

  python -m fbjax.main --config=configs/shapes.py:straight --workdir=runs/shapes --config.loader.workers=4
  python -m fbjax.main --config=configs/shapes.py --workdir=runs/shapes --config.loader.workers=4
"""

from ml_collections import ConfigDict

from configs import common


def straight(c: ConfigDict) -> None:
  """Four directions at one speed: few words, all of which matter."""
  c.data.update(motions=("right", "left", "up", "down"), speeds=("quick",))


def smoke(c: ConfigDict) -> None:
  """Two steps of a few small clips."""
  common.smoke(c)
  c.data.update(frames=4, size=32)
  c.system.latte.size = 8
  c.train.batch_size = 2


CHANGES = dict(straight=straight, smoke=smoke)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  c.data = dict(name="synthetic", frames=16, size=64)
  c.tokenizer = dict(name="bytes", length=16)
  common.small_latte(c)
  c.precision = "default"
  c.system.latte.update(width=192, depth=8)
  c.optim.update(lr=4e-3, warmup=100, schedule="wsd")
  c.train.update(
    steps=7000, batch_size=16, ema_decay=0.999, save_every=500, preview_every=2000, log_every=50
  )
  return common.changed(c, arg, CHANGES)
