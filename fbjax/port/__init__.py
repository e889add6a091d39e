"""Checkpoints of the published PyTorch networks to params and back, without torch."""

from fbjax.port.convert import fill, to_flax, to_torch
from fbjax.port.table import arguments, recognize

__all__ = ["arguments", "fill", "recognize", "to_flax", "to_torch"]
