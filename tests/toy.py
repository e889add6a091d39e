"""A configuration so small that a training step compiles in seconds."""

import jax
import numpy as np

from configs import common
from fbjax import build, checkpoint
from fbjax import workdir as workdir_lib
from fbjax.train import step


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


def wild(workdir: str, **changes) -> str:
  """Makes a workdir whose network has large random weights: its clips show whatever it is told.

  It has steps 2 and 4, and averages that differ from the weights of their step. `changes` are groups
  of its config.
  """
  c = config() | changes
  system = build.make_system(c, build.make_tokenizer(c))
  params = system.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), params)
  state = step.init_state(params, build.make_optimizer(c, system))
  with workdir_lib.claim(workdir, c, {}) as record:
    record(0)
    checkpoints = checkpoint.Checkpoints(workdir)
    for saved, scale in ((2, 0.5), (4, 1.0)):
      ema, last = (
        jax.tree.map(lambda x, k=k: k * x, params) for k in (np.float32(scale), np.float32(1.2))
      )
      checkpoints.save(saved, state._replace(params=last, ema=ema), saved)
    checkpoints.close()
  return workdir


class Uncached:
  """What caches want of a system, for stand-ins that nobody caches."""

  decoders = ()

  def features(self, frozen, batch, keys): ...
  def nulls(self, frozen, batch): ...
  def draw(self, frozen, features, keys): ...
