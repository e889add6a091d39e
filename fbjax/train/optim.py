"""Optimizers from plain arguments."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
import optax.contrib

from fbjax import checks, errors, trees

# Layers whose matrices shrink under weight decay; norms, biases, positions and gates do not.
MATRICES = ("kernel", "embedding", "a", "b")
# Layers that read pixels or write them, which Muon leaves to AdamW.
PIXELS = r"^latte/(patches|head/out)/kernel$|^unet/(in_conv|out_conv)/kernel$|^transformer/(patches|out)/kernel$"
# Of Muon's updates, those of AdamW: both take the same learning rate (arXiv:2502.16982).
MUON_RMS = 0.2
MOMENTS = ("float32", "bfloat16")


class Optimizer(NamedTuple):
  """An optax.GradientTransformation, with its schedule and which leaves it trains."""

  init: Callable[[Any], optax.OptState]
  update: Callable[..., tuple[Any, optax.OptState]]
  rate: optax.Schedule = lambda step: 0.0  # learning rate of a step
  trains: Callable[[str], bool] = lambda path: True  # whether the leaf of this path trains


def learning_rate(
  lr: float, steps: int, warmup: int = 0, schedule: str = "constant"
) -> optax.Schedule:
  """Linear warm-up over `warmup` steps, then one of

    constant
    cosine    down to zero at `steps`
    wsd       constant, and over the last fifth of `steps`, or what the warm-up leaves of it, a line
              down to zero (arXiv:2404.06395); a run may be lengthened before that

  Raises:
    UserError: for another schedule's name, or numbers that make no sense.
  """
  checks.number("config.optim.lr", lr, least=0)
  checks.whole("config.optim.warmup", warmup, least=0)
  match schedule:
    case "constant":
      return optax.warmup_constant_schedule(0.0 if warmup else lr, lr, warmup)
    case "cosine":
      return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else lr, lr, warmup, max(steps, warmup + 1)
      )
    case "wsd":
      decay = max(min(steps // 5, steps - warmup), 1)
      stable = optax.warmup_constant_schedule(0.0 if warmup else lr, lr, warmup)
      down = optax.linear_schedule(lr, 0.0, decay)
      return optax.join_schedules([stable, down], [max(steps - decay, warmup)])
  raise errors.UserError(
    f"config.optim.schedule is {schedule!r}; expected 'constant', 'cosine' or 'wsd'"
  )


def make_optimizer(
  *,
  steps: int,
  trains: Callable[[str], bool] = lambda path: True,
  name: str = "adamw",
  lr: float = 1e-5,
  warmup: int = 0,
  schedule: str = "constant",
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.01,
  decays: str = "matrices",
  clip: float = 0.0,
  clip_from: int = 0,
  moments: str = "float32",
) -> Optimizer:
  """AdamW, Muon or SGD on the leaves that train; the others stay as they are and have no state.

  Args:
    steps: of the whole training, at which the schedules that decay end.
    trains: path of a leaf, such as unet/in_conv/kernel -> whether it trains.
    name: "adamw", "muon" (arXiv:2502.16982: kernels alone, the rest by AdamW) or "sgd".
    lr, warmup, schedule: see `learning_rate`.
    b1, b2, eps: AdamW's, also beside Muon; SGD has none.
    weight_decay: of the leaves that `decays` names, times the learning rate.
    decays: "matrices" (kernels, embeddings, low-rank additions), or "all", as PyTorch does.
    clip: greatest global norm of the gradients of all leaves that train; 0 for none.
    clip_from: the step, from 0, that clipping begins at.
    moments: dtype that AdamW's first moment and Muon's momentum are kept in, "float32" or "bfloat16".

  Raises:
    UserError: for another optimizer's name, another `decays`, or numbers that make no sense.
  """
  for key, beta in (("config.optim.b1", b1), ("config.optim.b2", b2)):
    checks.number(key, beta, least=0, below=1)
  checks.number("config.optim.eps", eps, above=0)
  checks.number("config.optim.weight_decay", weight_decay, least=0)
  checks.number("config.optim.clip", clip, least=0)
  checks.whole("config.optim.clip_from", clip_from, least=0)
  if clip_from and not clip:
    raise errors.UserError(
      f"config.optim.clip_from={clip_from} is when clipping begins, but config.optim.clip is 0: set it, "
      "or leave clip_from at 0"
    )
  rate = learning_rate(lr, steps, warmup, schedule)
  if decays not in ("matrices", "all"):
    raise errors.UserError(f"config.optim.decays is {decays!r}; expected 'matrices' or 'all'")
  if moments not in MOMENTS:
    raise errors.UserError(
      f"config.optim.moments is {moments!r}; expected {' or '.join(map(repr, MOMENTS))}"
    )
  mu_dtype = None if moments == "float32" else moments
  decayed = by_path(lambda path: decays == "all" or path.split("/")[-1] in MATRICES)
  match name:
    case "adamw":
      tx = optax.adamw(
        rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decayed, mu_dtype=mu_dtype
      )
    case "muon":
      tx = optax.contrib.muon(
        rate,
        eps=eps,
        weight_decay=weight_decay,
        weight_decay_mask=decayed,
        adam_b1=b1,
        adam_b2=b2,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=matrix_axes,
        consistent_rms=MUON_RMS,
        mu_dtype=mu_dtype,
      )
    case "sgd":
      for key, value, default in (("b1", b1, 0.9), ("b2", b2, 0.999), ("eps", eps, 1e-8)):
        if value != default:
          raise errors.UserError(
            f"config.optim.{key} is {value}, but SGD has none: leave it at {default}, or take adamw"
          )
      if mu_dtype:
        raise errors.UserError(
          "config.optim.moments is set, but SGD has none: leave it at 'float32'"
        )
      tx = optax.chain(optax.add_decayed_weights(weight_decay, decayed), optax.sgd(rate))
    case _:
      raise errors.UserError(f"config.optim.name is {name!r}; expected 'adamw', 'muon' or 'sgd'")
  # An optimizer without clipping has the same state: a run may change its mind.
  clipping = optax.clip_by_global_norm(clip) if clip else optax.identity()
  clipping = optax.conditionally_transform(clipping, lambda step: step >= clip_from)
  tx = optax.chain(clipping, tx)
  label = by_path(lambda path: "trains" if trains(path) else "stays")
  tx = optax.partition({"trains": tx, "stays": optax.set_to_zero()}, label)
  return Optimizer(tx.init, tx.update, rate, trains)


def matrix_axes(params: Any) -> Any:
  """The axes along which each kernel is a matrix, for Muon; None for leaves that AdamW trains.

  AdamW trains all leaves but kernels, and the kernels of input and output layers (`PIXELS`).
  """

  def axes(name: str, x: Any) -> optax.contrib.MuonDimensionNumbers | None:
    if not name.endswith("kernel") or x.ndim < 2 or re.search(PIXELS, name):
      return None
    inputs = tuple(range(3)) if x.ndim == 4 else x.ndim - 2  # of convolutions, height and width too
    return optax.contrib.MuonDimensionNumbers(inputs, x.ndim - 1)

  return trees.map_paths(axes, params)


def by_path(fn: Callable[[str], Any]) -> Callable[[Any], Any]:
  """tree -> fn of the path of each of its leaves."""
  return lambda tree: trees.map_paths(lambda path, _: fn(path), tree)
