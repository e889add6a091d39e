"""--mode=plan: compiles a config ahead of time, for devices that need not be here, and estimates a step.

config, topology -> training step and sampler, compiled for shapes alone -> memory, FLOPs, collectives, seconds

A TPU's compiler runs on any x86-64 Linux with the package libtpu; it refuses a program that does not fit into the
memory of a chip, so one that it compiles fits. It may abort the process that it runs in, and prints a trace of it at
a SIGTERM: it is only ever loaded in processes of their own.
"""

import logging
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from fbjax import (
  build,
  checks,
  compiled,
  errors,
  flops,
  hardware,
  places,
  programs,
  roofline,
  sharding,
)
from fbjax.modes import plan_report, plan_search
from fbjax.train import loop

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


class Machine(NamedTuple):
  """Devices planned for. chip: their kind's figures. memory: bytes of each. None where unknown."""

  devices: int
  kind: str
  chip: hardware.Chip | None
  memory: float | None


def plan(
  config: dict[str, Any],
  *,
  topology: str | None = None,
  price: float | None = None,
  quick: bool = False,
  search: bool = False,
  out: str | None = None,
) -> list[dict[str, Any]]:
  """Prints what the training step and the sampler of a config need, and returns it: a row for each program.

  Args:
    config: whose mesh, batch and sizes are planned.
    topology: of TPUs, such as v5e:4x4 or v5p:2x2x4; None is the devices of this machine.
    price: of one chip for an hour, to tell what the whole training costs at the estimated time of a step.
    quick: compiles nothing: the memory of weights and optimizer, and FLOPs, in about a minute.
    search: compiles the step with other meshes, accumulation and remat, and tells the fastest that fits.
    out: a .json to keep the rows in.

  Raises:
    UserError: for a topology that is not known, or a mesh that does not make it; for a price or a search on
      devices of unknown speed or memory; when a search finds nothing.
  """
  if quick and search:
    raise errors.UserError("--search compiles, and --quick does not: leave one of them out")
  if topology is not None and not re.fullmatch(r"v\w+:\d+(x\d+)+", topology):
    raise errors.UserError(
      f"--topology={topology} is not a kind of TPU and its shape, such as v5e:4x4 or v5p:2x2x4"
    )
  if price is not None:
    checks.number("--price", price, least=0)
  run = here if topology is None else apart
  machine = run(look, topology) if search or price is not None else None
  if price is not None and machine.chip is None:
    raise unknown("--price", "speed", machine)
  if search and topology is None and machine.memory is None:
    raise unknown("--search", "memory", machine)
  if search:
    measure_step = lambda tried: run(measure, tried, topology, "train step")  # noqa: E731
    rows = searched(config, machine.devices, measure_step, price)
  else:
    rows = []
    for program in PROGRAMS:
      if quick:
        logger.info("Tracing the %s.", program)
      else:
        logger.info("Compiling the %s; this takes minutes for a large network.", program)
      rows.append(run(measure, config, topology, program, quick))
      print(plan_report.report(rows[-1], config, price), flush=True)
  if out:
    places.write_json(out, rows)
    logger.info("Wrote %s.", out)
  return rows


def unknown(flag: str, what: str, machine: Machine) -> errors.UserError:
  return errors.UserError(
    f"{flag} needs the {what} of a chip, which is not known of {machine.kind}: name TPUs to plan for, such as "
    "--topology=v5e:4x4"
  )


def searched(
  config: dict[str, Any],
  devices: int,
  measure_step: Callable[[dict[str, Any]], dict[str, Any]],
  price: float | None = None,
) -> list[dict[str, Any]]:
  """Prints the fastest way to compute a training step that fits, and returns a row for each that was tried."""
  logger.info(
    "Searching; each try compiles the train step, which takes minutes for a large network."
  )
  best, rows = plan_search.search(config, devices, measure_step)
  if not best:
    raise errors.UserError(
      f"nothing that was tried fits {devices} devices: take more of them, a smaller config.train.batch_size, or a "
      "cache (config.cache.path), which takes the encoders out of the step"
    )
  (row,) = [row for row in rows if row["changes"] == best]
  print(plan_report.report(row, config, price))
  print(
    "  with       ", " ".join(f"--config.{key}={value}" for key, value in best.items()), flush=True
  )
  return rows


def here(function: Callable[..., Any], *args: Any) -> Any:
  return function(*args)


def apart(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function in a new process with the environment variables of `ENVIRONMENT`.

  Raises:
    UserError: as the function; also when the compiler ends the process.
  """
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe(duplex=False)
  process = context.Process(target=_send, args=(theirs, function, *args), daemon=True)
  before = {name: os.environ.get(name) for name in ENVIRONMENT}
  os.environ.update(ENVIRONMENT)
  try:
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
      f"the compiler of TPUs ended with status {process.exitcode}: it may lack memory on this machine, or have "
      "a fault"
    ) from None
  process.join()
  if isinstance(found, Exception):
    raise found
  return found


def _send(theirs: connection.Connection, function: Callable[..., Any], *args: Any) -> None:
  # Asked to stop, the parent ends without a word to a compiler that would go on for minutes.
  threading.Thread(target=_end_with_parent, daemon=True).start()
  try:
    theirs.send(function(*args))
  except errors.UserError as error:
    theirs.send(errors.UserError(str(error)))


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def look(topology: str | None) -> Machine:
  """The number and figures of a TPU topology's devices; None is this machine."""
  devices = devices_of(topology)
  chip = hardware.chip(devices[0])
  memory = hardware.memory(devices[0]) if topology is None else chip and chip.memory
  return Machine(len(devices), devices[0].device_kind, chip, memory)


def measure(
  config: dict[str, Any], topology: str | None, program: str, quick: bool = False
) -> dict[str, Any]:
  """Compiles one of `PROGRAMS`, and reads off what it needs; `quick` only traces it.

  The row that comes back has FLOPs of all devices together; bytes, seconds and collectives of each. What follows
  from the speed or the memory of a chip is None where these are not known, as is whether it `fits`.

  Raises:
    UserError: as `devices_of`; for a mesh that the devices do not make, or that does not divide the batch.
  """
  build.set_precision(config)
  mesh = build.make_mesh(config, devices_of(topology))
  if program == "train step":
    batch = config["train"]
    loop.check_divides(batch["batch_size"], batch.get("accumulate", 1), mesh)
  devices, kind, chip, limit = look(topology)
  system = programs.make_system(config)
  traced = PROGRAMS[program](config, system, mesh)
  work = flops.of(traced.jaxpr)
  peak = chip and devices * chip.flops
  least = chip and flops.of(traced.jaxpr, chip.passes).total / peak
  row = {
    "program": program,
    "devices": devices,
    "kind": kind,
    "topology": topology,
    "mesh": {axis: n for axis, n in mesh.shape.items() if n > 1 or axis in sharding.CLIPS},
    "clips": config["train" if program == "train step" else "sampling"]["batch_size"],
    "parameters": programs.parameters(system),
    "model_flops": work.model,
    "recomputed_flops": work.recomputed,
    "total_flops": work.total,
    "peak_flops": peak,
    "limit_bytes": limit,
    "least_seconds": least,
  }
  if quick:
    training = program == "train step"
    return row | {"held_bytes": programs.held_bytes(config, system, mesh, training=training)}
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
    row |= {"seconds": seconds(done, chip, least)}
  row |= {"bytes": held._asdict() | {"total": held.total}}
  row["fits"] = fits(held.total, limit, topology)
  sent: dict[str, dict[str, int]] = {}
  for message in compiled.collectives(done):
    kind = sent.setdefault(message.kind, {"count": 0, "bytes": 0})
    kind["count"] += message.times
    kind["bytes"] += message.times * message.size
  return row | {"sent": sent}


def fits(held: int, limit: float | None, topology: str | None) -> bool | None:
  """Whether a compiled program fits into the memory of a device; None where nobody knows how much that is."""
  if limit is not None:
    return held <= limit
  return None if topology is None else True  # A TPU's compiler has not refused it.


def seconds(done: jax.stages.Compiled, chip: hardware.Chip, least: float) -> dict[str, float]:
  """Estimated seconds of a run of a program, by `roofline.of`.

  Args:
    done: the program.
    chip: of each device.
    least: seconds of all its FLOPs at the chip's peak; those in kernels, which the HLO does not
      show, are added at that rate.
  """
  took = roofline.of(done, chip)
  unseen = max(least - took.flops / chip.flops, 0.0)
  told = {"roofline": took.roofline + unseen, "messages": took.messages}
  return told if took.cycles is None else told | {"cycles": took.cycles + unseen}


def devices_of(topology: str | None) -> Sequence[jax.Device]:
  """Device descriptions of a TPU topology, to compile for; None gives this machine's devices.

  Raises:
    UserError: for a topology that the compiler does not know; without libtpu.
  """
  if topology is None:
    return jax.devices()
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
