"""What devices can do at best, from the vendors' data sheets and, for a TPU's memory, from its compiler."""

from typing import NamedTuple

import jax

GIB = 2**30


# A TPU splits an operand of float32 into one, two or three of bf16, and leaves out the smallest of their products.
BF16 = ((1, 1, 1), (1, 2, 3), (1, 3, 6))


def tf32(exact: float) -> tuple[tuple[float, float, float], ...]:
  """The `passes` of a GPU: TF32 takes twice as long as bf16, and precision highest `exact` times.

  Precision highest runs without tensor cores.
  """
  return ((1, 1, 1), (2, 2, exact), (2, 2, exact))


class Chip(NamedTuple):
  """flops: dense bf16 FLOP/s. bandwidth: bytes/s of its memory. memory: bytes that a program may take.

  links: bytes/s that other chips can send to it. clock: cycles/s, of TPUs. passes: time of a matmul
  in multiples of one in bf16, by how many of its operands are float32 (0 to 2), then by its
  precision (default, high, highest).
  """

  flops: float
  bandwidth: float
  memory: float
  links: float
  clock: float = 0.0
  passes: tuple[tuple[float, float, float], ...] = BF16


# By how a device names its kind; the longer name first where one begins with another.
CHIPS = {
  "TPU v4": Chip(275e12, 1228e9, 30.5 * GIB, 300e9, 1.05e9),
  "TPU v5 lite": Chip(197e12, 819e9, 15.75 * GIB, 200e9, 1.5e9),
  "TPU v5": Chip(459e12, 2765e9, 95.73 * GIB, 600e9, 1.75e9),
  "TPU v6 lite": Chip(918e12, 1640e9, 31.24 * GIB, 400e9, 1.75e9),
  "NVIDIA A100": Chip(312e12, 2039e9, 79 * GIB, 300e9, passes=tf32(312 / 19.5)),
  "NVIDIA H100": Chip(989e12, 3350e9, 79 * GIB, 450e9, passes=tf32(989 / 67)),
  "NVIDIA H200": Chip(989e12, 4800e9, 139 * GIB, 450e9, passes=tf32(989 / 67)),
}


def chip(device: jax.Device) -> Chip | None:
  """The figures of a device's kind; None if it is not in `CHIPS`."""
  return next((x for kind, x in CHIPS.items() if device.device_kind.startswith(kind)), None)


def memory(device: jax.Device) -> float | None:
  """Bytes that a program may take on a device of this machine; None where nobody says."""
  known = chip(device)
  if known is not None:
    return known.memory
  return (device.memory_stats() or {}).get("bytes_limit")
