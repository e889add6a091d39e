"""Optimizers from plain arguments."""

import optax

from fbjax import errors


def learning_rate(
  lr: float, steps: int, warmup: int = 0, schedule: str = "constant"
) -> optax.Schedule:
  """Linear warm-up over `warmup` steps, then constant, or a cosine down to zero at `steps`.

  Raises:
    UserError: for another schedule's name.
  """
  match schedule:
    case "constant":
      return optax.warmup_constant_schedule(0.0 if warmup else lr, lr, warmup)
    case "cosine":
      return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else lr, lr, warmup, max(steps, warmup + 1)
      )
  raise errors.UserError(f"optim.schedule is {schedule!r}; expected 'constant' or 'cosine'")


def make_optimizer(
  *,
  steps: int,
  name: str = "adamw",
  lr: float = 1e-5,
  warmup: int = 0,
  schedule: str = "constant",
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.01,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW or SGD behind clipping of the global gradient norm (`clip=0` for none).

  Raises:
    UserError: for another optimizer's name.
  """
  rate = learning_rate(lr, steps, warmup, schedule)
  match name:
    case "adamw":
      tx = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    case "sgd":
      tx = optax.sgd(rate)
    case _:
      raise errors.UserError(f"optim.name is {name!r}; expected 'adamw' or 'sgd'")
  return optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx
