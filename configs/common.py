"""What all experiments share. A config shows what is particular to it."""

from ml_collections import ConfigDict


def base() -> ConfigDict:
  """Defaults of every group; `data`, `tokenizer` and `system` are each experiment's own."""
  c = ConfigDict()
  c.seed = 0
  c.bridge = dict(name="gmax", beta_min=0.01, beta_max=50.0)
  c.diffusion = dict(name="none")
  c.objective = dict(name="bridge", predict="psi", drop_text=0.1)
  c.loader = dict(workers=0, threads=4, prefetch=4)
  c.optim = dict(name="adamw", lr=1e-5, warmup=0, schedule="constant", weight_decay=0.01, clip=0.5)
  c.train = dict(
    steps=20_000,
    batch_size=64,
    accumulate=1,
    ema_decay=0.9999,
    log_every=50,
    save_every=1000,
    preview_every=1000,
    keep=2,
  )
  c.sampling = dict(
    sampler=dict(name="sde"),
    grid=dict(name="trailing"),
    steps=50,
    guidance=1.0,
    batch_size=8,
    fps=8,
    stride=1,
  )
  c.mesh = dict(data=-1, fsdp=1)
  return c


def small_unet(c: ConfigDict) -> None:
  """A VideoCrafter UNet on pixels for two CPU cores: no temporal convolutions, attention in the
  middle with relative positions; a toy text network is trained along."""
  c.system = dict(
    name="videocrafter",
    codec=dict(name="pixels", patch=2),
    unet=dict(
      width=16,
      mult=(1, 2),
      blocks=1,
      attention_levels=(),
      head_dim=16,
      groups=8,
      positions=8,
      temporal_conv=False,
      init_attention=False,
      dropout=0.0,
    ),
    text=dict(width=64, layers=2, heads=4),
    dtype="float32",
  )
  # A narrow bridge keeps what does not move; what moves is decided next to the prior, where the
  # times are drawn.
  c.bridge = dict(name="constant", variance=0.01)
  c.objective = dict(name="bridge", predict="velocity", weight_like="z0", shift=20.0, drop_text=0.1)
  c.optim.update(lr=3e-3, warmup=50, schedule="cosine", clip=1.0)
  c.train.update(ema_decay=0.99)
  c.sampling.update(steps=4, grid=dict(name="shifted", shift=20.0))


def configured(c: ConfigDict, arg: str) -> ConfigDict:
  """The config as its argument asks: whole, or `smoke` for the same code in two steps.

  Raises:
    ValueError: for another argument.
  """
  if arg not in ("", "smoke"):
    raise ValueError(f"the argument behind the colon is {arg!r}; expected nothing or 'smoke'")
  if arg == "smoke":
    c.train.update(steps=2, log_every=1, save_every=1, preview_every=2)
    c.sampling.update(steps=2)
  return c
