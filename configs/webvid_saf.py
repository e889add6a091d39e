"""FrameBridge by SNR-aligned fine-tuning of VideoCrafter1 text-to-video, 256x256, 16 frames.

Trains    the UNet and the Resampler, 1,488 M parameters, on WebVid-2M: psi, batch 64, 20k steps, bf16.
Costs     not measured on an accelerator yet.
Expect    FVD 95 on zero-shot MSR-VTT in the paper (arXiv:2410.15371); not measured here.
Deviates  from the released code: the alignment is exact, the first step starts from noise around the
          prior, weights are averaged, decay falls on matrices alone. `:published` undoes all four.

First port the released text-to-video checkpoint and OpenCLIP's image network, once:
  python -m fbjax.main --config=configs/webvid_saf.py --mode=port \
      --weights=vc1_t2v_256.ckpt,open_clip_vit_h_14.safetensors --out=weights/vc1
  python -m fbjax.main --config=configs/webvid_saf.py --workdir=runs/saf --config.data.path=webvid
  python -m fbjax.main --config=configs/webvid_saf.py:smoke --workdir=runs/smoke   # two toy steps

Named behind the colon, several with +, such as configs/webvid_saf.py:recommended+lora:
  published    exactly the released setting
  released     a released FrameBridge checkpoint, ported, to be sampled or trained on
  recommended  starts from a network that still denoises
  lora         low-rank additions and what is new, for one small GPU
  temporal     the layers along time and what is new
  prior, from_prior   the neural prior of this system, and the bridge that starts from it
  smoke        two steps of the same code at toy size
"""

from ml_collections import ConfigDict

from configs import common
from fbjax.systems import adapters

IMAGE = (r".*/attn2/image_[kv]/kernel", r".*/attn2/alpha")  # what a text-to-video network lacks


def published(c: ConfigDict) -> None:
  """The released training and sampling, to the letter."""
  c.diffusion.rule = "published"
  c.optim.decays = "all"
  c.train.ema_decay = 0.0
  common.published_sampling(c)


def released(c: ConfigDict) -> None:
  """A checkpoint that the released code has trained: nothing in it starts anew."""
  published(c)
  c.weights = "weights/framebridge_vc"
  c.start = dict()


def recommended(c: ConfigDict) -> None:
  """What the published setting loses at step 0 is kept."""
  # The pretrained input kernel with zeros for the new channels: step 0 still denoises.
  c.start.unet.update(new=(r"stride/.*", *IMAGE), widen=("in_conv/kernel",))
  # Image attention says nothing until it has learnt to, instead of noise at full strength.
  c.start.unet.zero = (r"stride/out/.*", r".*/attn2/image_v/kernel")
  # The output is read as the noise it was trained for, and converted to psi.
  c.diffusion.pretrained = "noise"
  # Nine clips of ten keep all conditions, and both nulls of guidance are trained.
  c.objective.update(drop_text=0.05, drop_image=0.0, drop_both=0.05)


def lora(c: ConfigDict) -> None:
  """Low-rank additions to the attention of the UNet; whatever is new trains whole."""
  c.trainable.update(whole=(adapters.NEW,), lora=(adapters.ATTENTION,), rank=16, scale=16.0)


def temporal(c: ConfigDict) -> None:
  """Motion alone: the layers along time, and whatever is new."""
  c.trainable.whole = (adapters.NEW, r"^unet/.*/temporal/", r"^unet/in_attention/")


def prior(c: ConfigDict) -> None:
  """The neural prior of this system, by regression: a UNet with the text-to-video input kernel."""
  common.as_prior(c)
  c.start.unet.new = (r"stride/.*", *IMAGE)


def smoke(c: ConfigDict) -> None:
  """Two steps of the same code at toy size."""
  common.toy_videocrafter(c)
  common.two_steps(c)


CHANGES = dict(
  published=published,
  released=released,
  recommended=recommended,
  lora=lora,
  temporal=temporal,
  prior=prior,
  from_prior=common.from_prior,
  smoke=smoke,
)
APART = (
  ("released", "recommended"),  # Nothing of a released network starts anew.
  ("published", "recommended"),  # What is recommended was not published.
  ("lora", "temporal"),  # Two answers to what trains.
  ("released", "prior", "from_prior"),  # Three networks with other inputs.
)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.videocrafter(c)
  c.weights = "weights/vc1"
  c.diffusion = dict(name="videocrafter", rule="exact", pretrained=None)
  c.objective = dict(name="bridge", predict="psi", drop_text=0.2, drop_image=0.2, drop_both=0.2)
  c.data = dict(name="webvid", path="webvid", frames=16, size=256, strides=(1, 6))
  c.tokenizer = dict(name="clip", path="openai/clip-vit-large-patch14", length=77)
  c.seed = 20230211
  c.start = dict(
    unet=dict(new=("in_conv/kernel", r"stride/.*", *IMAGE), zero=(r"stride/out/.*",), widen=()),
    resampler=dict(new=(".*",)),
  )
  c.port = dict(
    image=dict(ignore=(r"transformer\..*",)),
    text=dict(ignore=(r"visual\..*",)),
    ignore=(r"embedder\..*", r"model_ema\..*"),
  )
  c.train.update(steps=20_000, batch_size=64, ema_decay=0.9999)
  c.sampling.update(steps=50, guidance=7.5, stride=3, batch_size=4)
  return common.changed(c, arg, CHANGES, APART)
