"""What a compiled program does on each of its devices: work, memory, and what it sends to others."""

import collections
import math
import re
from typing import NamedTuple

import jax

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = re.compile(r"[a-z]+(\d+)")  # of f32, bf16, s8, f8e4m3fn; pred has no number


class Collective(NamedTuple):
  """A message among devices.

  kind: one of `KINDS`. size: bytes of the result on each device; of a tuple, of all its arrays.
  times: how often it is sent, more than once in a loop.
  """

  kind: str
  size: int
  times: int = 1


class Memory(NamedTuple):
  """Bytes of one device.

  arguments: weights, optimizer and batch, those that the results take the place of included.
  temporaries: while it runs. results: what takes no argument's place. code: of the program.
  """

  arguments: int
  temporaries: int
  results: int
  code: int

  @property
  def total(self) -> int:
    return sum(self)


def flops(program: jax.stages.Compiled) -> float:
  """Of one device; the body of a loop counts once."""
  return float((program.cost_analysis() or {}).get("flops", 0))


def memory(program: jax.stages.Compiled) -> Memory:
  found = program.memory_analysis()
  return Memory(
    found.argument_size_in_bytes,
    found.temp_size_in_bytes,
    found.output_size_in_bytes - found.alias_size_in_bytes,
    found.generated_code_size_in_bytes,
  )


def collectives(program: jax.stages.Compiled) -> list[Collective]:
  """All messages of the program; those of a loop as often as it is known to run."""
  bodies = _bodies(program.as_text())
  found: list[Collective] = []
  for name, times in _runs(bodies).items():
    for line in bodies[name]:
      match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
      if match:
        shapes = re.findall(r"([a-z]\w*)\[([\d,]*)\]", match[1])
        # The result of an asynchronous one holds its operand too.
        shapes = shapes[len(shapes) // 2 :] if match[3] else shapes
        size = sum(_size(dtype, dims) for dtype, dims in shapes)
        found.append(Collective(match[2], size, times))
  return found


def _bodies(text: str) -> dict[str, list[str]]:
  """The lines of each computation of a module, by its name; the entry's comes under ""."""
  bodies: dict[str, list[str]] = {}
  name = None
  for line in text.splitlines():
    if match := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
      name = "" if match[1] else match[2]
      bodies[name] = []
    elif name is not None:
      bodies[name].append(line)
  return bodies


def _runs(bodies: dict[str, list[str]]) -> dict[str, int]:
  """How often each computation runs."""
  runs: dict[str, int] = collections.defaultdict(int)

  def visit(name: str, times: int) -> None:
    runs[name] += times
    for line in bodies[name]:
      known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
      turns = int(known[1]) if known else 1
      for kind, called in re.findall(r"(body|condition|calls|to_apply)=%?([\w.\-]+)", line):
        if called in bodies:
          visit(called, times * (turns if kind == "body" else 1))
      for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
        for called in branches.replace("%", "").split(", "):
          visit(called, times)

  visit("", 1)
  return runs


def _size(dtype: str, dims: str) -> int:
  """Bytes of an array as HLO writes it, such as f32[2,3]."""
  bits = BITS.match(dtype)
  count = math.prod(int(n) for n in dims.split(",") if n)
  return count * (int(bits[1]) if bits else 8) // 8
