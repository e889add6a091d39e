"""The neural prior of UCF-101: a Latte-S/2 without time that makes a coarse video of one image.

Trains    by regression on the latent video, as released, from the weights/sd_vae of `ucf101_bridge`.
Costs     not measured on an accelerator yet.
Expect    a blurred video, better than the still frame; not measured here.
Deviates  as `ucf101_bridge` does, but for the start; `:published` undoes it.

  python -m fbjax.main --config=configs/ucf101_prior.py --workdir=runs/ucf101_prior --config.data.path=ucf101

Named behind the colon, several with +:
  denoising    supervised by a diffusion that is told the coarse video, the paper's second way
  combination  both losses at once, its third
  published, smoke
"""

from ml_collections import ConfigDict

from configs import common


def denoising(c: ConfigDict) -> None:
  """Supervised by the loss of a diffusion Latte that is told the coarse video."""
  common.with_prior(c)
  c.system.name = "latte"
  c.start.prior_latte = dict(new=(".*",))
  c.bridge = dict(name="diffusion")
  c.diffusion = dict(name="linear")
  c.objective.predict = "noise"
  c.sampling.update(
    steps=250, guidance=7.0, sampler=dict(name="ddpm"), grid=dict(name="latte_indices")
  )


def combination(c: ConfigDict) -> None:
  """The loss of the diffusion, and that of regression."""
  denoising(c)
  c.objective.regression = 1.0


CHANGES = dict(
  denoising=denoising,
  combination=combination,
  published=common.published_latte,
  smoke=common.toy_latte,
)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  common.as_prior(c)
  c.seed = 3407
  c.optim.lr = 1e-4
  return common.changed(c, arg, CHANGES)
