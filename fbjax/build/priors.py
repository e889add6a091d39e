"""Config keys that have no effect on a neural prior trained by itself, and must keep defaults."""

import functools
from collections.abc import Mapping

from fbjax import errors
from fbjax.bridge import grids, process
from fbjax.build import calls, tables
from fbjax.build.calls import Spec
from fbjax.systems import neural_prior

# Its network is told neither state nor time: its loss is regression, its sampler one evaluation,
# whatever the bridge in which they are written. A weight over time would be noise in the loss.
UNFELT = {
  "bridge": {"name": "gmax", "steps": grids.STEPS} | process.Gmax()._asdict(),
  "diffusion": {"name": "none"},
  "objective": {"predict": "z0", "shift": 1.0, "weight_like": None},
  "sampling": {"steps": 1},
  "sampling.sampler": {"name": "sde", "start": "noise"},
  "sampling.grid": {"name": "trailing"},
}


def check_unfelt(config: Spec) -> None:
  """Raises a UserError if a neural prior's config changes a key that has no effect on it."""
  system = calls.choose(tables.SYSTEMS, config["system"].get("name"), "system.name")
  if not issubclass(system, neural_prior.NeuralPrior):
    return
  for group, defaults in UNFELT.items():
    spec: Mapping = functools.reduce(lambda here, name: here[name], group.split("."), config)
    for key, default in defaults.items():
      if spec.get(key, default) != default:
        raise errors.UserError(
          f"config.{group}.{key} is {spec[key]!r}, but a neural prior makes its video in one evaluation, "
          f"told neither state nor time: set it to {default!r}"
        )
