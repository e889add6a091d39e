"""Times a call of the video UNet on this machine, and says which kinds of layers the time goes to.

  python -m benchmarks.unet_forward [--width=64] [--frames=16] [--size=32] [--grad] [--torch] [--out=x.json]

With --torch (of requirements-dev.txt) the same network in PyTorch runs in turn with ours, and the ratio
is printed: what a second is worth changes from machine to machine and from hour to hour.

The share of a kind is what its layers cost when each is called alone at the shapes it has in the
network; the rest is what the whole costs beyond their sum.
"""

import collections
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks import measuring
from fbjax.models import attention, layers, unet3d

WIDTH = flags.DEFINE_integer("width", 64, "Channels of the first level.")
FRAMES = flags.DEFINE_integer("frames", 16, "Frames of the clip.")
SIZE = flags.DEFINE_integer("size", 32, "Height and width of the latents.")
CALLS = flags.DEFINE_integer("calls", 5, "Calls to time; the fastest counts.")
GRAD = flags.DEFINE_bool("grad", False, "Also time the gradient of a loss.")
TORCH = flags.DEFINE_bool("torch", False, "Also time the network in PyTorch.")
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
  return measuring.fastest(lambda: f(*args), rounds=CALLS.value)[0]


def record(network: unet3d.UNet3D, *args: Any) -> dict[Any, Any]:
  """How often each layer function is called at which shapes: {(kind, key): (times, f, shapes)}."""
  calls: dict[Any, Any] = collections.defaultdict(list)
  originals = {cls: cls.__call__ for cls in KINDS.values()}
  attend = attention.attention

  def spy(kind: str, cls: type, module: nnx.Module, x: jax.Array) -> jax.Array:
    leaves = [p.shape for p in jax.tree.leaves(nnx.state(module, nnx.Param))]
    calls[kind, x.shape, str(leaves)].append((functools.partial(originals[cls], module), x.shape))
    return originals[cls](module, x)

  def spy_attention(q: jax.Array, k: jax.Array, v: jax.Array, **kwargs: Any) -> jax.Array:
    calls["attention", q.shape, k.shape].append((attend, q.shape, k.shape, v.shape))
    return attend(q, k, v, **kwargs)

  for kind, cls in KINDS.items():
    cls.__call__ = functools.partialmethod(lambda m, x, k, c: spy(k, c, m, x), k=kind, c=cls)
  attention.attention = spy_attention
  try:
    jax.eval_shape(lambda: network(*args))
  finally:
    for cls, original in originals.items():
      cls.__call__ = original
    attention.attention = attend
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
  rng = np.random.default_rng(0)
  # None of them zero, as a new network has some.
  params = jax.tree.map(
    lambda p: jnp.asarray(p + 0.02 * rng.standard_normal(p.shape, np.float32)),
    nnx.to_pure_dict(state),
  )
  # No constants: channels that hardly vary lose their variance in PyTorch's group norm of channels last.
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
  x = normal(1, FRAMES.value, SIZE.value, SIZE.value, 8)
  args = (x, jnp.full(1, 500.0), normal(1, 77, 1024), normal(1, FRAMES.value, 16, 1024))

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

  def loss(params):
    return jnp.square(forward(params, *args)).mean()

  if GRAD.value:
    figures["gradient_seconds"] = seconds(jax.value_and_grad(loss), params)
    print(f"loss and gradient {figures['gradient_seconds']:.3f} s")
  if TORCH.value:
    ours = {"forward": (forward, params, *args)}
    ours |= {"gradient": (jax.value_and_grad(loss), params)} if GRAD.value else {}
    figures["torch"] = beside_torch(params, args, ours)
  if OUT.value:
    with open(OUT.value, "w") as file:
      json.dump(figures, file, indent=2)


def beside_torch(params: Any, args: Any, ours: dict[str, Any]) -> dict[str, Any]:
  """Seconds of each of ours and of its twin in PyTorch, with as many threads as there are cores."""
  import torch

  from benchmarks import torch_networks

  tensor = lambda x: torch.from_numpy(np.array(x))  # noqa: E731
  leaves = jax.tree.map(tensor, params)
  x, moment, text, image = map(tensor, args)
  stride = torch.full((1,), 3.0)

  def forward() -> Any:
    return torch_networks.unet(leaves, x, text, image, moment, stride, head_dim=64, groups=32)

  def gradient() -> None:
    forward().square().mean().backward()

  rows = {}
  for name, (f, *inputs) in ours.items():
    for leaf in jax.tree.leaves(leaves):
      leaf.requires_grad_(name == "gradient")
    compiled = jax.jit(f)
    twin = {"forward": forward, "gradient": gradient}[name]
    mine, theirs = measuring.fastest(lambda: compiled(*inputs), twin, rounds=CALLS.value)  # noqa: B023
    rows[name] = {"jax_seconds": mine, "torch_seconds": theirs, "ratio": mine / theirs}
    print(f"{name}: {mine:.3f} s here, {theirs:.3f} s in PyTorch, ratio {mine / theirs:.2f}")
  compiled = jax.jit(ours["forward"][0])
  mine, theirs = np.asarray(compiled(*ours["forward"][1:])), forward().detach().numpy()
  error = np.abs(mine - theirs).max() / np.sqrt(np.square(theirs).mean())
  print(f"largest difference of the outputs, over their rms: {error:.1e}")
  return rows


def count(params: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


if __name__ == "__main__":
  app.run(main)
