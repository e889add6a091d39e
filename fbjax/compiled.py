"""FLOPs, memory and collectives of a compiled program on each of its devices, read off its HLO."""

import collections
import math
import re
from typing import NamedTuple

import jax

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = re.compile(r"[a-z]+(\d+)")  # of f32, bf16, s8, f8e4m3fn; pred has no number


class Collective(NamedTuple):
  """A collective of a compiled program.

  kind: one of `KINDS`. size: bytes of the result on each device; of a tuple, of all its arrays.
  times: how often it runs, more than once in a loop. group: devices that take part, 0 if not known.
  """

  kind: str
  size: int
  times: int = 1
  group: int = 0

  @property
  def received(self) -> float:
    """Bytes that a device gets from others, each time."""
    others = 1 - 1 / self.group if self.group else 1.0
    if self.kind == "all-reduce":  # scattered, then gathered
      return 2 * self.size * others
    if self.kind == "reduce-scatter":
      return self.size * max(self.group - 1, 1)
    return self.size * (1.0 if self.kind == "collective-permute" else others)


class Memory(NamedTuple):
  """Bytes of one device.

  arguments: weights, optimizer and batch, donated ones included. temporaries: buffers while it
  runs. results: outputs that alias no argument. code: of the program.
  """

  arguments: int
  temporaries: int
  results: int
  code: int

  @property
  def total(self) -> int:
    return sum(self)


def flops(program: jax.stages.Compiled) -> float:
  """XLA's own count of FLOPs on one device; the body of a loop counts once."""
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
  """The collectives of a program; those in a loop count as often as its trip count, if known."""
  return collectives_of(program.as_text())


def collectives_of(text: str) -> list[Collective]:
  """`collectives` of a compiled program's text."""
  known = bodies(text)
  found: list[Collective] = []
  for name, times in runs(known).items():
    for line in known[name]:
      match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
      if match:
        shapes = re.findall(r"([a-z]\w*)\[([\d,]*)\]", match[1])
        # The result of an asynchronous one, but of a sum, holds its operands before, and flags behind what arrives.
        if match[3] and match[2] != "all-reduce":
          arrays = [x for x in shapes if x != ("u32", "")]
          shapes = arrays[len(arrays) // 2 :]
        size = sum(_size(dtype, dims) for dtype, dims in shapes)
        found.append(Collective(match[2], size, times, _group(line)))
  return found


def _group(line: str) -> int:
  """How many devices take part in a message, in any of the ways that HLO writes it; 0 if it does not say."""
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
    return len(found[1].split(","))
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
    return int(found[1])
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'(\w+)'", found[2]))
  return 0


def bodies(text: str) -> dict[str, list[str]]:
  """The lines of each computation of an HLO module, by its name; the entry has the name ""."""
  found: dict[str, list[str]] = {}
  name = None
  for line in text.splitlines():
    if match := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
      name = "" if match[1] else match[2]
      found[name] = []
    elif name is not None:
      found[name].append(line)
  return found


def runs(bodies: dict[str, list[str]], *, fused: bool = True) -> dict[str, int]:
  """How often each computation runs, by name; `fused=False` leaves out the bodies of fusions."""
  found: dict[str, int] = collections.defaultdict(int)

  def visit(name: str, times: int) -> None:
    found[name] += times
    for line in bodies[name]:
      if not fused and not re.search(r" (while|call|conditional|async-start)\(", line):
        continue
      known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
      turns = int(known[1]) if known else 1
      for kind, called in re.findall(r"(body|condition|calls|to_apply)=%?([\w.\-]+)", line):
        if called in bodies:
          visit(called, times * (turns if kind == "body" else 1))
      for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
        for called in branches.replace("%", "").split(", "):
          visit(called, times)

  visit("", 1)
  return found


def bits(dtype: str) -> int:
  """Bits of one element of a dtype by its HLO name, such as 16 of bf16; 8 of pred."""
  found = BITS.match(dtype)
  return int(found[1]) if found else 8


def _size(dtype: str, dims: str) -> int:
  """Bytes of an array as HLO writes it, such as f32[2,3]."""
  return math.prod(int(n) for n in dims.split(",") if n) * bits(dtype) // 8
