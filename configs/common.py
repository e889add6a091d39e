"""What all experiments share. A config shows what is particular to it."""

from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict


def base() -> ConfigDict:
  """Defaults of every group; `data`, `tokenizer` and `system` are each experiment's own."""
  c = ConfigDict()
  c.seed = 0
  # Products of float32 numbers: see `build.set_precision`.
  c.precision = "highest"
  c.bridge = dict(name="gmax", beta_min=0.01, beta_max=50.0)
  c.diffusion = dict(name="none")
  c.weights = ""  # a folder that --mode=port wrote; empty trains from scratch
  c.start = dict()  # what of it a run draws anew, sets to zero or widens: see `fbjax.start`
  c.port = dict()  # keys of checkpoint files that nobody needs: see `fbjax.modes.port`
  c.prior = dict()  # a neural prior in front: see `from_prior`
  c.prior_run = ""  # the workdir that has trained it
  c.trainable = dict(whole=(".*",), lora=())  # see `build.make_trainable`
  c.objective = dict(name="bridge", predict="psi", drop_text=0.1)
  c.loader = dict(workers=0, threads=4, prefetch=4)
  c.cache = dict(path="")  # what --mode=cache wrote, in place of reading and encoding the data
  c.optim = dict(
    name="adamw",
    lr=1e-5,
    warmup=0,
    schedule="constant",
    b2=0.999,
    weight_decay=0.01,
    decays="matrices",
    clip=0.5,
    clip_from=0,
    moments="float32",
  )
  c.train = dict(
    steps=20_000,
    batch_size=64,
    accumulate=1,
    offload=False,  # average and optimizer state wait in the host's memory
    ema_decay=0.9999,
    ema_warmup=True,
    log_every=50,
    save_every=1000,
    preview_every=1000,
    keep=2,
    writers="tensorboard",  # beside metrics.jsonl; tensorboard,wandb is both
  )
  c.sampling = dict(
    sampler=dict(name="sde"),
    grid=dict(name="trailing"),
    steps=50,
    guidance=1.0,
    image_guidance=None,
    rescale=0.0,
    draw=None,
    batch_size=8,
    fps=8,
    stride=1,
    images="",  # a folder of images of your own, with a prompt file, for previews
  )
  c.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)
  return c


def small_unet(c: ConfigDict) -> None:
  """A VideoCrafter UNet on 4x4 pixels for two CPU cores: one level, attention in every block with
  relative positions in time, no temporal convolutions; a toy text network is trained along."""
  c.system = dict(
    name="videocrafter",
    codec=dict(name="pixels", patch=4),
    unet=dict(
      width=48,
      mult=(1,),
      blocks=1,
      attention_levels=(0,),
      head_dim=16,
      groups=8,
      positions=8,
      temporal_conv=False,
      init_attention=False,
      dropout=0.0,
    ),
    text=dict(width=64, layers=2, heads=4),
    train_text=True,
    dtype="float32",
  )
  narrow_bridge(c, 0.1)
  c.optim.update(lr=3e-3, warmup=50, schedule="cosine", clip=1.0)


def narrow_bridge(c: ConfigDict, variance: float) -> None:
  """A narrow bridge keeps what does not move. What moves is decided next to the prior, where most
  times are drawn: further on the state itself shows the motion, and the caption need not be read.
  The narrower the bridge, the nearer to the prior that is."""
  shift = 30.0 / variance
  c.bridge = dict(name="constant", variance=variance)
  c.objective = dict(
    name="bridge", predict="velocity", weight_like="z0", shift=shift, drop_text=0.1
  )
  c.train.update(ema_decay=0.99)
  c.sampling.update(steps=4, grid=dict(name="shifted", shift=shift))


def small_latte(c: ConfigDict) -> None:
  """A Latte on 4x4 pixels that is told the caption, for two CPU cores: `data.size` comes first."""
  c.system = dict(
    name="latte",
    codec=dict(name="pixels", patch=4),
    latte=dict(size=c.data.size // 4, width=96, depth=4, heads=4, patch=1, mult=2),
    text=dict(width=64, layers=1, heads=4),
    remat="none",
    dtype="float32",
  )
  narrow_bridge(c, 0.02)
  c.optim.update(name="muon", lr=5e-3, warmup=50, schedule="cosine", clip=1.0)


def videocrafter(c: ConfigDict) -> None:
  """VideoCrafter1 as published: UNet of 1.4 B parameters, SD's VAE, OpenCLIP ViT-H/14, Resampler."""
  c.system = dict(
    name="videocrafter",
    codec=dict(name="autoencoder", scale=0.18215, draw="sample", at_once=4),
    unet=dict(
      width=320,
      mult=(1, 2, 4, 4),
      blocks=2,
      attention_levels=(0, 1, 2),
      head_dim=64,
      dropout=0.1,
      groups=32,
    ),
    text=dict(vocab=49408, length=77, width=1024, layers=24, heads=16, skip=1, c_out=1024),
    image=dict(size=224, patch=14, width=1280, layers=32, heads=16, c_out=1024),
    resampler=dict(width=1024, depth=4, heads=12, head_dim=64, queries=16),
    given="first",
    remat="full",
    dtype="bfloat16",
  )


def latte_on_ucf101(c: ConfigDict) -> None:
  """Latte-S/2 on UCF-101, 16 frames of 256x256 in SD's latents, classes as conditions."""
  c.data = dict(name="ucf101", path="ucf101", protocol="all", frames=16, size=256, strides=3)
  c.tokenizer = dict(name="bytes", length=16)
  c.system = dict(
    name="latte",
    codec=dict(name="autoencoder", scale=0.18215, draw="sample", at_once=4),
    latte=dict(size=32, width=384, depth=12, heads=6, patch=2, classes=101),
    remat="none",
    dtype="float32",
  )
  c.seed = 42
  c.weights = "weights/sd_vae"
  c.start = dict(latte=dict(new=(".*",)))
  c.optim.update(lr=1e-5, weight_decay=0.0, clip=0.0)
  c.objective = dict(name="bridge", predict="psi", drop_text=0.1)
  c.train.update(steps=1_000_000, batch_size=64, save_every=1000)
  c.sampling.update(steps=1000, guidance=7.0, batch_size=4)


def as_prior(c: ConfigDict) -> None:
  """Trains the system's neural prior: regression on the latent video, from images and conditions.

  Written as a bridge whose network looks at neither state nor time, and sampled in one step.
  """
  c.system.name += "_prior"
  c.diffusion = dict(name="none")
  c.objective.predict = "z0"
  c.sampling.update(steps=1, guidance=1.0)
  # Assigned: `update` would keep what another change has set beside the name.
  c.sampling.sampler, c.sampling.grid = dict(name="sde"), dict(name="trailing")


def from_prior(c: ConfigDict) -> None:
  """The bridge starts from the coarse video of a frozen neural prior, and the network is told it.

  Its networks have the system's sizes, unless this group names others; `use` "condition" starts from
  the still frame all the same.
  """
  c.prior = dict(use="prior", trained=False)


def with_prior(c: ConfigDict) -> None:
  """A neural prior trains along, by the loss of the network that is told its video."""
  c.prior = dict(use="condition", trained=True)


def published_sampling(c: ConfigDict) -> None:
  """The released samplers start from the prior itself, without the noise of their first time."""
  c.sampling.sampler.start = "published"


def published_latte(c: ConfigDict) -> None:
  """FrameBridge's training of Latte on UCF-101, to the letter."""
  c.data.update(flip=True, spacing="published")
  c.optim.update(decays="all", clip=0.1, clip_from=100_000)
  c.train.ema_warmup = False


def toy_latte(c: ConfigDict) -> None:
  """The same system on moving shapes, with every size so small that a laptop runs it."""
  c.weights, c.prior_run = "", ""
  c.data = dict(name="synthetic", frames=4, size=32)
  c.system.codec = dict(name="pixels", patch=4)
  c.system.latte.update(size=8, width=32, depth=2, heads=2)
  c.train.batch_size = 8
  c.sampling.batch_size = 2
  two_steps(c)


def toy_videocrafter(c: ConfigDict) -> None:
  """The same system on moving shapes, with every size so small that a laptop runs it."""
  c.weights, c.prior_run = "", ""
  c.data = dict(name="synthetic", frames=4, size=32)
  c.tokenizer = dict(name="bytes", length=16)
  c.system.codec.update(width=8, mult=(1, 2, 2), blocks=1, groups=4)
  # No dropout: a draw for each would take most of the compilation.
  c.system.unet.update(width=16, mult=(1,), blocks=1, attention_levels=(), groups=8, head_dim=8)
  c.system.unet.dropout = 0.0
  c.system.text.update(vocab=302, length=16, width=32, layers=2, heads=2, c_out=16)
  c.system.image.update(size=28, width=32, layers=2, heads=2, c_out=16)
  c.system.resampler.update(width=32, depth=1, heads=2, head_dim=8, queries=2)
  c.train.batch_size = 8
  c.sampling.batch_size = 2


def two_steps(c: ConfigDict) -> None:
  """The same code, over in two steps."""
  c.train.update(steps=2, log_every=1, save_every=1, preview_every=2)
  c.sampling.steps = min(c.sampling.steps, 2)


def smoke(c: ConfigDict) -> None:
  """Two steps of a config that is small anyway."""
  two_steps(c)


def changed(
  c: ConfigDict,
  arg: str,
  changes: Mapping[str, Callable[[ConfigDict], None]],
  apart: Sequence[Sequence[str]] = (),
) -> ConfigDict:
  """The config with the changes that its argument names, several joined by +.

  Args:
    c: changed in place.
    arg: what stands behind the colon of --config.
    changes: by name; they are made in the order of this table, whatever the argument's.
    apart: lists of names of which at most one makes sense.

  Raises:
    ValueError: for another name, or names that do not go together.
  """
  wanted = arg.split("+") if arg else []
  if "" in wanted:
    raise ValueError(f"{arg!r} behind the colon has a + with no name on one side")
  if unknown := [name for name in wanted if name not in changes]:
    raise ValueError(
      f"the argument behind the colon is {unknown[0]!r}; expected nothing or {', '.join(changes)}"
    )
  for names in apart:
    if len(both := [name for name in names if name in wanted]) > 1:
      raise ValueError(
        f"{' and '.join(both)} do not go together behind the colon; name one of them"
      )
  for name, change in changes.items():
    if name in wanted:
      change(c)
  return c
