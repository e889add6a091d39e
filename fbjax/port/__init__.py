"""Checkpoints of the published PyTorch networks to params and back, without torch."""

from fbjax.port.convert import to_flax, to_torch

__all__ = ["to_flax", "to_torch"]
