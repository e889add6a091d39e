"""Times a call of the video UNet on this machine, and says which kinds of layers the time goes to.

  python -m benchmarks.unet_forward [--width=64] [--frames=16] [--size=32] [--grad] [--out=x.json]

The share of a kind is what its layers cost when each is called alone at the shapes it has in the
network; the rest is what the whole costs beyond their sum.
"""

import collections
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from fbjax.models import layers, unet3d

WIDTH = flags.DEFINE_integer("width", 64, "Channels of the first level.")
FRAMES = flags.DEFINE_integer("frames", 16, "Frames of the clip.")
SIZE = flags.DEFINE_integer("size", 32, "Height and width of the latents.")
CALLS = flags.DEFINE_integer("calls", 5, "Calls to time; the fastest counts.")
GRAD = flags.DEFINE_bool("grad", False, "Also time the gradient of a loss.")
OUT = flags.DEFINE_string("out", None, "File to write the figures to.")

KINDS = {
  "2-D convolution": nnx.Conv,
  "temporal convolution": unet3d.TemporalConv,
  "group norm": layers.GroupNorm,
  "layer norm": nnx.LayerNorm,
  "linear": nnx.Linear,
}


def seconds(f: Callable[..., Any], *args: Any) -> float:
  """The fastest of a few calls, compilation aside."""
  f = jax.jit(f)
  jax.block_until_ready(f(*args))
  times = []
  for _ in range(CALLS.value):
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    times.append(time.perf_counter() - start)
  return min(times)


def record(network: unet3d.UNet3D, *args: Any) -> dict[Any, Any]:
  """How often each layer function is called at which shapes: {(kind, key): (times, f, shapes)}."""
  calls: dict[Any, Any] = collections.defaultdict(list)
  originals = {cls: cls.__call__ for cls in KINDS.values()}
  attend = layers.attention

  def spy(kind: str, cls: type, module: nnx.Module, x: jax.Array) -> jax.Array:
    leaves = [p.shape for p in jax.tree.leaves(nnx.state(module, nnx.Param))]
    calls[kind, x.shape, str(leaves)].append((functools.partial(originals[cls], module), x.shape))
    return originals[cls](module, x)

  def spy_attention(q: jax.Array, k: jax.Array, v: jax.Array, **kwargs: Any) -> jax.Array:
    calls["attention", q.shape, k.shape].append((attend, q.shape, k.shape, v.shape))
    return attend(q, k, v, **kwargs)

  for kind, cls in KINDS.items():
    cls.__call__ = functools.partialmethod(lambda m, x, k, c: spy(k, c, m, x), k=kind, c=cls)
  layers.attention = spy_attention
  try:
    jax.eval_shape(lambda: network(*args))
  finally:
    for cls, original in originals.items():
      cls.__call__ = original
    layers.attention = attend
  return calls


def main(_: list[str]) -> None:
  sizes = dict(
    width=WIDTH.value,
    mult=(1, 2, 4, 4),
    blocks=2,
    attention_levels=(0, 1, 2),
    head_dim=64,
    context_dim=1024,
    image_attention=True,
  )
  network = unet3d.UNet3D(8, 4, **sizes, rngs=layers.Keys(jax.random.key(0)))
  graph, state = nnx.split(network)
  params = nnx.to_pure_dict(state)
  shape = (1, FRAMES.value, SIZE.value, SIZE.value, 8)
  image = jnp.ones((1, FRAMES.value, 16, 1024))
  args = (jnp.ones(shape), jnp.full(1, 500.0), jnp.ones((1, 77, 1024)), image)

  def forward(params: Any, *args: Any) -> jax.Array:
    return nnx.merge(graph, params)(*args)

  whole = seconds(forward, params, *args)
  figures: dict[str, Any] = {"forward_seconds": whole, "parameters": count(params)}
  print(f"{count(params) / 1e6:.1f} M parameters, forward {whole:.3f} s")
  shares: dict[str, float] = collections.defaultdict(float)
  for (kind, *_), entries in record(network, *args).items():
    f, *shapes = entries[0]
    shares[kind] += len(entries) * seconds(f, *(jnp.ones(s) for s in shapes))
  for kind, share in sorted(shares.items(), key=lambda item: -item[1]):
    print(f"  {kind:22} {share:7.3f} s  {share / whole:5.0%}")
  rest = whole - sum(shares.values())
  print(f"  {'the rest':22} {rest:7.3f} s  {rest / whole:5.0%}")
  figures["shares_seconds"] = dict(shares)
  if GRAD.value:

    def loss(params):
      return jnp.square(forward(params, *args)).mean()

    figures["gradient_seconds"] = seconds(jax.value_and_grad(loss), params)
    print(f"loss and gradient {figures['gradient_seconds']:.3f} s")
  if OUT.value:
    with open(OUT.value, "w") as file:
      json.dump(figures, file, indent=2)


def count(params: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


if __name__ == "__main__":
  app.run(main)
