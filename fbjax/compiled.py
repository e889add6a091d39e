"""What a compiled program does on each of its devices: work, memory, and what it sends to others."""

import math
import re
from typing import NamedTuple

import jax

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = re.compile(r"[a-z]+(\d+)")  # of f32, bf16, s8, f8e4m3fn; pred has no number


class Collective(NamedTuple):
  """A message among devices, once for each time the program comes by.

  kind: one of `KINDS`. size: bytes of the result on each device; of a tuple, of all its arrays.
  """

  kind: str
  size: int


def flops(program: jax.stages.Compiled) -> float:
  """Of one device; the body of a loop counts once."""
  return float((program.cost_analysis() or {}).get("flops", 0))


def collectives(program: jax.stages.Compiled) -> list[Collective]:
  """All messages of the program; those in a loop are there once."""
  found = []
  for line in program.as_text().splitlines():
    match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
    if match:
      shapes = re.findall(r"([a-z]\w*)\[([\d,]*)\]", match[1])
      # The result of an asynchronous one holds its operand too.
      shapes = shapes[len(shapes) // 2 :] if match[3] else shapes
      found.append(Collective(match[2], sum(size(dtype, dims) for dtype, dims in shapes)))
  return found


def size(dtype: str, dims: str) -> int:
  """Bytes of an array as HLO writes it, such as f32[2,3]."""
  bits = BITS.match(dtype)
  count = math.prod(int(n) for n in dims.split(",") if n)
  return count * (int(bits[1]) if bits else 8) // 8
