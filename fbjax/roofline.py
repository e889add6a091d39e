"""A roofline estimate of a compiled program, from FLOPs and memory traffic of each HLO instruction.

An instruction takes as long as its FLOPs at the chip's peak, or as its bytes at the bandwidth of
the chip's main memory, whichever is longer; traffic of on-chip memory is free. That is optimistic.
A TPU's compiler estimates cycles of its own for each, which is pessimistic. Collectives come on top
of either, at the bandwidth of the links between chips, unless they overlap with work.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax

from fbjax import compiled, flops, hardware

# Instructions that do nothing by themselves, and those that stand for the program that they run.
FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
  "after-all", "partition-id", "replica-id", "iota", "opt-barrier",
}  # fmt: skip
PARTLY_READ = {"dynamic-slice", "slice", "gather"}


class Seconds(NamedTuple):
  """Estimates of one run of a program, of each device; the first three in seconds.

  roofline: FLOPs or memory traffic, one instruction after the other. cycles: by the compiler's own
  estimates, None where it makes none. messages: collectives at the bandwidth of the links.
  flops: of matmuls and convolutions in the HLO, as `flops.of` counts them for the chip. bytes: to
  and from memory.
  """

  roofline: float
  cycles: float | None
  messages: float
  flops: float
  bytes: float


class Instruction(NamedTuple):
  name: str
  shapes: list[tuple[str, tuple[int, ...], bool]]  # dtype, dimensions, whether on the chip
  kind: str
  operands: list[str]
  line: str


def of(program: jax.stages.Compiled, chip: hardware.Chip) -> Seconds:
  """What a program takes on a chip at least."""
  return of_text(program.as_text(), chip)


def of_text(text: str, chip: hardware.Chip) -> Seconds:
  """`of` a compiled program's text."""
  bodies = compiled.bodies(text)
  parsed = {name: parse(lines) for name, lines in bodies.items()}
  roofline = work = traffic = cycles = 0.0
  for name, times in compiled.runs(bodies, fused=False).items():
    for instruction in parsed[name].values():
      if instruction.kind in FREE or instruction.kind.startswith(compiled.KINDS):
        continue
      products = _flops(instruction, parsed[name], parsed, chip.passes)
      moved = _bytes(instruction, parsed[name], parsed)
      roofline += times * max(products / chip.flops, moved / chip.bandwidth)
      work += times * products
      traffic += times * moved
      found = re.search(r'"estimated_cycles":"(\d+)"', instruction.line)
      cycles += times * (int(found[1]) if found else 0)
  messages = sum(m.times * m.received for m in compiled.collectives_of(text)) / chip.links
  return Seconds(roofline, cycles / chip.clock if cycles else None, messages, work, traffic)


def parse(lines: Iterable[str]) -> dict[str, Instruction]:
  """The instructions of one computation, by name."""
  found = {}
  for line in lines:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)", line)
    if match:
      name, shapes, kind, rest = match.groups()
      # Operands end where the parenthesis closes; shapes within them have none.
      operands = re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])
      found[name] = Instruction(name, _shapes(shapes), kind, operands, line)
  return found


def _shapes(text: str) -> list[tuple[str, tuple[int, ...], bool]]:
  """Arrays of a result, such as `(bf16[4,320]{1,0:T(8,128)S(1)}, f32[])`."""
  arrays = re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", text)
  return [
    (dtype, tuple(int(n) for n in dims.split(",") if n), bool(re.search(r"S\([1-9]", layout)))
    for dtype, dims, layout in arrays
  ]


def _size(shapes: Iterable[tuple[str, tuple[int, ...], bool]]) -> float:
  """Bytes in the memory of the chip."""
  return sum(
    compiled.bits(dtype) / 8 * math.prod(dims) for dtype, dims, inside in shapes if not inside
  )


def _bytes(
  instruction: Instruction,
  around: Mapping[str, Instruction],
  parsed: Mapping[str, Mapping[str, Instruction]],
) -> float:
  called = re.search(r"calls=%?([\w.\-]+)", instruction.line)
  inside = parsed.get(called[1]) if called else None
  if instruction.kind.endswith("-done"):  # counted at its start
    return 0.0
  if inside is None:
    if instruction.kind in PARTLY_READ:
      return 2 * _size(instruction.shapes)
    if instruction.kind == "dynamic-update-slice":
      return 2 * _operand(instruction, 1, around)
    read = sum(_operand(instruction, i, around) for i in range(len(instruction.operands)))
    if instruction.kind.endswith("-start"):  # whose result holds its operand and a flag too
      return 2 * read
    return read + _size(instruction.shapes)
  users = collections.defaultdict(list)
  for other in inside.values():
    for operand in other.operands:
      users[operand].append(other)
  read = 0.0
  for other in inside.values():
    place = re.search(r"parameter\((\d+)\)", other.line) if other.kind == "parameter" else None
    if place is None or int(place[1]) >= len(instruction.operands):
      continue
    whole = _operand(instruction, int(place[1]), around)
    known = users[other.name]
    if known and all(user.kind in PARTLY_READ for user in known):
      whole = min(whole, sum(_size(user.shapes) for user in known))
    elif known and all(
      user.kind == "dynamic-update-slice" and user.operands[0] == other.name for user in known
    ):
      whole = 0.0  # written into, where it lies
    read += whole
  written = _size(instruction.shapes)
  for other in inside.values():
    if other.kind == "dynamic-update-slice":
      own = _size(other.shapes)
      if own <= written:
        written += _operand(other, 1, inside) - own
  return read + max(written, 0.0)


def _operand(instruction: Instruction, i: int, around: Mapping[str, Instruction]) -> float:
  source = around.get(instruction.operands[i])
  return _size(source.shapes) if source else 0.0


def _flops(
  instruction: Instruction,
  around: Mapping[str, Instruction],
  parsed: Mapping[str, Mapping[str, Instruction]],
  passes: flops.Passes,
) -> float:
  """Of products and convolutions, its own or fused into it."""
  if instruction.kind in COUNTED:
    return COUNTED[instruction.kind](instruction, around) * _times(instruction, around, passes)
  if instruction.kind == "custom-call":
    told = re.search(r'"flops":"?(\d+)', instruction.line)
    return float(told[1]) if told else 0.0
  called = re.search(r"calls=%?([\w.\-]+)", instruction.line)
  inside = parsed.get(called[1], {}) if called else {}
  return sum(_flops(other, inside, parsed, passes) for other in inside.values())


def _times(
  instruction: Instruction, around: Mapping[str, Instruction], passes: flops.Passes
) -> float:
  dtypes = [around[name].shapes[0][0] for name in instruction.operands[:2]]
  found = re.search(r"operand_precision=\{([\w,]+)\}", instruction.line)
  names = found[1].split(",") if found else []
  known = [getattr(jax.lax.Precision, name.upper(), jax.lax.Precision.DEFAULT) for name in names]
  return flops.times(dtypes, known, passes)


def _dot(instruction: Instruction, around: Mapping[str, Instruction]) -> float:
  lhs = around[instruction.operands[0]].shapes[0][1]
  contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.line)
  over = math.prod(lhs[int(i)] for i in contracted[1].split(",") if i) if contracted else 1
  return 2.0 * math.prod(instruction.shapes[0][1]) * over


def _convolution(instruction: Instruction, around: Mapping[str, Instruction]) -> float:
  lhs, rhs = (around[name].shapes[0][1] for name in instruction.operands[:2])
  out = instruction.shapes[0][1]
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.line)
  assert labels, instruction.line
  left, right, result = labels.groups()
  window = dict(re.findall(r"(\w+)=(\S+)", (_window(instruction.line))))
  n = sum(letter.isdigit() for letter in left)

  def of(name: str, default: str) -> list[str]:
    return window[name].split("x") if name in window else [default] * n

  pairs = 1.0
  for i in range(n):
    k = rhs[right.index(str(i))]
    pairs *= flops.pairs(
      lhs[left.index(str(i))],
      k,
      out[result.index(str(i))],
      stride=int(of("stride", "1")[i]),
      low=int(of("pad", "0_0")[i].split("_")[0]),
      spread=int(of("lhs_dilate", "1")[i]),
      reach=int(of("rhs_dilate", "1")[i]),
    )
  return 2.0 * out[result.index("b")] * out[result.index("f")] * rhs[right.index("i")] * pairs


def _window(line: str) -> str:
  found = re.search(r"window=\{([^}]*)\}", line)
  return found[1] if found else ""


COUNTED = {"dot": _dot, "convolution": _convolution}
