"""The neural prior of UCF-101: a Latte-S/2 without time that makes a coarse video of one image.

  python -m fbjax.main --config=configs/ucf101_prior.py --workdir=runs/ucf101_prior --config.data.path=ucf101

It learns by regression, as released. Named behind the colon are the other two ways of the paper's code:
`denoising` by a diffusion that is told the coarse video, and `combination`, both losses at once.
"""

from ml_collections import ConfigDict

from configs import common


def denoising(c: ConfigDict) -> None:
  """Supervised by the loss of a diffusion Latte that is told the coarse video."""
  common.with_prior(c)
  c.system.name = "latte"
  c.port.prior_latte = dict(new=(".*",))
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


def smoke(c: ConfigDict) -> None:
  """Two steps of the same code at toy size."""
  common.toy_latte(c)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  common.as_prior(c)
  c.seed = 3407
  c.optim.lr = 1e-4
  return common.changed(c, arg, denoising, combination, smoke)
