"""The self-check itself: it must see a wrong alignment, and say what it saw."""

import sys

import numpy as np

from fbjax.bridge import alignment, check, diffusion, grids, process

TIMES = grids.time_of(np.arange(1000.0))


def test_it_sees_a_network_told_the_wrong_time(monkeypatch):
  d = diffusion.videocrafter()
  right = check.errors(process.Gmax(), d, TIMES)
  plain = alignment.net_time
  monkeypatch.setattr(alignment, "net_time", lambda *a, **k: np.clip(plain(*a, **k) - 5, 0, 999))
  wrong = check.errors(process.Gmax(), d, TIMES)
  met = right.met
  assert np.abs(right.snr[met]).max() < 1e-11
  assert np.abs(wrong.snr[met]).min() > 0.02 and np.abs(wrong.mean[met]).max() > 0.005


def test_it_sees_a_prior_left_in(monkeypatch):
  align = alignment.align

  def leaky(p, d, zt, z1, *rest):
    x, t_net = align(p, d, zt, 0.9 * z1, *rest)
    return x, t_net

  monkeypatch.setattr(alignment, "align", leaky)
  errors = check.errors(process.Gmax(), diffusion.videocrafter(), TIMES)
  assert np.abs(errors.prior).max() > 0.1


def test_it_finds_what_the_published_rule_misses():
  """5 of the 1000 indices lie above VideoCrafter's ratios and 53 below."""
  errors = check.errors(process.Gmax(), diffusion.videocrafter(), TIMES, "published")
  assert (~errors.met).sum() == 58
  inside = errors.met & (errors.t_net > 1)
  assert np.abs(errors.snr[inside]).max() < 2e-2
  assert np.abs(errors.snr[errors.met & (errors.t_net <= 1)]).max() > 0.5


def test_the_report_names_its_worst(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["check", "--diffusion", "cogvideox", "--rule", "exact"])
  check.main()
  out = capsys.readouterr().out
  assert "gmax aligned with cogvideox, rule exact" in out
  assert "in range: 991 of 1000 times" in out and "beyond: 9 of 1000 times" in out
