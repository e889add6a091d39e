"""FrameBridge by SNR-aligned fine-tuning of CogVideoX-2B, 256x256, 17 frames.

Trains    the transformer, 1,694 M parameters, on WebVid-2M: v on the zero-terminal-SNR schedule,
          float32 with products in high precision (TF32), batch 64, clip 1.0, stride 3.
Costs     not measured on an accelerator yet.
Expect    not measured here; how long the paper trained is not known.
Deviates  from the released code: the alignment is exact, the first step starts from noise around the
          prior, the given frame is encoded without noise of the VAE when sampling, weights are averaged,
          decay falls on matrices alone. `:published` undoes all five.

First port the released pipeline, once:
  python -m fbjax.main --config=configs/webvid_saf_cogvideox.py --mode=port --out=weights/cogvideox \
      --weights=CogVideoX-2b/transformer,CogVideoX-2b/vae,CogVideoX-2b/text_encoder
  python -m fbjax.main --config=configs/webvid_saf_cogvideox.py --workdir=runs/cogvideox
  python -m fbjax.main --config=configs/webvid_saf_cogvideox.py:smoke --workdir=runs/smoke

Named behind the colon, several with +: published, released, lora, prior, from_prior, smoke.
"""

from ml_collections import ConfigDict

from configs import common
from fbjax.systems import adapters


def published(c: ConfigDict) -> None:
  """The released training and sampling, to the letter."""
  c.diffusion.rule = "published"
  c.optim.decays = "all"
  c.train.ema_decay = 0.0
  c.sampling.draw = "sample"
  common.published_sampling(c)


def released(c: ConfigDict) -> None:
  """A checkpoint that the released code has trained: nothing in it starts anew."""
  published(c)
  c.weights = "weights/framebridge_cogvideox"
  c.start = dict()


def lora(c: ConfigDict) -> None:
  """Low-rank additions to the attention; the widened input kernel trains whole."""
  c.trainable.update(whole=(adapters.NEW,), lora=(adapters.ATTENTION,), rank=64, scale=64.0)


def prior(c: ConfigDict) -> None:
  """The neural prior of this system, by regression: a transformer with the released input kernel."""
  common.as_prior(c)
  c.start = dict()


def smoke(c: ConfigDict) -> None:
  """Two steps of the same code at toy size."""
  c.weights, c.prior_run = "", ""
  c.data = dict(name="synthetic", frames=9, size=16)
  c.tokenizer = dict(name="bytes", length=16)
  c.system.codec.update(widths=(8, 8, 16), blocks=1, groups=4, c_latent=4)
  c.system.transformer.update(depth=2, heads=2, head_dim=16, time_dim=16)
  c.system.text.update(vocab=302, width=16, layers=1, heads=2, head_dim=8, mlp=16)
  c.train.batch_size = 4
  c.sampling.batch_size = 2
  common.two_steps(c)


CHANGES = dict(
  published=published,
  released=released,
  lora=lora,
  prior=prior,
  from_prior=common.from_prior,
  smoke=smoke,
)
APART = (("released", "prior", "from_prior"),)  # Three networks with other inputs.


def get_config(arg: str = "") -> ConfigDict:
  c = common.base()
  c.system = dict(
    name="cogvideox",
    codec=dict(name="video_autoencoder", scale=1.15258426, draw="mode", tiled=True),
    transformer=dict(depth=30, heads=30, head_dim=64, time_dim=512),
    text=dict(vocab=32128, width=4096, layers=24, heads=64, head_dim=64, mlp=10240),
    noisy_frame=True,
    noisy_prior=True,
    remat="full",
    dtype="float32",  # with bfloat16 the published results were not satisfactory
  )
  c.weights = "weights/cogvideox"
  c.precision = "high"
  c.start = dict(transformer=dict(widen=("patches/kernel",)))
  c.diffusion = dict(name="cogvideox", rule="exact")
  c.objective = dict(name="bridge", predict="v", drop_text=0.1)
  c.data = dict(name="webvid", path="webvid", frames=17, size=256, strides=3)
  c.tokenizer = dict(name="t5", path="google/t5-v1_1-xxl", length=226)
  c.optim.update(lr=1e-5, schedule="cosine", warmup=200, weight_decay=1e-4, clip=1.0)
  c.optim.b2 = 0.95
  c.seed = 42
  c.train.update(steps=20_000, batch_size=64)
  c.sampling.update(steps=50, guidance=6.0, batch_size=2)
  return common.changed(c, arg, CHANGES, APART)
