"""The diffusion counterpart of `webvid_saf`: same network, data, steps and conditions.

VideoCrafter1 fine-tuned to image-to-video as a diffusion: it starts from noise, predicts noise and is
sampled by DDIM in 50 steps. It is ported as `webvid_saf` is.
  python -m fbjax.main --config=configs/webvid_diffusion.py --workdir=runs/diffusion --config.data.path=webvid
"""

from ml_collections import ConfigDict

from configs import common, webvid_saf


def get_config(arg: str = "") -> ConfigDict:
  c = webvid_saf.get_config()
  c.bridge = dict(name="diffusion")
  c.objective.predict = "noise"
  c.sampling.sampler = dict(name="ddim", eta=1.0)
  c.sampling.grid = dict(name="uniform_indices")
  return common.changed(c, arg, webvid_saf.lora, webvid_saf.temporal, webvid_saf.smoke)
