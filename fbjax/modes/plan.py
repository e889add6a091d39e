"""--mode=plan: compiles a config for devices that need not be here, and says whether it fits and how fast it can be.

config + topology -> training step and sampler, compiled without a weight -> memory, work, messages

A TPU's compiler runs on any x86-64 Linux with the package libtpu; it refuses what would not fit, so its word
on memory is final. Each program is compiled in a process of its own, since that compiler ends it on an error.
"""

import logging
import math
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from typing import Any

import jax
from jax.experimental import topologies

from fbjax import build, checks, compiled, errors, flops, hardware, places, programs, roofline
from fbjax.modes import plan_search

logger = logging.getLogger(__name__)

PROGRAMS = {"train step": programs.trace_step, "sampler": programs.trace_sampler}
# What libtpu wants to know, so that it looks for no TPU, and says nothing of not finding one.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# The default takes a TPU's compiler many times as long; memory comes out a little larger with this one.
QUICK = {"optimization_level": 1}


def plan(
  config: dict[str, Any],
  *,
  topology: str | None = None,
  price: float | None = None,
  quick: bool = False,
  search: bool = False,
  out: str | None = None,
) -> list[dict[str, Any]]:
  """Prints what the training step and the sampler of a config need, and returns it.

  Args:
    config: whose mesh, batch and sizes are planned.
    topology: of TPUs, such as v5e:4x4 or v5p:2x2x4; None is the devices of this machine.
    price: of one chip for an hour, to tell what the whole training costs at best.
    quick: compiles nothing: what the state takes and the products, in under a minute.
    search: tries ways to compute the step, and tells the fastest that fits.
    out: a .json to keep the figures in.

  Raises:
    UserError: for a topology that is not known, or a mesh that does not make it; when a search finds nothing.
  """
  if quick and search:
    raise errors.UserError("--search compiles, and --quick does not: leave one of them out")
  if topology is not None and not re.fullmatch(r"v\w+:\d+(x\d+)+", topology):
    raise errors.UserError(
      f"--topology={topology} is not a kind of TPU and its shape, such as v5e:4x4 or v5p:2x2x4"
    )
  if price is not None:
    checks.number("--price", price, least=0)
  measure_one = measure if topology is None else apart
  if search:
    rows = searched(config, topology, measure_one)
  else:
    rows = []
    for program in PROGRAMS:
      if quick:
        logger.info("Tracing the %s.", program)
      else:
        logger.info("Compiling the %s; this takes minutes for a large network.", program)
      rows.append(measure_one(config, topology, program, quick))
      print(told(rows[-1], config, price), flush=True)
  if out:
    places.write_json(out, rows)
    logger.info("Wrote %s.", out)
  return rows


def searched(
  config: dict[str, Any], topology: str | None, measure_one: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
  """Prints the fastest way to compute a training step that fits, and returns all that was tried."""
  devices = len(jax.devices() if topology is None else devices_of(topology))
  logger.info(
    "Searching; each try compiles the train step, which takes minutes for a large network."
  )
  best, rows = plan_search.search(
    config, devices, lambda tried: measure_one(tried, topology, "train step", False)
  )
  if not best:
    raise errors.UserError(
      f"nothing that was tried fits {devices} devices: take more of them, a smaller config.train.batch_size, or a "
      "cache (config.cache.path), which takes the encoders out of the step"
    )
  (row,) = [row for row in rows if row["changes"] == best]
  print(told(row, plan_search.changed(config, best)))
  print(
    "  with       ", " ".join(f"--config.{key}={value}" for key, value in best.items()), flush=True
  )
  return rows


def apart(
  config: dict[str, Any], topology: str, program: str, quick: bool = False
) -> dict[str, Any]:
  """`measure` in a process of its own.

  Raises:
    UserError: as `measure`; where the compiler ends the process.
  """
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe(duplex=False)
  before = {name: os.environ.get(name) for name in ENVIRONMENT}
  os.environ.update(ENVIRONMENT)
  try:
    process = context.Process(
      target=_measure, args=(theirs, config, topology, program, quick), daemon=True
    )
    process.start()
  finally:
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})
  theirs.close()
  try:
    found = ours.recv()
  except EOFError:
    process.join()
    raise errors.UserError(
      f"the compiler of {topology} ended with status {process.exitcode} on the {program}: it may lack "
      "memory on this machine, or have a fault"
    ) from None
  process.join()
  if isinstance(found, Exception):
    raise found
  return found


def _measure(
  theirs: connection.Connection, config: dict[str, Any], topology: str, program: str, quick: bool
) -> None:
  # Asked to stop, the parent ends without a word to a compiler that would go on for minutes.
  threading.Thread(target=_end_with_parent, daemon=True).start()
  try:
    theirs.send(measure(config, topology, program, quick))
  except errors.UserError as error:
    theirs.send(errors.UserError(str(error)))


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def measure(
  config: dict[str, Any], topology: str | None, program: str, quick: bool = False
) -> dict[str, Any]:
  """Compiles one of `PROGRAMS`, and reads off what it does; `quick` only traces it."""
  build.set_precision(config)
  devices = jax.devices() if topology is None else devices_of(topology)
  mesh = build.make_mesh(config, devices)
  chip = hardware.chip(devices[0])
  traced = PROGRAMS[program](config, mesh)
  work = flops.of(traced.jaxpr)
  row = {
    "program": program,
    "devices": len(devices),
    "kind": devices[0].device_kind,
    "topology": topology,
    "mesh": dict(mesh.shape),
    "clips": config["train" if program == "train step" else "sampling"]["batch_size"],
    "parameters": programs.parameters(config),
    "model_flops": work.model,
    "recomputed_flops": work.recomputed,
    "total_flops": work.total,
    "limit_bytes": chip and chip.memory,
    "least_seconds": chip and work.total / len(devices) / chip.flops,
  }
  if quick:
    training = program == "train step"
    return row | {"held_bytes": programs.held_bytes(config, mesh, training=training)}
  began = time.perf_counter()
  try:
    done = traced.lower().compile(compiler_options=QUICK if topology else None)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return row | {"fits": False, "refused": refusal(str(error))}
  row["compile_seconds"] = time.perf_counter() - began
  held = compiled.memory(done)
  if chip:
    row |= {"seconds": seconds(done, chip, work.total / len(devices))}
  row |= {"bytes": held._asdict() | {"total": held.total}}
  row["fits"] = held.total <= chip.memory if chip else None
  sent: dict[str, dict[str, int]] = {}
  for message in compiled.collectives(done):
    kind = sent.setdefault(message.kind, {"count": 0, "bytes": 0})
    kind["count"] += message.times
    kind["bytes"] += message.times * message.size
  return row | {"sent": sent}


def seconds(done: jax.stages.Compiled, chip: hardware.Chip, work: float) -> dict[str, float]:
  """What a program of so many FLOPs a device takes, by `roofline.of`; kernels run at the peak of the chip."""
  took = roofline.of(done, chip)
  unseen = max(work - took.flops, 0.0) / chip.flops
  told = {"roofline": took.roofline + unseen, "messages": took.messages}
  return told if took.cycles is None else told | {"cycles": took.cycles + unseen}


def devices_of(topology: str) -> Sequence[jax.Device]:
  """The devices of TPUs that are not here.

  Raises:
    UserError: for a topology that the compiler does not know; without it.
  """
  # One device a chip, where a chip may also be two.
  options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
  except Exception as error:
    if "not installed" in str(error) or isinstance(error, ImportError):
      raise errors.UserError(
        f"--topology needs the compiler of TPUs: pip install 'jax[tpu]=={jax.__version__}'"
      ) from error
    raise errors.UserError(
      f"--topology={topology} is not one that the compiler knows ({str(error).splitlines()[0]}); such as "
      "v5e:4x4, v5p:2x2x4 or v6e:2x2"
    ) from error


def refusal(message: str) -> str:
  """The sentence of the compiler that says how much memory is missing."""
  lines = [
    line.strip() for line in message.splitlines() if "Used" in line or "exceed" in line.lower()
  ]
  return (lines or message.splitlines())[0]


def told(row: Mapping[str, Any], config: Mapping[str, Any], price: float | None = None) -> str:
  """A plan, to be read."""
  mesh = " x ".join(f"{name} {n}" for name, n in row["mesh"].items())
  where = f"{row['topology']}, " if row["topology"] else ""
  lines = [
    f"{row['program']} on {where}{row['devices']} x {row['kind']}, mesh {mesh}, {row['clips']} clips"
  ]

  def line(name: str, text: str) -> None:
    lines.append(f"  {name:11} {text}")

  trained, frozen = row["parameters"]["trained"], row["parameters"]["frozen"]
  line("parameters", f"{trained:,} trained, {frozen:,} frozen")
  again = row["recomputed_flops"] / max(row["model_flops"], 1)
  line(
    "work",
    f"{scaled(row['model_flops'], 1000)}FLOP, and {again:.0%} of it once more to save memory",
  )
  limit = row["limit_bytes"]
  if "held_bytes" in row:
    against = f" of {scaled(limit)}B" if limit else ""
    line(
      "memory",
      f"{scaled(row['held_bytes'])}B a device{against} for weights and state alone; what a run needs "
      "on top, only compiling tells",
    )
    if row["least_seconds"]:
      line("at best", f"{timed(row, row['least_seconds'])}: products alone, at the peak of bf16")
    return "\n".join(lines)
  if "bytes" not in row:
    line("memory", f"does not fit: {row['refused']}")
    return "\n".join(lines)
  held = row["bytes"]
  parts = ", ".join(f"{name} {scaled(n)}B" for name, n in held.items() if name != "total")
  against = ""
  if limit:
    left = limit - held["total"]
    fit = f"fits, {scaled(left)}B left" if left >= 0 else f"does not fit by {scaled(-left)}B"
    against = f" of {scaled(limit)}B: {fit}"
  line("memory", f"{scaled(held['total'])}B a device{against} ({parts})")
  sent = [f"{kind} {x['count']} x, {scaled(x['bytes'])}B" for kind, x in row["sent"].items()]
  line("sent", f"{'; '.join(sent) or 'nothing'} (what arrives at a device)")
  if row["least_seconds"]:
    line("at best", f"{timed(row, row['least_seconds'])}: products alone, at the peak of bf16")
    took = row["seconds"]
    line(
      "roofline",
      f"{timed(row, took['roofline'])}: products or memory traffic, whichever is longer, of one instruction "
      "after the other",
    )
    if "cycles" in took:
      line(
        "cycles",
        f"{timed(row, took['cycles'])}: by the compiler's own estimates, which are pessimistic",
      )
    line(
      "messages", f"{took['messages']:.3g} s at the speed of the links, where no work hides them"
    )
    if price is not None and row["program"] == "train step":
      hours = config["train"]["steps"] * took["roofline"] / 3600
      line(
        "price",
        f"{hours * row['devices'] * price:,.0f} for {config['train']['steps']:,} steps at the roofline",
      )
  line("compiled", f"in {row['compile_seconds']:.0f} s")
  return "\n".join(lines)


def timed(row: Mapping[str, Any], took: float) -> str:
  """A time, the rate that follows, and the share of the peak that is the mathematics' own work."""
  mfu = row["model_flops"] / row["total_flops"] * row["least_seconds"] / took
  return f"{took:.3g} s, {row['clips'] / took:.3g} clips/s, MFU {mfu:.0%}"


def scaled(x: float, step: int = 1024) -> str:
  """Three digits and a unit's prefix: `1.38 Gi`, or in steps of 1000 `1.38 T`."""
  prefixes = ("", "K", "M", "G", "T", "P")
  power = min(int(math.log(max(x, 1), step)), len(prefixes) - 1)
  return f"{x / step**power:.3g} {prefixes[power]}{'i' if step == 1024 and power else ''}"
