"""A configuration so small that a training step compiles in seconds."""

from configs import common


def config(**train) -> dict:
  c = common.base()
  common.small_unet(c)
  c.data = dict(name="synthetic", frames=3, size=16)
  c.tokenizer = dict(name="bytes", length=16)
  c.system.codec.patch = 2
  c.system.unet.update(
    width=8, mult=(1,), attention_levels=(), head_dim=8, groups=4, temporal_conv=False
  )
  c.system.text.update(width=16, layers=1, heads=2)
  c.loader.threads = 1
  c.train.update(steps=4, batch_size=8, accumulate=1, log_every=1, save_every=2, preview_every=100)
  c.train.update(train)
  c.bridge = dict(name="constant", variance=1.0)
  c.objective.update(shift=1.0)
  c.sampling.update(steps=2, batch_size=2)
  c.sampling.grid = dict(name="trailing")
  return c.to_dict()
