"""The neural prior of UCF-101: a Latte-S/2 without time that makes a coarse video of one image.

Regression on the latent video, written as a bridge whose network looks at neither state nor time.
  python -m fbjax.main --config=configs/ucf101_prior.py --workdir=runs/ucf101_prior --config.data.path=ucf101
"""

from ml_collections import ConfigDict

from configs import common


def smoke(c: ConfigDict) -> None:
  """Two steps of the same code at toy size."""
  common.toy_latte(c)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.latte_on_ucf101(c)
  c.system = dict(
    name="neural_prior",
    codec=c.system.codec.to_dict(),
    prior=dict(common.PRIOR),
    dtype="float32",
  )
  c.port = dict(prior=dict(new=(".*",)))
  c.seed = 3407
  c.optim.lr = 1e-4
  c.objective.predict = "z0"
  c.sampling.update(steps=1, guidance=1.0)
  return common.changed(c, arg, smoke)
