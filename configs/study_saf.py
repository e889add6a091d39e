"""SNR-aligned fine-tuning: a text-to-video diffusion becomes an image-to-video network in several ways.

Trains    `text` first, a small UNet of VideoCrafter's blocks that is told captions alone; the
          others go on from it, with the first frame beside their input.
Costs     45 minutes of one CPU core for `text`, some ten for each of the others.
Expect    of `text`, clips of the colours and motions that their captions name; of the others docs/evidence.md.
Deviates  from `webvid_saf` in all sizes, on 4x4 pixels, and the pretrained network predicts z0; the
          schedules are the published ones.

`studies.saf` trains all of them; one by itself:
  python -m fbjax.main --config=configs/study_saf.py:text --workdir=runs/text

Named behind the colon, one arm, and with it large or smoke:
  text        a text-to-video diffusion on VideoCrafter's schedule
  diffusion   an image-to-video diffusion
  unaligned   a bridge: the network sees its state as it is
  published   a bridge with SAF as released: the input kernel starts anew, the published table of times
  clean       SAF from a network that still denoises: input kernel widened, exact times
  psi         `clean` that predicts psi, its output converted from z0
  scratch     `clean` without any weights
  large       64x64 and 16 frames, for a GPU
  smoke       two steps
"""

from ml_collections import ConfigDict

from configs import common, study_bridge


def text(c: ConfigDict) -> None:
  diffusion(c)
  c.system.given = "none"
  c.start = dict()
  c.train.update(steps=4000, save_every=1000)


def diffusion(c: ConfigDict) -> None:
  c.bridge = dict(name="diffusion")
  c.sampling.grid = dict(name="trailing_indices")


def unaligned(c: ConfigDict) -> None:
  c.diffusion = dict(name="none")


def published(c: ConfigDict) -> None:
  c.diffusion.rule = "published"
  c.start.unet = dict(new=("in_conv/kernel",))


def clean(c: ConfigDict) -> None:
  """The config as it is."""


def psi(c: ConfigDict) -> None:
  c.objective.predict = "psi"
  c.diffusion.pretrained = "z0"


def scratch(c: ConfigDict) -> None:
  c.start = dict()


ARMS = dict(
  diffusion=diffusion,
  unaligned=unaligned,
  published=published,
  clean=clean,
  psi=psi,
  scratch=scratch,
)
CHANGES = dict(text=text) | ARMS | dict(large=study_bridge.large, smoke=study_bridge.smoke)


def get_config(arg: str = "") -> ConfigDict:
  c = study_bridge.get_config("bridge+unet")
  c.diffusion = dict(name="videocrafter", rule="exact", pretrained=None)
  # 48 pixels a token are more than so small a network can carry: as noise or v they stay noise.
  c.objective.predict = "z0"
  c.start = dict(unet=dict(widen=("in_conv/kernel",)))
  c.train.update(steps=600, save_every=100)
  return common.changed(c, arg, CHANGES, (("text", *ARMS),))
