"""Prediction types: what the network predicts, and z0 and noise recovered from it (§1.3).

Every prediction F is linear in (z0, z1, noise), hence z0 and the noise are linear in (zt, z1, F).
A kind is given by three rows of coefficients:

  kind      F
  z0        z0
  residual  z0 - z1
  noise     noise
  v         cos noise - sin z0             cos = a / n, sin = c / n, n^2 = a^2 + c^2
  psi       (zt - alpha z0) / (alpha sigma)
  velocity  drift of the reverse SDE, f zt + g^2 (zt - alpha z0) / (alpha sigma)^2

psi is the velocity over g^2 / (alpha sigma), when f = 0: the same target, stabilised. `z0`,
`residual`, `noise` and `v` are defined for any process, so also for a diffusion; `psi` and
`velocity` need a bridge. Rows are written in the form that has a limit at both ends wherever there
is one.
"""

from typing import Literal, NamedTuple

from fbjax.bridge import process as process_lib

Kind = Literal["z0", "residual", "noise", "v", "psi", "velocity"]
Clips = process_lib.Clips
PerClip = process_lib.PerClip
Times = process_lib.Times
Process = process_lib.Process
divide = process_lib.divide
sqrt = process_lib.sqrt


class Rows(NamedTuple):
  """Coefficients of a prediction F (§1.3).

  forward      F as a combination of (z0, z1, noise)
  data, noise  z0 and noise as combinations of (zt, z1, F)
  """

  forward: tuple[Times, Times, Times]
  data: tuple[Times, Times, Times]
  noise: tuple[Times, Times, Times]


def rows(kind: Kind, process: Process, time: Times, rescale: Times | None = None) -> Rows:
  """The three rows of coefficients of a prediction, at each time (§1.3).

  `rescale` is the factor s of a network trained with dynamic rescale (§1.4): its v is that of the
  data s z0. The other kinds do not depend on it.

  Raises:
    ValueError: for another kind, and for psi or velocity of a diffusion.
  """
  xp = time.__array_namespace__()
  zero, one = xp.zeros_like(time), xp.ones_like(time)
  a, b, c = process.marginal(time)
  if kind == "z0":
    return Rows(
      (one, zero, zero), (zero, zero, one), (divide(one, c), -divide(b, c), -divide(a, c))
    )
  if kind == "residual":
    return Rows(
      (one, -one, zero),
      (zero, one, one),
      (divide(one, c), -divide(a + b, c), -divide(a, c)),
    )
  if kind == "noise":
    return Rows(
      (zero, zero, one), (divide(one, a), -divide(b, a), -divide(c, a)), (zero, zero, one)
    )
  if kind == "v":
    cos, sin, norm, gain = process.rotation(time)
    s = one if rescale is None else rescale
    stretch = sqrt((cos / s) ** 2 + sin**2)  # 1 unless rescaled
    cos, sin = cos / (s * stretch), sin / stretch
    gain, back = gain / (s * stretch) ** 2, divide(sin, norm * stretch)
    return Rows((-s * sin, zero, cos), (gain, -gain * b, -sin / s), (back, -back * b, cos))
  if kind in ("psi", "velocity") and not isinstance(process, process_lib.Bridge):
    raise ValueError(f"{kind} needs a bridge; a diffusion is predicted as z0, residual, noise or v")
  if kind == "psi":
    alpha, sigma = process.alpha(time), sqrt(process.variance(time))
    alpha_1, total = process.ends(time)
    cos = sqrt(process.variance_to_go(time) / total)
    tangent = divide(sigma, sqrt(process.variance_to_go(time) * total))
    return Rows(
      (-sigma / total, sigma / (alpha_1 * total), cos),
      (1 / alpha, zero, -sigma),
      (tangent / alpha, -tangent / alpha_1, cos),
    )
  if kind == "velocity":
    f = process.drift(time)
    alpha, g2, sigma2 = process.alpha(time), process.diffusion(time), process.variance(time)
    size = divide(g2, alpha * sqrt(sigma2))  # velocity = f zt + size psi
    (_, _, r), (_, _, gain), (to_zt, to_z1, turn) = rows("psi", process, time)
    inverse = divide(one, size)
    # size sigma / total is g2 / (alpha total): no 0 times infinity next to time 0.
    mean = g2 / (alpha * process.ends(time)[1])
    return Rows(
      (f * a - mean, f * b + mean / process.ends(time)[0], f * c + size * r),
      (1 / alpha - f * gain * inverse, zero, gain * inverse),
      (to_zt - f * turn * inverse, to_z1, turn * inverse),
    )
  raise ValueError(f"no prediction named {kind!r}; use z0, residual, noise, v, psi or velocity")


def target(
  kind: Kind,
  process: Process,
  z0: Clips,
  z1: Clips,
  noise: Clips,
  time: PerClip,
  rescale: PerClip | None = None,
) -> Clips:
  """What the network is trained towards (§1.3); MSE with weight 1 is the published loss."""
  return _apply(rows(kind, process, time, rescale).forward, z0, z1, noise)


def recover(
  kind: Kind,
  process: Process,
  pred: Clips,
  zt: Clips,
  z1: Clips,
  time: PerClip,
  rescale: PerClip | None = None,
) -> Clips:
  """The z0 that a prediction implies (§1.3)."""
  return _apply(rows(kind, process, time, rescale).data, zt, z1, pred)


def recover_noise(
  kind: Kind,
  process: Process,
  pred: Clips,
  zt: Clips,
  z1: Clips,
  time: PerClip,
  rescale: PerClip | None = None,
) -> Clips:
  """The noise that a prediction implies (§1.3)."""
  return _apply(rows(kind, process, time, rescale).noise, zt, z1, pred)


def convert(
  kind: Kind,
  to: Kind,
  process: Process,
  pred: Clips,
  zt: Clips,
  z1: Clips,
  time: PerClip,
  rescale: PerClip | None = None,
) -> Clips:
  """Converts a prediction of `kind` into one of the kind `to` (§1.3)."""
  if kind == to:
    return pred
  z0 = recover(kind, process, pred, zt, z1, time, rescale)
  noise = recover_noise(kind, process, pred, zt, z1, time, rescale)
  return target(to, process, z0, z1, noise, time, rescale)


def gain(kind: Kind, process: Process, time: Times) -> Times:
  """|d z0 / d F|: factor from an error of the network to the error of z0 (§1.3, column 4)."""
  return abs(rows(kind, process, time).data[2])


def loss_weight(kind: Kind, like: Kind, process: Process, time: Times) -> Times:
  """Weight that turns the square loss of `kind` into that of `like` (§1.3, column 5)."""
  return divide(gain(kind, process, time), gain(like, process, time)) ** 2


def _apply(row: tuple[PerClip, PerClip, PerClip], *values: Clips) -> Clips:
  return sum(process_lib.per_clip(x, value) * value for x, value in zip(row, values, strict=True))
