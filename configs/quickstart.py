"""A bridge from scratch on moving shapes with captions: a few minutes on two CPU cores.

It learns to move the object of a still image the way the caption says. No download, no GPU.
  python -m fbjax.main --config=configs/quickstart.py --workdir=runs/quickstart
  python -m fbjax.main --config=configs/quickstart.py:smoke --workdir=runs/smoke     # two steps
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  c.data = dict(name="synthetic", frames=8, size=32)
  c.tokenizer = dict(name="bytes", length=16)
  c.system = dict(
    name="videocrafter",
    codec=dict(name="pixels", patch=2),
    unet=dict(
      width=16,
      mult=(1, 2, 4),
      blocks=1,
      attention_levels=(2,),
      head_dim=16,
      groups=8,
      positions=8,
      init_attention=False,
    ),
    text=dict(width=64, layers=2, heads=4),
    dtype="float32",
  )
  c.objective.update(predict="v", drop_text=0.1)
  c.optim.update(lr=2e-3, warmup=50, schedule="cosine", clip=1.0)
  c.train.update(steps=1500, batch_size=16, ema_decay=0.995, save_every=500, preview_every=500)
  c.sampling.update(steps=16)
  return common.configured(c, arg)
