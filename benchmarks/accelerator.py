"""Speed of the full-size networks on one GPU or TPU: random weights, bf16 products, no files needed.

  python -m benchmarks.accelerator --minutes=9 --out=accelerator.json

Prints one line of JSON for each figure the moment it is measured, in about this order:

  peak       TFLOP/s of a bf16 product of two 8192 x 8192 matrices, GB/s of a copy (read and written)
  *_sampler_8, *_sampler_50
             seconds a clip of the config's sampler and guidance at so many steps, from latents to
             latents; `*_decode` is what comes behind it
  *_train    milliseconds of a training step from latents, as configured, and its ten longest kernels;
             `*_encode` is what comes before it

with seconds of compilation, memory and MFU: model FLOPs (those of the products and convolutions; never
of recomputation) over time and measured peak. `rounds_ms` tells the spread; the fastest round counts.

Every measurement is a process of its own, so that one that fails or takes too long costs itself
alone, and none keeps memory from another. They compile side by side and time one at a time; what the compiler tries out on the device for
another program can still disturb, and `beside` names what ran meanwhile. `--out` holds all figures
after each, and at the end what is missing and why. `--toy` runs the same on toy sizes.
"""

import concurrent.futures
import contextlib
import copy
import fcntl
import functools
import glob
import importlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import measuring
from fbjax import build, compiled, flops, loading, sampling
from fbjax.systems import base
from fbjax.train import step

OWN = flags.FlagValues()  # apart from those of the program, some of which have the same names
MINUTES = flags.DEFINE_float("minutes", 9, "When to stop, whatever is missing", flag_values=OWN)
OUT = flags.DEFINE_string(
  "out", "accelerator.json", "File to write all figures to", flag_values=OWN
)
ONLY = flags.DEFINE_list("only", [], "Names of measurements; all without", flag_values=OWN)
JOBS = flags.DEFINE_integer("jobs", 0, "Processes at a time; 0: 6, or 1 on a TPU", flag_values=OWN)
TOY = flags.DEFINE_bool("toy", False, "Toy sizes, for a CPU", flag_values=OWN)
MEASURE = flags.DEFINE_string(
  "measure", None, "The one to measure in this process", flag_values=OWN
)
LOCK = flags.DEFINE_string("lock", None, "File that is locked by whoever times", flag_values=OWN)

UNET, COGVIDEOX, LATTE = "webvid_saf", "webvid_saf_cogvideox", "ucf101_bridge"
ENVIRONMENT = {
  "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the processes share the device
  "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
  "XLA_FLAGS": "--xla_gpu_autotune_level=2",  # times candidates without comparing what they return
  "TF_CPP_MIN_LOG_LEVEL": "2",
}
# Toys compile far longer than they compute.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

HOLDERS = ("while", "call", "conditional")  # of other kernels

Row = dict[str, Any]


class Case(NamedTuple):
  """A config's network, and the shapes of what it works on.

  config: with bf16 products, and without files. latents: the system, whose batches are what its own
  `encode` returns. params, frozen: shapes of weights. clips, example: of n clips, before and after
  `encode`.
  """

  config: dict[str, Any]
  system: Any
  latents: Any
  form: Any
  params: Any
  frozen: Any
  clips: Callable[[int], Row]
  example: Callable[[int], Row]

  def row(self, n: int) -> Row:
    frames, size = build.clip_size(self.config)
    return {"batch": n, "frames": frames, "size": size}


def make_case(name: str) -> Case:
  made = importlib.import_module(f"configs.{name}").get_config("smoke" if TOY.value else "")
  config = made.to_dict() | {"weights": "", "start": {}}
  config["system"]["dtype"] = "bfloat16"
  build.set_precision(config)
  system = build.make_system(config, None)
  shapes = {True: {}, False: {}}
  for network, spec in system.networks.items():
    shapes[spec.trained][network] = spec.shapes()
  frozen = loading.halved(shapes[False], jnp.bfloat16)
  frames, size = build.clip_size(config)

  def clips(n: int) -> Row:
    whole = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    tokens = whole((n, config["tokenizer"]["length"]) if "tokenizer" in config else (n, 1))
    video = jax.ShapeDtypeStruct((n, frames, *size, 3), jnp.uint8)
    told = {"tokens": tokens, "null_tokens": tokens, "stride": whole((n,)), "label": whole((n,))}
    return {"video": video} | told

  def example(n: int) -> Row:
    keys = jax.eval_shape(lambda: sampling.clip_keys(0, range(n)))
    return jax.eval_shape(system.encode, frozen, clips(n), keys)._asdict()

  latents = copy.copy(system)
  latents.encode = lambda frozen, batch, keys: base.Example(**batch)
  form = build.make_formulation(config)
  return Case(config, system, latents, form, shapes[True], frozen, clips, example)


def peak() -> Iterator[Row]:
  n, rows = (256, 2**10) if TOY.value else (8192, 2**20)
  product, work = measuring.product(n, jnp.bfloat16)
  x = jax.random.normal(jax.random.key(0), (rows, 2**10), jnp.bfloat16)
  copied = jax.jit(lambda x: x + 1).lower(x).compile()
  with alone():
    _, of_product = timed(lambda _: product(), None, most=2)
    _, of_copy = timed(lambda _: copied(x), None, most=2)
  yield {
    "tflops": 1e-12 * work / min(of_product),
    "gb_a_second": 2e-9 * x.nbytes / min(of_copy),
    "rounds_ms": thousandths(of_product),
  }


def sampler(name: str, steps: int) -> Iterator[Row]:
  case = make_case(name)
  case.latents.decode = lambda frozen, z: z
  options = build.sampling_options(case.config, steps=steps)
  sample = build.make_sample(case.config, case.latents, case.form, None, options)
  n = options.batch_size
  batch, keys = case.example(n), sampling.clip_keys(0, range(n))
  program, row = built(sample, case.params, {}, batch, keys)
  with alone():
    args = measuring.filled(case.params, 0.02), {}, measuring.filled(batch), keys
    (_, finite), seconds = timed(lambda _: program(*args), None)
  row |= case.row(n) | {"steps": steps, "guidance": options.guidance}
  row |= {"finite": bool(finite.all()), "seconds_a_clip": min(seconds) / n}
  yield row | speed(row, seconds)


def train(name: str, batches: tuple[int, ...]) -> Iterator[Row]:
  """Of the first of some batch sizes that fits."""
  case = make_case(name)
  tx = build.make_optimizer(case.config, case.system)
  state_shapes = jax.eval_shape(functools.partial(step.init_state, tx=tx), case.params)

  loss = build.make_loss(case.config, case.latents, case.form)
  options = {k: case.config["train"][k] for k in ("ema_decay", "ema_warmup")}
  train_step = jax.jit(step.make_train_step(loss, tx, seed=0, **options), donate_argnums=0)
  for n in batches:
    batch = case.example(n)
    program, row = built(train_step, state_shapes, {}, batch)
    if row["planned_gb"] * 1e9 < device_memory():
      break
  with alone():
    params, ema = (measuring.filled(case.params, 0.02) for _ in range(2))
    start = jnp.zeros((), jnp.int32)
    state = step.TrainState(start, params, ema, measuring.filled(state_shapes.opt, 0.0))
    given = measuring.filled(batch)
    call = lambda carried: program(carried[0], {}, given)  # noqa: E731
    carried, seconds = timed(call, (state, None))
    row |= case.row(n) | {"step_ms": 1e3 * min(seconds), "clips_a_second": n / min(seconds)}
    yield row | {"finite": bool(jnp.isfinite(carried[1]["loss"]))} | speed(row, seconds)
    yield {"kernels": longest_kernels(lambda: call(carried))}


def encode(name: str, n: int) -> Iterator[Row]:
  case, keys = make_case(name), sampling.clip_keys(0, range(n))
  yield frozen_call(case, n, case.system.encode, case.clips(n), keys)


def decode(name: str) -> Iterator[Row]:
  case = make_case(name)
  n = case.config["sampling"]["batch_size"]
  call = lambda frozen, z: sampling.to_uint8(case.system.decode(frozen, z))  # noqa: E731
  codec = {network: case.frozen[network] for network in case.system.codec.networks}
  yield frozen_call(case._replace(frozen=codec), n, call, case.example(n)["z0"])


def frozen_call(case: Case, n: int, call: Callable[..., Any], *shapes: Any) -> Row:
  program, row = built(jax.jit(call), case.frozen, *shapes)
  with alone():
    args = measuring.filled(case.frozen, 0.02), *(measuring.filled(x) for x in shapes)
    _, seconds = timed(lambda _: program(*args), None)
  return row | case.row(n) | {"seconds_a_clip": min(seconds) / n} | speed(row, seconds)


MEASUREMENTS: dict[str, Callable[[], Iterator[Row]]] = {  # in order of value
  "peak": peak,
  "cogvideox_sampler_8": functools.partial(sampler, COGVIDEOX, 8),
  "unet_sampler_8": functools.partial(sampler, UNET, 8),
  "cogvideox_train": functools.partial(train, COGVIDEOX, (8, 4)),
  "latte_train": functools.partial(train, LATTE, (16, 8)),
  "unet_train": functools.partial(train, UNET, (8, 4)),
  "cogvideox_sampler_50": functools.partial(sampler, COGVIDEOX, 50),
  "unet_sampler_50": functools.partial(sampler, UNET, 50),
  "cogvideox_decode": functools.partial(decode, COGVIDEOX),
  "unet_decode": functools.partial(decode, UNET),
  "cogvideox_encode": functools.partial(encode, COGVIDEOX, 2),
  "unet_encode": functools.partial(encode, UNET, 4),
  "latte_encode": functools.partial(encode, LATTE, 4),
}


def built(program: Any, *shapes: Any) -> tuple[Any, Row]:
  """A jitted function compiled for arrays of these shapes, and what that took."""
  start = time.perf_counter()
  traced = program.trace(*shapes)
  lowered = traced.lower()
  row = {"trace_s": time.perf_counter() - start}
  start = time.perf_counter()
  executable = lowered.compile()
  row |= {"compile_s": time.perf_counter() - start}
  held = compiled.memory(executable)
  row |= {"planned_gb": 1e-9 * (held.total - held.code)}
  return executable, row | {"model_tflop": 1e-12 * flops.of(traced.jaxpr).model}


def timed(call: Callable[[Any], Any], state: Any, most: float = 4.0) -> tuple[Any, list[float]]:
  """The last state of call(state) -> state, and seconds a call of each of up to six rounds.

  The first round is one call, the others as many as make a sixth of `most` seconds, after which none
  begins.
  """
  most = most / 20 if TOY.value else most
  state = jax.block_until_ready(call(state))
  seconds, calls, first = [], 1, time.perf_counter()
  while len(seconds) < 6 and time.perf_counter() - first < most:
    start = time.perf_counter()
    for _ in range(calls):
      state = call(state)
    jax.block_until_ready(state)
    seconds.append((time.perf_counter() - start) / calls)
    calls = min(max(round(most / 6 / seconds[0]), 1), 100)
  return state, seconds


def longest_kernels(call: Callable[[], Any], most: int = 10) -> list[Row] | str:
  """Of one call: the kernels that take longest, all launches of a name together; or why not."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(call())
    (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    planes = {plane.name: plane for plane in jax.profiler.ProfileData.from_file(file).planes}
    found: dict[str, Row] = {}
    on_device = [name for name in planes if name.startswith(("/device:GPU:0", "/device:TPU:0"))]
    for name in on_device or ["/host:CPU"]:
      for line in planes[name].lines:
        if not line.name.startswith(("Stream", "XLA Ops", "tf_XLA")):
          continue
        for event in line.events:
          op = dict(event.stats).get("hlo_op")
          if event.name.startswith(HOLDERS) or not (on_device or event.name == op):
            continue  # it holds others; or a thread of the host tells of itself
          row = found.setdefault(
            event.name, {"kernel": event.name[:120], "op": op, "ms": 0.0, "calls": 0}
          )
          row["ms"] += 1e-6 * event.duration_ns
          row["calls"] += 1
  if not found:
    return f"the profile tells of no kernels; it has {', '.join(planes)}"
  total = sum(row["ms"] for row in found.values())
  longest = sorted(found.values(), key=lambda row: -row["ms"])[:most]
  return [row | {"share": row["ms"] / total} for row in longest]


def speed(row: Row, seconds: list[float]) -> Row:
  """What follows from the seconds of each round; memory of all this process did, if the device tells."""
  told = {"tflops": row["model_tflop"] / min(seconds), "rounds_ms": thousandths(seconds)}
  stats = jax.devices()[0].memory_stats() or {}
  peak = stats.get("peak_bytes_in_use")
  return told | ({} if peak is None else {"peak_gb": 1e-9 * peak})


def device_memory() -> float:
  return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)


def short(number: str) -> float:
  return float(f"{float(number):.6g}")


def thousandths(seconds: list[float]) -> list[float]:
  return [1e3 * x for x in seconds]


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """No other process of the benchmark times meanwhile."""
  with open(LOCK.value or os.devnull, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


class Report:
  """All figures so far, on disk after each."""

  def __init__(self, path: str):
    names = ("jax", "jaxlib", "flax", "optax")
    self.path, self.lock, self.running = path, threading.Lock(), set()
    self.content = {"versions": {name: importlib.metadata.version(name) for name in names}}
    self.content |= {"toy": TOY.value, "rows": [], "missing": {}}

  def add(self, row: Row) -> None:
    with self.lock:
      row["beside"] = sorted(self.running - {row["measurement"]})
      self.content["rows"].append(row)
      self._write()
      print(json.dumps(row), flush=True)

  def miss(self, name: str, why: str) -> None:
    with self.lock:
      self.content["missing"][name] = why
      self._write()
      print(json.dumps({"measurement": name, "missing": why}), flush=True)

  def _write(self) -> None:
    rows = self.content["rows"]
    best = next((row["tflops"] for row in rows if row["measurement"] == "peak"), None)
    for row in rows:
      if best and "model_tflop" in row:
        row["mfu"] = round(row["tflops"] / best, 6)
    with open(self.path, "w") as file:
      json.dump(self.content, file, indent=2)


def run(name: str, report: Report, lock: str, deadline: float) -> None:
  """One measurement in a process of its own, for as long as there is time."""
  left = deadline - time.monotonic()
  if name not in MEASUREMENTS:
    return report.miss(name, f"unknown; there are {', '.join(MEASUREMENTS)}")
  if left < 10:
    return report.miss(name, "no time was left to begin")
  environment = {**ENVIRONMENT, **({"XLA_FLAGS": QUICK} if TOY.value else {}), **os.environ}
  options = [f"--measure={name}", f"--lock={lock}", f"--toy={TOY.value}"]
  command = [sys.executable, "-m", "benchmarks.accelerator", *options]
  report.running.add(name)
  with tempfile.TemporaryFile("w+") as errors:
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    )
    timer = threading.Timer(left, process.kill)
    timer.start()
    for line in process.stdout:
      if line.startswith("{"):
        report.add({"measurement": name} | json.loads(line, parse_float=short))
    code = process.wait()
    timer.cancel()
    report.running.discard(name)
    errors.seek(0)
    said = [line for line in errors.read().splitlines() if line.strip()]
  if time.monotonic() >= deadline:
    report.miss(name, "its time was over before all of it was measured")
  elif code:
    report.miss(name, said[-1][:500] if said else f"it ended with {code}")


def main() -> None:
  if MEASURE.value:
    for row in MEASUREMENTS[MEASURE.value]():
      print(json.dumps({"device": jax.devices()[0].device_kind} | row), flush=True)
    return
  deadline = time.monotonic() + 60 * MINUTES.value - 3
  # A TPU belongs to one process.
  on_tpu = not glob.glob("/dev/nvidia*") and glob.glob("/dev/accel*") + glob.glob(
    "/dev/vfio/[0-9]*"
  )
  jobs = JOBS.value or (1 if on_tpu else min(6, os.cpu_count()))
  report = Report(OUT.value)
  with (
    tempfile.NamedTemporaryFile() as lock,
    concurrent.futures.ThreadPoolExecutor(jobs) as pool,
  ):
    names = ONLY.value or list(MEASUREMENTS)
    file = LOCK.value or lock.name
    list(pool.map(lambda name: run(name, report, file, deadline), names))


if __name__ == "__main__":
  if "--help" in sys.argv:
    sys.exit(__doc__ + "\n" + OWN.get_help())
  OWN(sys.argv)
  main()
