"""Gradients of our networks beside those that PyTorch finds at the same weights.

Both differentiate sum(output * a fixed random tensor) by every parameter and every input. PyTorch
does it in float64, so what is measured is the error of our float32 alone.

A tensor's error is max |ours - theirs| over the rms of theirs. Where this rms is less than FLOOR
times the largest of all gradients, the error is over that instead: what one sees of such a tensor
is rounding. Each test says which these are, and fails if they are others.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from models import networks

import golden
from fbjax import port, trees

TOLERANCE = 1e-4
FLOOR = 1e-3

Named = dict[str, np.ndarray]
Network = Callable[..., nnx.Module]


def normal(*shape: int, seed: int | np.random.Generator = 0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def cotangent(i: int, shape: Sequence[int]) -> np.ndarray:
  """What the i-th output of a network is multiplied with."""
  return normal(*shape, seed=1000 + i)


def gradients(f: Callable[..., Any], network: Network, **sizes: Any) -> Callable[..., Any]:
  """A jitted (params, inputs, fixed) -> outputs, (their gradients) of f(model, *inputs, *fixed)."""
  graph, _ = networks.split(network, **sizes)

  def loss(params: Any, inputs: Sequence[jax.Array], fixed: Sequence[jax.Array]):
    outputs = jax.tree.leaves(f(nnx.merge(graph, params), *inputs, *fixed))
    return sum(jnp.sum(y * cotangent(i, y.shape)) for i, y in enumerate(outputs)), outputs

  def run(params: Any, inputs: Sequence[jax.Array], fixed: Sequence[jax.Array] = ()):
    (_, outputs), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, inputs, fixed)
    return outputs, grads

  return jax.jit(run)


def torch_gradients(
  f: Callable[..., Any],
  params: Mapping[str, torch.Tensor],
  inputs: Sequence[np.ndarray],
  fixed: Sequence[np.ndarray],
) -> Named:
  """Outputs and gradients of f(*inputs, *fixed). Parameters that f does not use get zeros."""
  tensors = [torch.from_numpy(x).double().requires_grad_() for x in inputs]
  outputs = f(*tensors, *map(torch.from_numpy, fixed))
  outputs = outputs if isinstance(outputs, tuple) else (outputs,)
  loss = sum((y * torch.from_numpy(cotangent(i, y.shape))).sum() for i, y in enumerate(outputs))
  wanted = (*params.values(), *tensors)
  grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
  named = {key: g.numpy() for key, g in zip(params, grads, strict=False)}
  return named | others([y.detach() for y in outputs], grads[len(params) :])


def others(outputs: Sequence[Any], inputs: Sequence[Any]) -> Named:
  named = {f"output {i}": np.asarray(y) for i, y in enumerate(outputs)}
  return named | {f"input {i}": np.asarray(g) for i, g in enumerate(inputs)}


def check_module(
  name: str,
  network: Network,
  sizes: Mapping[str, Any],
  ours: Callable[..., Any],
  module: torch.nn.Module,
  theirs: Callable[..., Any],
  inputs: Sequence[np.ndarray],
  fixed: Sequence[np.ndarray] = (),
  *,
  layout: str | None = None,
  rename: Callable[[Named], Named] = dict,
  faint: str = "",
) -> None:
  """Compares ours(model, *inputs, *fixed) with theirs(*inputs, *fixed), which calls the module.

  Args:
    name: of the network in `fbjax.port`, and `layout` of the names there.
    rename: makes the module's tensors of those in that layout; it must be linear.
    faint: regex of the tensors whose gradients are below the floor.
  """
  shapes = port.to_torch(name, networks.params(network, **sizes), sizes, layout)
  tensors = {key: golden.weight(key, x.shape) for key, x in shapes.items()}
  params = port.to_flax(name, tensors, sizes)
  run = gradients(ours, network, **sizes)
  outputs, (grads, input_grads) = run(params, tuple(inputs), tuple(fixed))
  named = rename(port.to_torch(name, grads, sizes, layout)) | others(outputs, input_grads)

  weights = rename(tensors)
  module.double().eval()
  for key, x in module.named_parameters():
    x.data = torch.as_tensor(weights[key]).double()
  check(named, torch_gradients(theirs, dict(module.named_parameters()), inputs, fixed), faint)


def check_function(
  run: Callable[..., Any],
  params: Mapping[Any, Any],
  theirs: Callable[..., Any],
  inputs: Sequence[np.ndarray],
  fixed: Sequence[np.ndarray] = (),
  *,
  faint: str = "",
) -> None:
  """Compares what `gradients` made with theirs(params, *inputs, *fixed), in our names."""
  outputs, (grads, input_grads) = run(params, tuple(inputs), tuple(fixed))
  named = {key: np.asarray(x) for key, x in trees.flatten(grads).items()}
  flat = trees.flatten(params)
  leaves = {key: torch.as_tensor(x).double().requires_grad_() for key, x in flat.items()}
  tree = trees.nest(leaves)
  expected = torch_gradients(lambda *args: theirs(tree, *args), leaves, inputs, fixed)
  check(named | others(outputs, input_grads), expected, faint)


def check(ours: Named, theirs: Named, faint: str = "") -> None:
  """Raises with a list of the tensors that differ, and of those that are not as faint as said."""
  assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
  rms = {key: float(np.sqrt(np.square(x).mean())) for key, x in theirs.items()}
  floor = FLOOR * max(x for key, x in rms.items() if not key.startswith("output"))
  problems = []
  for key, x in theirs.items():
    assert ours[key].shape == x.shape, (key, ours[key].shape, x.shape)
    error = np.abs(ours[key] - x).max() / max(rms[key], floor)
    if not error < TOLERANCE:
      problems.append(f"{key} is off by {error:.1e}, its rms is {rms[key]:.1e}")
    if (rms[key] < floor) != bool(re.fullmatch(faint, key)):
      problems.append(f"{key} has an rms of {rms[key]:.1e}, the floor is {floor:.1e}")
  assert not problems, "\n".join(problems)
