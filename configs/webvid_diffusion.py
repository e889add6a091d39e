"""The diffusion counterpart of `webvid_saf`: same network, data, steps and conditions.

Trains    VideoCrafter1 fine-tuned to image-to-video as a diffusion: it starts from noise and predicts
          noise. It starts from the weights that `webvid_saf` was ported to.
Costs     what `webvid_saf` does.
Expect    FVD 192 on zero-shot MSR-VTT in the paper (arXiv:2410.15371); not measured here.
Deviates  the paper's own configuration is not released. Sampled as DynamiCrafter-256 (DDIM, 50 steps,
          eta 1), but the last step ends without noise; `:published` ends at the noise of index 0.

  python -m fbjax.main --config=configs/webvid_diffusion.py --workdir=runs/diffusion --config.data.path=webvid

Named behind the colon: published, lora, temporal, smoke; see `webvid_saf`.
"""

from ml_collections import ConfigDict

from configs import common, webvid_saf


def published(c: ConfigDict) -> None:
  """Trained and sampled as the code that the bridge was built on."""
  c.optim.decays = "all"
  c.train.ema_decay = 0.0
  c.sampling.sampler.last = 0.0


CHANGES = dict(
  published=published,
  lora=webvid_saf.lora,
  temporal=webvid_saf.temporal,
  smoke=webvid_saf.smoke,
)


def get_config(arg: str = "") -> ConfigDict:
  c = webvid_saf.get_config()
  c.bridge = dict(name="diffusion")
  c.objective.predict = "noise"
  c.sampling.sampler = dict(name="ddim", eta=1.0)
  c.sampling.grid = dict(name="uniform_indices")
  return common.changed(c, arg, CHANGES)
