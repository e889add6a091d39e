"""Bridge against diffusion, from scratch: one network on moving shapes, told the first frame and a caption.

Trains    a small Latte, or a small UNet of VideoCrafter's blocks, on 4x4 pixels of clips of 8 frames of 16x16;
          the arms differ in what is named here and in nothing else.
Costs     some ten minutes of one CPU core an arm, scores included.
Expect    see docs/evidence.md.
Deviates  from the published bridge in all sizes; `bridge` has its process, prediction and sampler.

`studies.bridge` trains all of them; one by itself:
  python -m fbjax.main --config=configs/study_bridge.py:bridge --workdir=runs/bridge_arm

Named behind the colon, one arm, and with it unet, large or smoke:
  diffusion   predicts noise, DDPM's linear schedule (the published counterpart)
  v           the same, v
  residual    the same, z0 - z1, so that zero is the still image
  times       the same as v, with the log-SNR of the bridge's times: a bridge that is aligned and predicts v
  aligned     times, predicting psi: the prior is in the target and not in the state
  bridge      psi and the bridge's own state: the prior is in both (as published)
  narrow      a narrow bridge that predicts velocity, weighted as z0 (as this project's small configs)
  narrow_times  a diffusion with the times and weights of `narrow`, predicting v
  narrow_residual  the same, predicting z0 - z1
  unet        VideoCrafter's blocks instead of Latte
  large       64x64 and 16 frames, for a GPU
  smoke       two steps
"""

from ml_collections import ConfigDict

from configs import common

SCENES = dict(
  motions=("right", "left", "up", "down", "grow", "shrink"),
  speeds=("slow", "quick"),
  backgrounds=("plain", "gradient", "noise"),
  textures=("plain",),
)


def of_diffusion(c: ConfigDict, predict: str) -> None:
  c.bridge = dict(name="diffusion")
  c.diffusion = dict(name="linear")
  c.objective.predict = predict
  c.sampling.grid = dict(name="trailing_indices")


def of_bridge(c: ConfigDict, predict: str, aligned: bool) -> None:
  """Published bridge; aligned, its state is that of the diffusion of `of_diffusion`."""
  if aligned:
    c.diffusion = dict(name="linear")
  c.objective.predict = predict


def narrow(c: ConfigDict) -> None:
  common.narrow_bridge(c, 0.02)


def narrow_times(c: ConfigDict, predict: str) -> None:
  narrow(c)
  c.diffusion = dict(name="linear")
  c.objective.predict = predict


def unet(c: ConfigDict) -> None:
  """VideoCrafter's blocks at a width that takes as long."""
  kept = c.bridge, c.objective, c.sampling, c.train
  common.small_unet(c)
  c.bridge, c.objective, c.sampling, c.train = kept
  c.system.unet.positions = c.data.frames
  c.optim.update(name="muon", lr=5e-3, schedule="constant")


def large(c: ConfigDict) -> None:
  """Minutes of a GPU."""
  c.data.update(frames=16, size=64)
  if "latte" in c.system:
    c.system.latte.update(size=16, width=256, depth=8)
  else:
    c.system.unet.update(width=128, positions=16)
  c.train.update(steps=8000, save_every=2000)


def smoke(c: ConfigDict) -> None:
  """Two steps of tiny networks."""
  common.two_steps(c)
  c.optim.warmup = 0
  c.train.update(batch_size=2, save_every=2)
  if "latte" in c.system:
    c.system.latte.update(width=16, depth=2, heads=2)


ARMS = dict(
  diffusion=lambda c: of_diffusion(c, "noise"),
  v=lambda c: of_diffusion(c, "v"),
  residual=lambda c: of_diffusion(c, "residual"),
  times=lambda c: of_bridge(c, "v", aligned=True),
  aligned=lambda c: of_bridge(c, "psi", aligned=True),
  bridge=lambda c: of_bridge(c, "psi", aligned=False),
  narrow=narrow,
  narrow_times=lambda c: narrow_times(c, "v"),
  narrow_residual=lambda c: narrow_times(c, "residual"),
)
CHANGES = ARMS | dict(unet=unet, large=large, smoke=smoke)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  c.data = dict(name="synthetic", frames=8, size=16, **SCENES)
  c.tokenizer = dict(name="bytes", length=16)
  c.precision = "default"
  common.small_latte(c)
  c.bridge = dict(name="gmax", beta_min=0.01, beta_max=50.0)
  c.objective = dict(name="bridge", predict="psi", drop_text=0.1)
  c.optim.update(schedule="constant")
  c.train.update(
    steps=900, batch_size=16, save_every=150, preview_every=1_000_000, keep=8, ema_decay=0.99
  )
  c.sampling.update(steps=8, batch_size=64)
  c.sampling.sampler = dict(name="first_order", eta=0.0)
  c.sampling.grid = dict(name="trailing")
  return common.changed(c, arg, CHANGES, (tuple(ARMS),))
