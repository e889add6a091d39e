"""Linear bridges between a clean video and its prior (FrameBridge, arXiv:2410.15371).

  z0  clean video latent        z1  prior: the conditioning frame repeated, or a coarse video
  zt = a z0 + b z1 + c noise    time in [0, 1], 0 next to data

A reference diffusion dz = f z dt + g dw is pinned to z1 at time 1. Its quantities are

  alpha     exp of the integral of f from 0       alpha = 1 without drift
  variance  integral of g^2 / alpha^2 from 0      sigma^2, growing; sigma_1^2 at time 1
  variance_to_go  sigma_1^2 - sigma^2             sigma_bar^2

and everything else, from the marginal to the last sampler, is algebra on these three.

Functions of time follow the array they are given: numpy in float64 when a sampler's table is made
on the host, jax in float32 inside a training step. None of them subtracts two nearly equal
numbers, so both ends are as exact as the middle.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float

Times = Float[jax.Array | np.ndarray | np.generic, "*t"]
Clips = Float[jax.Array | np.ndarray, "b *d"]
PerClip = Float[jax.Array | np.ndarray, "b"]


class Marginal(NamedTuple):
  """Coefficients of q(zt | z0, z1): mean a z0 + b z1, standard deviation c (§1.1)."""

  a: Times
  b: Times
  c: Times


class Posterior(NamedTuple):
  """q(zt | zs, z0), t < s (§1.1): coefficients of zs and z0 in its mean, standard deviation std."""

  zs: Times
  z0: Times
  std: Times


class Rotation(NamedTuple):
  """(zt - b z1) = norm (cos z0 + sin noise): the same state as a unit-norm diffusion (§1.3).

  cos = a / norm, sin = c / norm, gain = a / norm^2. At time 1, where norm is 0, they keep limits.
  """

  cos: Times
  sin: Times
  norm: Times
  gain: Times


class Drift(NamedTuple):
  """Coefficients of zt, z0 and z1 in a drift dz/dt (§1.1)."""

  zt: Times
  z0: Times
  z1: Times


@runtime_checkable
class Process(Protocol):
  """Gaussian path zt = a z0 + b z1 + c noise: what targets and samplers need of it (§1.1, §3.6).

  The bridges below are processes; so is a pretrained diffusion (`diffusion.Diffusion`), with b = 0.
  """

  def marginal(self, time: Times) -> Marginal: ...
  def posterior(self, start: Times, end: Times) -> Posterior: ...
  def rotation(self, time: Times) -> Rotation: ...
  def log_snr(self, time: Times) -> Times: ...


def sqrt(x: Times) -> Times:
  """Square root whose derivative at 0 is 0, not infinite: gradients stay finite at both ends."""
  xp = x.__array_namespace__()
  positive = x > 0
  return xp.where(positive, xp.sqrt(xp.where(positive, x, 1)), xp.zeros_like(x))


def divide(x: Times, y: Times) -> Times:
  """x / y, and 0 where y is 0."""
  xp = y.__array_namespace__()
  return xp.where(y == 0, xp.zeros_like(y), x / xp.where(y == 0, xp.ones_like(y), y))


class Bridge:
  """Linear bridge of a reference diffusion (§1.1); a subclass gives five closed forms.

  alpha, drift f and diffusion g^2 of time; accumulated(start, end), the integral of g^2 / alpha^2
  between two times; time_of_variance, the inverse of `variance`. The rest is derived from these.
  """

  __slots__ = ()

  def variance(self, time: Times) -> Times:
    """sigma_t^2, the integral of g^2 / alpha^2 from 0 to t (§1.1)."""
    xp = time.__array_namespace__()
    return self.accumulated(xp.zeros_like(time), time)

  def variance_to_go(self, time: Times) -> Times:
    """sigma_bar_t^2 = sigma_1^2 - sigma_t^2, integrated from t to 1: no cancellation (§1.1)."""
    xp = time.__array_namespace__()
    return self.accumulated(time, xp.ones_like(time))

  def ends(self, time: Times) -> tuple[Times, Times]:
    """(alpha_1, sigma_1^2), shaped as `time` (§1.1)."""
    xp = time.__array_namespace__()
    one = xp.ones_like(time)
    return self.alpha(one), self.variance(one)

  def marginal(self, time: Times) -> Marginal:
    """q(zt | z0, z1): a = alpha sigma_bar^2 / sigma_1^2, and so on (§1.1)."""
    alpha, done, to_go = self.alpha(time), self.variance(time), self.variance_to_go(time)
    alpha_1, total = self.ends(time)
    return Marginal(
      a=alpha * to_go / total,
      b=alpha / alpha_1 * done / total,
      c=alpha * sqrt(done * to_go / total),
    )

  def posterior(self, start: Times, end: Times) -> Posterior:
    """q(z_end | z_start, z0) for end < start; Markov, hence free of z1 (§1.1)."""
    ratio = divide(self.variance(end), self.variance(start))
    rest = divide(self.accumulated(end, start), self.variance(start))
    alpha = self.alpha(end)
    return Posterior(
      zs=alpha / self.alpha(start) * ratio,
      z0=alpha * rest,
      std=alpha * sqrt(self.variance(end) * rest),
    )

  def rotation(self, time: Times) -> Rotation:
    """The aligned state (zt - b z1) / norm = cos z0 + sin noise (§1.3), regular at both ends."""
    alpha, done, to_go = self.alpha(time), self.variance(time), self.variance_to_go(time)
    _, total = self.ends(time)
    square = to_go + total * done  # (norm sigma_1^2 / (alpha sigma_bar))^2, positive everywhere
    return Rotation(
      cos=sqrt(to_go / square),
      sin=sqrt(total * done / square),
      norm=alpha * sqrt(to_go * square) / total,
      gain=total / (alpha * square),
    )

  def log_snr(self, time: Times) -> Times:
    """ln(a^2 / c^2) = ln sigma_bar^2 - ln sigma^2 - ln sigma_1^2: the drift cancels (§1.1).

    Its limits at times 0 and 1 are infinite; here they are clipped to finite values beyond the
    range of any diffusion (44 at time 0 in float32).
    """
    xp = time.__array_namespace__()
    # Less than the variance of any time but 0. Its square, the smallest normal number, would do
    # but for the gradient, which the compiler turns into 0 / 0.
    floor = xp.full_like(time, float(xp.finfo(time.dtype).tiny) ** 0.5)
    done = xp.maximum(self.variance(time), floor)
    to_go = xp.maximum(self.variance_to_go(time), floor)
    return xp.log(to_go) - xp.log(done) - xp.log(self.ends(time)[1])

  def time_of_log_snr(self, log_snr: Times) -> Times:
    """Inverse of `log_snr`: sigma^2 / sigma_1^2 is a logistic function of it (§1.1)."""
    xp = log_snr.__array_namespace__()
    _, total = self.ends(log_snr)
    # Of the two ways to write a logistic, the one whose exponential cannot overflow.
    odds = log_snr + xp.log(total)
    small = xp.exp(-xp.abs(odds))
    fraction = xp.where(odds > 0, small / (1 + small), 1 / (1 + small))
    return self.time_of_variance(fraction * total)

  def reverse_drift(self, time: Times) -> Drift:
    """Drift of the reverse SDE: f zt + g^2 (zt - alpha z0) / (alpha sigma)^2 (§1.1)."""
    alpha, done, g2 = self.alpha(time), self.variance(time), self.diffusion(time)
    push = divide(g2, alpha**2 * done)
    return Drift(zt=self.drift(time) + push, z0=-alpha * push, z1=0 * push)

  def flow(self, time: Times) -> Drift:
    """Drift of the probability flow: the mean of the reverse drift and of the pinned forward one.

    f zt + g^2 / (2 alpha^2) [(zt - alpha z0) / sigma^2 - (zt - alpha z1 / alpha_1) / sigma_bar^2];
    equal to f zt - g^2 (s / 2 - h) of §1.1, without its difference of two infinities.
    """
    alpha, g2 = self.alpha(time), self.diffusion(time)
    alpha_1, _ = self.ends(time)
    push = divide(0.5 * g2, alpha**2 * self.variance(time))
    pull = divide(0.5 * g2, alpha**2 * self.variance_to_go(time))
    return Drift(self.drift(time) + push - pull, -alpha * push, alpha / alpha_1 * pull)

  def start(
    self,
    z1: Clips,
    time: PerClip,
    noise: Clips,
  ) -> Clips:
    """State next to time 1 before z0 is known: the marginal with z1 in place of z0 (§3.3 B)."""
    return sample_marginal(self, z1, z1, time, noise)


class _Rate(NamedTuple):
  """beta(t) = beta_min + (beta_max - beta_min) t, its integral and the inverse of that (§1.1)."""

  beta_min: float = 0.01
  beta_max: float = 50.0

  def rate(self, time: Times) -> Times:
    return self.beta_min + (self.beta_max - self.beta_min) * time

  def integral(self, start: Times, end: Times) -> Times:
    # Factored: integral(0, end) - integral(0, start) loses every digit when the two are close.
    slope = self.beta_max - self.beta_min
    return (end - start) * (self.beta_min + 0.5 * slope * (start + end))

  def time_of_integral(self, integral: Times) -> Times:
    # Of the two forms of the quadratic's root, the one without a difference.
    slope = self.beta_max - self.beta_min
    return divide(2 * integral, self.beta_min + sqrt(self.beta_min**2 + 2 * slope * integral))


class Gmax(_Rate, Bridge):
  """bridge-gmax: no drift, g(t)^2 = beta(t) linear in t (§1.2)."""

  __slots__ = ()

  def alpha(self, time: Times) -> Times:
    return 0 * time + 1

  def drift(self, time: Times) -> Times:
    return 0 * time

  def diffusion(self, time: Times) -> Times:
    return self.rate(time)

  def accumulated(self, start: Times, end: Times) -> Times:
    return self.integral(start, end)

  def time_of_variance(self, variance: Times) -> Times:
    return self.time_of_integral(variance)


class VP(_Rate, Bridge):
  """Bridge of the variance-preserving reference: f = -beta / 2, g^2 = beta linear in t (§1.1)."""

  __slots__ = ()

  def __new__(cls, beta_min: float | Array = 0.01, beta_max: float | Array = 20.0):
    return super().__new__(cls, beta_min, beta_max)

  def alpha(self, time: Times) -> Times:
    xp = time.__array_namespace__()
    return xp.exp(-0.5 * self.integral(xp.zeros_like(time), time))

  def drift(self, time: Times) -> Times:
    return -0.5 * self.rate(time)

  def diffusion(self, time: Times) -> Times:
    return self.rate(time)

  def accumulated(self, start: Times, end: Times) -> Times:
    xp = start.__array_namespace__()
    growth = xp.exp(self.integral(xp.zeros_like(start), start))
    return growth * xp.expm1(self.integral(start, end))

  def time_of_variance(self, variance: Times) -> Times:
    xp = variance.__array_namespace__()
    return self.time_of_integral(xp.log1p(variance))


def constant(variance: float = 1.0) -> Gmax:
  """Brownian bridge: no drift, g^2 constant; `variance` is sigma_1^2 (§1.1)."""
  return Gmax(variance, variance)


def ve(sigma_max: float = 80.0) -> Gmax:
  """Variance-exploding reference, sigma = sigma_max t (§1.1): DBIM's g^2 = 2 t over [0, 80]."""
  return Gmax(0.0, 2 * sigma_max**2)


def vp(beta_min: float = 0.1, beta_d: float = 2.0) -> VP:
  """Variance-preserving reference under DBIM's names: beta(t) = beta_min + beta_d t (§1.1)."""
  return VP(beta_min, beta_min + beta_d)


def per_clip(x: PerClip, like: Clips) -> Float[jax.Array | np.ndarray, "b *ones"]:
  """One number per clip, shaped to multiply `like`."""
  return x.reshape(x.shape + (1,) * (like.ndim - 1))


def sample_marginal(
  process: Process,
  z0: Clips,
  z1: Clips,
  time: PerClip,
  noise: Clips,
) -> Clips:
  """Draws zt ~ q(zt | z0, z1) (§1.1)."""
  a, b, c = (per_clip(x, z0) for x in process.marginal(time))
  return a * z0 + b * z1 + c * noise
