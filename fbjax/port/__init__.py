"""Checkpoints of the published PyTorch networks to params and back, without torch."""

from fbjax.port.convert import fill, to_flax, to_torch, unfill
from fbjax.port.table import arguments, locate, recognize

__all__ = ["arguments", "fill", "locate", "recognize", "to_flax", "to_torch", "unfill"]
