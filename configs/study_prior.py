"""The neural prior: the still image, or a coarse video that a regression makes of it, as the start of a bridge.

Trains    `coarse` first, the regression, a small Latte; the others are the Latte of `study_bridge`.
Costs     some ten minutes of one CPU core an arm, scores included.
Expect    see docs/evidence.md.
Deviates  from `ucf101_prior` and `ucf101_bridge_prior` in all sizes, on 4x4 pixels.

`studies.prior` trains all of them; one by itself:
  python -m fbjax.main --config=configs/study_prior.py:still --workdir=runs/still

Named behind the colon, one arm, and with it large or smoke:
  coarse      the regression
  still       a bridge from the still image
  start       a bridge from the coarse video, which the network is told as well (as published)
  condition   a bridge from the still image; the network is told the coarse video
  noise       a diffusion whose network is told the coarse video
  large       64x64 and 16 frames, for a GPU
  smoke       two steps
"""

from ml_collections import ConfigDict

from configs import common, study_bridge


def coarse(c: ConfigDict) -> None:
  common.as_prior(c)
  c.train.update(steps=400, save_every=400)


def start(c: ConfigDict) -> None:
  common.from_prior(c)


def condition(c: ConfigDict) -> None:
  common.from_prior(c)
  c.prior.use = "condition"


def noise(c: ConfigDict) -> None:
  condition(c)
  study_bridge.of_diffusion(c, "noise")


ARMS = dict(still=lambda c: None, start=start, condition=condition, noise=noise)
CHANGES = dict(coarse=coarse) | ARMS | dict(large=study_bridge.large, smoke=study_bridge.smoke)


def get_config(arg: str = "") -> ConfigDict:
  return common.changed(study_bridge.get_config("bridge"), arg, CHANGES, (("coarse", *ARMS),))
