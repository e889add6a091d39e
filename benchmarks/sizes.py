"""How the training step and the sampler of each system grow with frames, resolution and clips.

  python -m benchmarks.sizes [--full|--toy] [--systems=unet,latte,cogvideox] [--axes=frames,side,clips] [--out=sizes.json]

One axis at a time around a base size, on all devices of the machine, clips split over them. Small networks of the
same kinds, in float32, unless `--full` asks for the published ones, with products in bfloat16; weights are random,
and no files are needed. The step trains from cached features, so it has no encoders; the sampler goes from images
to clips, with few evaluations. Of each program:

  seconds   of the fastest of some calls; those of compilation are apart
  bytes     of a device, as compiled
  FLOPs     of the mathematics, of all devices, without what is done again to save memory
  MFU       these FLOPs a second, in those of a product of two large matrices on the same devices

and behind each axis the exponents with which they grow along it. (CogVideoX has a latent for 4 of its frames, and one more.)
"""

import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from benchmarks import measuring
from fbjax import build, compiled, errors, flops, programs, sharding
from fbjax.train import step

CONFIGS = {"unet": "webvid_saf", "latte": "ucf101_bridge", "cogvideox": "webvid_saf_cogvideox"}
AXES = ("frames", "side", "clips")

OWN = flags.FlagValues()  # apart from those of the program, some of which have the same names
FULL = flags.DEFINE_bool(
  "full", False, "The published networks; they want an accelerator", flag_values=OWN
)
TOY = flags.DEFINE_bool("toy", False, "The networks of the configs' smoke", flag_values=OWN)
SYSTEMS = flags.DEFINE_list("systems", list(CONFIGS), "Which systems", flag_values=OWN)
PLOTTED = flags.DEFINE_list("axes", list(AXES), "Along which axes", flag_values=OWN)
FACTORS = flags.DEFINE_list(
  "factors", ["0.5", "1", "2"], "Of the base size, along each axis", flag_values=OWN
)
CALLS = flags.DEFINE_integer("calls", 3, "Calls to time; the fastest counts", flag_values=OWN)
OUT = flags.DEFINE_string("out", None, "File to write the figures to", flag_values=OWN)

Row = dict[str, Any]
Size = dict[str, int]  # by axis

HEAD = "frames  side clips  compile s         s         GB     GFLOP   GFLOP/s    MFU"
GROWING = ("seconds", "bytes", "flops")


def small_unet(c: Any) -> None:
  c.data.update(frames=8, size=64)
  c.system.unet.update(width=32, mult=(1, 2), attention_levels=(0, 1), head_dim=16)


def small_latte(c: Any) -> None:
  c.data.update(frames=8, size=64)
  c.system.latte.update(size=16, width=128, depth=4, heads=4)


def small_cogvideox(c: Any) -> None:
  c.data.update(frames=17, size=64)
  c.system.transformer.update(depth=4, heads=4, head_dim=32)


SMALL = {"unet": small_unet, "latte": small_latte, "cogvideox": small_cogvideox}


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  logging.set_verbosity(logging.WARNING)
  for name in SYSTEMS.value:
    if name not in CONFIGS:
      raise errors.UserError(f"--systems={name} is none of {', '.join(CONFIGS)}")
  for axis in PLOTTED.value:
    if axis not in AXES:
      raise errors.UserError(f"--axes={axis} is none of {', '.join(AXES)}")
  dtype = jnp.bfloat16 if FULL.value else jnp.float32
  side = 256 if TOY.value else 8192 if FULL.value else 2048
  call, work = measuring.product(side, dtype)
  devices = jax.devices()
  peak = len(devices) * work / measuring.fastest(call, rounds=CALLS.value)[0]
  found = {
    "device": devices[0].device_kind,
    "devices": len(devices),
    "jax": jax.__version__,
    "peak": peak,
    "rows": [],
    "exponents": [],
  }
  kind = f"{len(devices)} x {found['device']}"
  print(f"{kind}, peak {peak / 1e9:.1f} GFLOP/s of {dtype.__name__}", flush=True)
  for name in SYSTEMS.value:
    print(f"\n{name:9} {HEAD}", flush=True)
    rows = []
    for row in measure(name, peak):
      print(line(row), flush=True)
      rows.append(row)
    grow = [x for axis in PLOTTED.value for x in exponents(rows, axis)]
    print(*map(grown, grow), sep="\n", flush=True)
    found["rows"] += rows
    found["exponents"] += grow
    if OUT.value:
      with open(OUT.value, "w") as file:
        json.dump(found, file, indent=2)


def make_config(name: str) -> dict[str, Any]:
  """At its base size."""
  made = importlib.import_module(f"configs.{CONFIGS[name]}")
  c = made.get_config("" if FULL.value else "smoke")
  if not (FULL.value or TOY.value):
    SMALL[name](c)
  c.system.dtype = "bfloat16" if FULL.value else "float32"
  c.sampling.steps = 8 if FULL.value else 2
  c.cache.path = "cached"  # Nobody looks whether it is there.
  build.set_precision(c.to_dict())
  return c.to_dict() | {"weights": "", "start": {}}


def sizes(base: Size) -> list[Size]:
  """The base, and those that differ from it along one axis, each once."""
  found = [base]
  for axis, factor in itertools.product(PLOTTED.value, map(float, FACTORS.value)):
    # An odd number of frames has one that stands for itself.
    alone = base[axis] % 2 if axis == "frames" else 0
    size = base | {axis: alone + round(factor * (base[axis] - alone))}
    found += [size] if size not in found else []
  return found


def measure(name: str, peak: float) -> Iterator[Row]:
  """A row for each program at each size."""
  config = make_config(name)
  frames, (side, _) = build.clip_size(config)
  mesh = sharding.make_mesh()
  base = {"frames": frames, "side": side, "clips": max(4, 2 * mesh.size)}
  for program, size in itertools.product(PROGRAMS, sizes(base)):
    clips = {"batch_size": size["clips"]}
    config["data"] |= {"frames": size["frames"], "size": size["side"]}
    config["train"] |= clips
    config["sampling"] |= clips
    row = {"system": name, "program": program} | size
    row["axes"] = [x for x in PLOTTED.value if all(size[y] == base[y] for y in AXES if y != x)]
    try:
      row |= of_program(config, program, mesh)
      row["mfu"] = row["flops"] / row["seconds"] / peak
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      row["missing"] = "more memory than there is"
    yield row


def of_program(config: dict[str, Any], program: str, mesh: jax.sharding.Mesh) -> Row:
  trace, bind = PROGRAMS[program]
  traced = trace(config, programs.make_system(config), mesh)
  began = time.perf_counter()
  done = traced.lower().compile()
  row = {"compile_seconds": time.perf_counter() - began}
  work, held = flops.of(traced.jaxpr), compiled.memory(done)
  row |= {"flops": work.model, "recomputed_flops": work.recomputed}
  row |= {"bytes": held.total, "temporary_bytes": held.temporaries}
  places, _ = done.input_shardings
  shapes = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    done.args_info[0],
    places,
  )
  (seconds,) = measuring.fastest(bind(done, *shapes), rounds=CALLS.value)
  return row | {"seconds": seconds}


def bind_step(
  done: Callable[..., Any], state: step.TrainState, frozen: Any, clips: Any
) -> Callable[[], Any]:
  """Calls with random arguments; each takes the state of the one before."""
  params, ema = (measuring.filled(x, 0.02) for x in (state.params, state.ema))
  start, opt = (measuring.filled(x, 0.0) for x in (state.step, state.opt))
  carried = [step.TrainState(start, params, ema, opt)]
  frozen, clips = measuring.filled(frozen, 0.02), measuring.filled(clips)

  def call() -> Any:
    carried[0], metrics = done(carried[0], frozen, clips)
    return metrics

  return call


def bind_sampler(
  done: Callable[..., Any], params: Any, frozen: Any, clips: Any, keys: Any
) -> Callable[[], Any]:
  args = (
    *(measuring.filled(x, 0.02) for x in (params, frozen)),
    *map(measuring.filled, (clips, keys)),
  )
  return lambda: done(*args)


PROGRAMS = {
  "step": (programs.trace_step, bind_step),
  "sampler": (programs.trace_sampler, bind_sampler),
}


def exponents(rows: list[Row], axis: str) -> Iterator[Row]:
  """For each program, with which power its figures grow along an axis."""
  for program in PROGRAMS:
    along = [x for x in rows if x["program"] == program and axis in x["axes"] and "seconds" in x]
    if len({x[axis] for x in along}) > 1:
      found = {name: slope([x[axis] for x in along], [x[name] for x in along]) for name in GROWING}
      yield {"system": along[0]["system"], "program": program, "axis": axis} | found


def slope(x: list[float], y: list[float]) -> float:
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def grown(x: Row) -> str:
  size = f"  growth of the {x['program']} with {x['axis']}"
  return f"{size:51}{x['seconds']:10.2f} {x['bytes']:10.2f} {x['flops']:9.2f}"


def line(x: Row) -> str:
  size = f"{x['program']:9} {x['frames']:6} {x['side']:5} {x['clips']:5}"
  if "missing" in x:
    return f"{size}  {x['missing']}"
  return (
    f"{size} {x['compile_seconds']:10.1f} {x['seconds']:9.4f} {x['bytes'] / 1e9:10.3f} "
    f"{x['flops'] / 1e9:9.1f} {x['flops'] / x['seconds'] / 1e9:9.1f} {x['mfu']:6.1%}"
  )


if __name__ == "__main__":
  if "--help" in sys.argv:
    sys.exit(__doc__ + "\n" + OWN.get_help())
  main(sys.argv)
