"""What a TPU's compiler makes of one stage of the video UNet, forward and backward: to compare ways to write it.

python -m benchmarks.tpu_stage [--topology=v5e:2x2] [--parts=res,spatial,temporal] [--hlo=stage.hlo] [--out=x.json]

The stage is the first of VideoCrafter's with attention: 320 channels, 16 frames of 32x32 latents, text and image
tokens, bfloat16 products, dropout, its weights split over all devices, all between input and output computed again.
No TPU is needed, but libtpu is (`jax[tpu]`), and some minutes of two cores. Prints memory, and the seconds of
`fbjax.roofline`, which are estimates; then the longest operations by the compiler's own cycles.
"""

import collections
import json
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from fbjax import compiled, flops, hardware, partition, roofline, sharding
from fbjax.models import layers, unet3d
from fbjax.models import unet3d_transformers as transformers
from fbjax.modes import plan
from fbjax.systems import remat

TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPUs to compile for")
CLIPS = flags.DEFINE_integer("clips", 4, "Clips of each device")
CHANNELS = flags.DEFINE_integer("channels", 320, "Channels of the stage")
SIZE = flags.DEFINE_integer("size", 32, "Height and width of the latents")
CONTEXT_AXIS = flags.DEFINE_integer("context", 1, "Chips that share the frames of a clip")
TENSOR_AXIS = flags.DEFINE_integer("tensor", 1, "Chips that share heads and channels")
PARTS = flags.DEFINE_list("parts", ["res", "spatial", "temporal"], "Which of its parts to have")
KEEP = flags.DEFINE_string("remat", "full", "What the stage keeps for the backward pass")
TOP = flags.DEFINE_integer("top", 20, "Operations to print")
HLO = flags.DEFINE_string("hlo", None, "File for the compiled program's text")
OUT = flags.DEFINE_string("out", None, "File for the figures")

EMBEDDING, CONTEXT, FRAMES, HEAD = 1280, 1024, 16, 64


def make_stage(key: jax.Array) -> unet3d.Stage:
  c, parts = CHANNELS.value, PARTS.value
  options = {"dtype": jnp.bfloat16, "rngs": layers.Keys(key)}
  shared = {"heads": c // HEAD, "depth": 1, "groups": 32} | options
  res = unet3d.ResBlock(c, c, EMBEDDING, temporal=True, groups=32, dropout=0.1, **options)
  spatial = transformers.SpatialTransformer(c, CONTEXT, image=True, **shared)
  temporal = transformers.TemporalTransformer(c, head_dim=HEAD, positions=0, causal=False, **shared)
  return unet3d.Stage(
    res if "res" in parts else None,
    spatial if "spatial" in parts else None,
    temporal if "temporal" in parts else None,
  )


def trace(mesh: jax.sharding.Mesh) -> jax.stages.Traced:
  """The gradient of a stage by its weights and its input."""
  graph, state = nnx.split(nnx.eval_shape(lambda: make_stage(jax.random.key(0))))
  params = nnx.to_pure_dict(state)
  params = sharding.placed(params, sharding.tree(params, mesh))
  n = CLIPS.value * mesh.size

  def clips(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((n, *shape), dtype, sharding=sharding.batch(mesh))

  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), n))
  given = (
    clips(FRAMES, SIZE.value, SIZE.value, CHANNELS.value, dtype=jnp.float32),
    clips(EMBEDDING, dtype=jnp.float32),
    clips(77, CONTEXT),
    clips(FRAMES, 16, CONTEXT),
    jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding.batch(mesh)),
  )
  run = partition.blockwise(unet3d.Stage.__call__, remat.wrap(KEEP.value))

  def loss(params: Any, *given: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(run(nnx.merge(graph, params), *given)))

  return jax.jit(partition.over(mesh, jax.grad(loss, (0, 1)))).trace(params, *given)


def operations(text: str, chip: hardware.Chip) -> list[tuple[float, int, str]]:
  """Milliseconds by the compiler's cycles, how often, and what: by operation, kind and shape."""
  bodies = compiled.bodies(text)
  found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
  for name, times in compiled.runs(bodies, fused=False).items():
    for x in roofline.parse(bodies[name]).values():
      cycles = re.search(r'"estimated_cycles":"(\d+)"', x.line)
      if cycles:
        operation = re.search(r'op_name="(?:[^"]*/)?([^"/]*)"', x.line)
        shape = f"{x.shapes[0][0]}{list(x.shapes[0][1])}" if x.shapes else ""
        entry = found[f"{operation[1] if operation else '?'}, {x.kind} {shape}"]
        entry[0] += 1e3 * times * int(cycles[1]) / chip.clock
        entry[1] += times
  return sorted(((ms, int(n), what) for what, (ms, n) in found.items()), reverse=True)


def main(_: list[str]) -> None:
  os.environ |= plan.ENVIRONMENT
  devices = plan.devices_of(TOPOLOGY.value)
  chip = hardware.chip(devices[0])
  assert chip, f"nothing is known of {devices[0].device_kind}"
  axes = {"context": CONTEXT_AXIS.value, "tensor": TENSOR_AXIS.value}
  fsdp = len(devices) // math.prod(axes.values())
  traced = trace(sharding.make_mesh(fsdp=fsdp, devices=devices, **axes))
  work = flops.of(traced.jaxpr)
  peak = len(devices) * chip.flops
  began, used = time.perf_counter(), time.process_time()
  program = traced.lower().compile(compiler_options=plan.QUICK)
  row = {
    "topology": TOPOLOGY.value,
    "mesh": {"fsdp": fsdp} | axes,
    "parts": PARTS.value,
    "remat": KEEP.value,
    "jax": jax.__version__,
    "compile_seconds": time.perf_counter() - began,
    "compile_cpu_seconds": time.process_time() - used,
    "lines": len(program.as_text().splitlines()),
    "temporary_bytes": compiled.memory(program).temporaries,
    "model_flops": work.model / len(devices),
    "recomputed_flops": work.recomputed / len(devices),
    "seconds": plan.seconds(program, chip, flops.of(traced.jaxpr, chip.passes).total / peak),
  }
  print(json.dumps(row, indent=2))
  for ms, n, what in operations(program.as_text(), chip)[: TOP.value]:
    print(f"{ms:8.2f} ms {n:5} x {what}")
  for path, text in ((HLO.value, program.as_text()), (OUT.value, json.dumps(row, indent=2))):
    if path:
      with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
  app.run(main)
