"""FrameBridge by SNR-aligned fine-tuning of VideoCrafter1 text-to-video, 256x256, 16 frames.

The published setting (arXiv:2410.15371): psi, batch 64, 20k steps, bf16, clip 0.5, strides 1-6.
First port the released text-to-video checkpoint and OpenCLIP's image network, once:
  python -m fbjax.main --config=configs/webvid_saf.py --mode=port \\
      --weights=vc1_t2v_256.ckpt,open_clip_vit_h_14.safetensors --out=weights/vc1
  python -m fbjax.main --config=configs/webvid_saf.py --workdir=runs/saf --config.data.path=webvid
  python -m fbjax.main --config=configs/webvid_saf.py:smoke --workdir=runs/smoke   # two toy steps
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  common.videocrafter(c)
  c.weights = "weights/vc1"
  c.diffusion = dict(name="videocrafter", rule="exact", pretrained=None)
  c.objective = dict(name="bridge", predict="psi", drop_text=0.2, drop_image=0.2, drop_both=0.2)
  c.data = dict(name="webvid", path="webvid", frames=16, size=256, strides=(1, 6))
  c.tokenizer = dict(name="clip", path="openai/clip-vit-large-patch14", length=77)
  c.seed = 20230211
  # Published: the input kernel drawn anew. Recommended: pretrained kernel kept, zeros for the new
  # channels, so that step 0 still denoises: port.unet.widen=("in_conv/kernel",) in its place.
  image = (r".*/attn2/(image_[kv]/kernel|alpha)",)
  c.port = dict(
    unet=dict(new=("in_conv/kernel", r"stride/.*", *image), zero=(r"stride/out/.*",)),
    resampler=dict(new=(".*",)),
    image=dict(ignore=(r"transformer\..*",)),
    text=dict(ignore=(r"visual\..*",)),
    ignore=(r"embedder\..*", r"model_ema\..*"),
  )
  # To start fine-tuning from the pretrained denoiser: c.diffusion.pretrained = "noise" reads the
  # output as the noise it was trained for. c.train.ema_decay is used either way; released: none.
  c.train.update(steps=20_000, batch_size=64, ema_decay=0.9999)
  c.sampling.update(steps=50, guidance=7.5, stride=3, batch_size=4)
  if arg == "smoke":
    common.toy_videocrafter(c)
  return common.configured(c, arg)
