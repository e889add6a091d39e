"""FrameBridge by SNR-aligned fine-tuning of VideoCrafter1 text-to-video, 256x256, 16 frames.

The published setting (arXiv:2410.15371): psi, batch 64, 20k steps, bf16, clip 0.5, strides 1-6.
First port the released text-to-video checkpoint and OpenCLIP's image network, once:
  python -m fbjax.main --config=configs/webvid_saf.py --mode=port \
      --weights=vc1_t2v_256.ckpt,open_clip_vit_h_14.safetensors --out=weights/vc1
  python -m fbjax.main --config=configs/webvid_saf.py --workdir=runs/saf --config.data.path=webvid
  python -m fbjax.main --config=configs/webvid_saf.py:smoke --workdir=runs/smoke   # two toy steps

Alternatives are named behind the colon, several with +: configs/webvid_saf.py:recommended+lora
"""

from ml_collections import ConfigDict

from configs import common

IMAGE = (r".*/attn2/image_[kv]/kernel", r".*/attn2/alpha")  # what a text-to-video network lacks


def recommended(c: ConfigDict) -> None:
  """What the published setting loses at step 0 is kept; port with this too."""
  # The pretrained input kernel with zeros for the new channels: step 0 still denoises.
  c.port.unet.update(new=(r"stride/.*", *IMAGE), widen=("in_conv/kernel",))
  # Image attention says nothing until it has learnt to, instead of noise at full strength.
  c.port.unet.zero = (r"stride/out/.*", r".*/attn2/image_v/kernel")
  # The output is read as the noise it was trained for, and converted to psi.
  c.diffusion.pretrained = "noise"
  # Nine clips of ten keep all conditions, and both nulls of guidance are trained.
  c.objective.update(drop_text=0.05, drop_image=0.0, drop_both=0.05)


def lora(c: ConfigDict) -> None:
  """Low-rank additions to the attention of the UNet: for one small GPU."""
  c.trainable = dict(
    name="lora", rank=16, pattern=r"^unet/.*/attn\d/(q|k|v|out)/kernel$", scale=16.0
  )


def temporal(c: ConfigDict) -> None:
  """Motion alone: temporal layers, and what is new."""
  c.trainable = dict(name="matching", pattern=r"temporal|resampler|in_conv|stride|image_|alpha")


def prior(c: ConfigDict) -> None:
  """The neural prior of this system, by regression: a UNet with the text-to-video input kernel."""
  common.as_prior(c)
  c.port.unet.new = (r"stride/.*", *IMAGE)


def smoke(c: ConfigDict) -> None:
  """Two steps of the same code at toy size."""
  common.toy_videocrafter(c)
  common.two_steps(c)


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.videocrafter(c)
  c.weights = "weights/vc1"
  c.diffusion = dict(name="videocrafter", rule="exact", pretrained=None)
  c.objective = dict(name="bridge", predict="psi", drop_text=0.2, drop_image=0.2, drop_both=0.2)
  c.data = dict(name="webvid", path="webvid", frames=16, size=256, strides=(1, 6))
  c.tokenizer = dict(name="clip", path="openai/clip-vit-large-patch14", length=77)
  c.seed = 20230211
  c.port = dict(
    unet=dict(
      new=("in_conv/kernel", r"stride/.*", *IMAGE), zero=(r"stride/out/.*",), widen=(), ignore=()
    ),
    resampler=dict(new=(".*",)),
    image=dict(ignore=(r"transformer\..*",)),
    text=dict(ignore=(r"visual\..*",)),
    ignore=(r"embedder\..*", r"model_ema\..*"),
  )
  # Released without an average of the weights; it costs memory and has never hurt.
  c.train.update(steps=20_000, batch_size=64, ema_decay=0.9999)
  c.sampling.update(steps=50, guidance=7.5, stride=3, batch_size=4)
  return common.changed(c, arg, recommended, lora, temporal, prior, common.from_prior, smoke)
