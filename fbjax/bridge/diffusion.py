"""Diffusions that pretrained networks were trained on: x = signal z0 + noise eps at times 0..K-1.

A pretrained model knows its process at integers only, as a table. Between two integers the
log-SNR is taken linear, so it has an exact inverse: the network time at which the diffusion is as
noisy as a given bridge state. Tables are float64 and made on the host (§2.1).

A `Diffusion` is a `process.Process` with b = 0: targets, recoveries and first-order samplers of
bridges serve the diffusion baseline unchanged.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fbjax.bridge import process

Times = process.Times


class Diffusion(NamedTuple):
  """signal_k = sqrt(abar_k) rescale_k and noise_k = sqrt(1 - abar_k) at k = 0..K-1."""

  signal: Float[np.ndarray, "k"]
  noise: Float[np.ndarray, "k"]
  rescale: Float[np.ndarray, "k"]

  @property
  def last(self) -> int:
    """Noisiest network time, K - 1."""
    return len(self.signal) - 1

  @property
  def log_snrs(self) -> Float[np.ndarray, "k"]:
    """ln(signal^2 / noise^2), strictly falling and finite (§2.2).

    With zero terminal SNR the last entry would be -inf: the last signal is taken as 1e-4 of the one
    before, which moves no mean by more than 1e-6.
    """
    signal = np.array(self.signal, np.float64)
    signal[-1] = max(signal[-1], 1e-4 * signal[-2])
    return 2 * (np.log(signal) - np.log(self.noise))

  def log_snr(self, time: Times) -> Times:
    """ln(a^2 / c^2) at network time in [0, K - 1], linear between integers (§2.2)."""
    return interpolate(time, np.arange(self.last + 1.0), self.log_snrs)

  def time_of_log_snr(self, log_snr: Times) -> Times:
    """Inverse of `log_snr`: network time with this log-SNR, clamped to [0, K - 1] (§2.2)."""
    return interpolate(-log_snr, -self.log_snrs, np.arange(self.last + 1.0))

  def met(self, log_snr: Times) -> Bool[np.ndarray, "*t"]:
    """Whether this log-SNR is in the diffusion's range (§2.2)."""
    table = self.log_snrs
    lowest = table[-1] if self.signal[-1] > 0 else -np.inf
    return (log_snr <= table[0]) & (log_snr >= lowest)

  def rescale_at(self, time: Times) -> Times:
    """Factor s of dynamic rescale: the diffused data are s z0 (§1.4)."""
    return interpolate(time, np.arange(self.last + 1.0), self.rescale)

  def marginal(self, time: Times) -> process.Marginal:
    """q(x | z0) = N(a z0, c^2): a = sqrt(abar) s, c = sqrt(1 - abar), b = 0 (§1.4)."""
    xp = time.__array_namespace__()
    scale = self.rescale_at(time)
    log_odds = self.log_snr(time) - 2 * xp.log(scale)  # ln(abar / (1 - abar))
    # logaddexp keeps the relative accuracy of the small one of abar and 1 - abar.
    a = scale * xp.exp(-0.5 * xp.logaddexp(xp.zeros_like(time), -log_odds))
    c = xp.exp(-0.5 * xp.logaddexp(xp.zeros_like(time), log_odds))
    return process.Marginal(a, xp.zeros_like(time), c)

  def rotation(self, time: Times) -> process.Rotation:
    """x = norm (cos z0 + sin eps); norm is 1 without dynamic rescale (§1.4)."""
    xp = time.__array_namespace__()
    a, _, c = self.marginal(time)
    norm = xp.sqrt(a**2 + c**2)
    return process.Rotation(a / norm, c / norm, norm, a / norm**2)

  def posterior(self, start: Times, end: Times) -> process.Posterior:
    """q(x_end | x_start, z0) for end < start, the DDPM posterior (§3.6)."""
    xp = start.__array_namespace__()
    a_start, _, c_start = self.marginal(start)
    a_end, _, c_end = self.marginal(end)
    log_ratio = self.log_snr(start) - self.log_snr(end)  # ln of sigma_end^2 / sigma_start^2
    rest = -xp.expm1(log_ratio)
    return process.Posterior(
      zs=a_end / a_start * xp.exp(log_ratio),
      z0=a_end * rest,
      std=c_end * xp.sqrt(rest),
    )

  def start(
    self,
    z1: process.Clips,
    time: process.PerClip,
    noise: process.Clips,
  ) -> process.Clips:
    """State that sampling starts from: `noise` itself; z1 and `time` are not used (§3.6)."""
    return noise


def interpolate(x: Times, at: np.ndarray, values: np.ndarray) -> Times:
  """Piecewise linear through (at, values), `at` rising; constant beyond; in the precision of x."""
  xp = x.__array_namespace__()
  at, values = (xp.asarray(array, dtype=x.dtype) for array in (at, values))
  return xp.asarray(xp.interp(x, at, values), dtype=x.dtype)


def of_alphas_cumprod(alphas_cumprod: Float[np.ndarray, "k"]) -> Diffusion:
  """Diffusion with abar_k given (§2.1)."""
  signal = np.sqrt(np.asarray(alphas_cumprod, np.float64))
  return Diffusion(signal, np.sqrt(1 - signal**2), np.ones_like(signal))


def of_betas(betas: Float[np.ndarray, "k"]) -> Diffusion:
  """Diffusion with abar_k = prod (1 - beta_j) (§2.1); 1 - abar is free of cancellation."""
  log_abar = np.cumsum(np.log1p(-np.asarray(betas, np.float64)))
  signal = np.exp(0.5 * log_abar)
  return Diffusion(signal, np.sqrt(-np.expm1(log_abar)), np.ones_like(signal))


def linear(steps: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02) -> Diffusion:
  """Linear beta schedule: DDPM, Latte (§2.1)."""
  return of_betas(np.linspace(beta_first, beta_last, steps))


def scaled_linear(
  steps: int = 1000, beta_first: float = 0.00085, beta_last: float = 0.012
) -> Diffusion:
  """Schedule linear in sqrt(beta): Stable Diffusion, VideoCrafter, CogVideoX (§2.1)."""
  return of_betas(np.linspace(beta_first**0.5, beta_last**0.5, steps) ** 2)


def cosine(steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> Diffusion:
  """Cosine schedule (Nichol and Dhariwal, arXiv:2102.09672, eq. 17), betas at most `beta_max`."""
  time = np.linspace(0, 1, steps + 1)
  abar = np.cos((time + offset) / (1 + offset) * np.pi / 2) ** 2
  return of_betas(np.minimum(1 - abar[1:] / abar[:-1], beta_max))


def shift_snr(diffusion: Diffusion, shift: float) -> Diffusion:
  """Divides the SNR by `shift` at every time: abar / (shift + (1 - shift) abar) (§2.1)."""
  norm = np.sqrt(diffusion.signal**2 + shift * diffusion.noise**2)
  return diffusion._replace(
    signal=diffusion.signal / norm, noise=np.sqrt(shift) * diffusion.noise / norm
  )


def zero_terminal_snr(diffusion: Diffusion) -> Diffusion:
  """Moves sqrt(abar) so that the last is 0 and the first stays (arXiv:2305.08891, alg. 1)."""
  first, last = diffusion.signal[0], diffusion.signal[-1]
  signal = (diffusion.signal - last) * first / (first - last)
  return diffusion._replace(signal=signal, noise=np.sqrt((1 - signal) * (1 + signal)))


def dynamic_rescale(diffusion: Diffusion, base: float = 0.7, turning: int = 400) -> Diffusion:
  """Data shrunk linearly to `base` over the first `turning` times (DynamiCrafter, §1.4).

  Applied last: the other transforms expect signal^2 + noise^2 = 1.
  """
  rescale = np.full(turning + len(diffusion.signal), base)
  rescale[:turning] = np.linspace(1, base, turning)
  rescale = rescale[: len(diffusion.signal)]
  return diffusion._replace(signal=diffusion.signal * rescale, rescale=rescale)


def videocrafter() -> Diffusion:
  """The schedule VideoCrafter1 was trained on (§2.1)."""
  return scaled_linear()


def cogvideox(shift: float = 3.0) -> Diffusion:
  """The schedule CogVideoX-2B was trained on: SNR shift, then zero terminal SNR (§2.1)."""
  return zero_terminal_snr(shift_snr(scaled_linear(), shift))
