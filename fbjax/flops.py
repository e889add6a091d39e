"""FLOPs of a traced program: its matmuls and convolutions, those in loops as often as they run.

XLA's own count of a compiled program takes the body of a loop once, so it tells a network of scanned blocks a
fraction of what it does. Elementwise work is left out, as usual for MFU.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

# Shares of fused kernels that are logits and their gradients once more, which nobody kept; and how many products
# of attention cuDNN's do, of the mathematics and once more.
AGAIN = {"splash_mha_dkv": 1 / 2, "splash_mha_dq": 1 / 3}
CUDNN = {
  "dot_product_attention_fwd_wrapper": (2, 0),
  "dot_product_attention_bwd_wrapper": (4, 1),
}
RECOMPUTED = "rematted_computation"  # in the name stack of what `jax.checkpoint` runs once more

# How many times a product counts, by how many of its operands are float32, then by `jax.lax.Precision`.
Passes = tuple[tuple[float, float, float], ...]
ONCE: Passes = ((1, 1, 1),) * 3


class Flops(NamedTuple):
  """FLOPs over all devices together.

  model: what the mathematics asks for. recomputed: by rematerialization, of `jax.checkpoint` and of
  attention kernels that compute logits again in their backward pass.
  """

  model: float = 0.0
  recomputed: float = 0.0

  @property
  def total(self) -> float:
    return self.model + self.recomputed

  def __add__(self, other: "Flops") -> "Flops":
    return Flops(self.model + other.model, self.recomputed + other.recomputed)

  def times(self, n: float) -> "Flops":
    return Flops(n * self.model, n * self.recomputed)


def of(program: core.ClosedJaxpr, passes: Passes = ONCE) -> Flops:
  """Counts the FLOPs of a program, such as `jax.jit(f).trace(*args).jaxpr`; dead code is left out.

  With the `passes` of a `hardware.Chip`, a matmul counts as the bfloat16 FLOPs that take the chip
  as long.

  A loop of unknown trip count counts once, a condition as its longest branch, and a Pallas kernel
  by its cost estimate, or else as its body times its grid.
  """
  # What nobody uses, such as the gradients of frozen weights, XLA leaves out too.
  needed, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
  return _of(needed, passes)


def times(dtypes: Iterable[str], precisions: Iterable[jax.lax.Precision], passes: Passes) -> float:
  """How many times a matmul of these operand dtypes counts, at the highest of these precisions."""
  exact = sum(dtype in ("float32", "f32") for dtype in dtypes)
  return passes[exact][max((precision.value for precision in precisions), default=0)]


def _of(jaxpr: core.ClosedJaxpr | core.Jaxpr, passes: Passes) -> Flops:
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return sum((_of_equation(equation, passes) for equation in jaxpr.eqns), Flops())


def _of_equation(equation: core.JaxprEqn, passes: Passes) -> Flops:
  name, params = equation.primitive.name, equation.params
  count = COUNTED.get(name)
  if count is not None:
    n = count(equation) * _times(equation, passes)
  elif name == "cond":
    branches = [_of(branch, passes) for branch in params["branches"]]
    return max(branches, key=lambda found: found.total)
  elif name == "pallas_call":
    n = getattr(params.get("cost_estimate"), "flops", 0) or _of_kernel(params, passes)
    share = next((x for kernel, x in AGAIN.items() if kernel in _kernel_name(params)), 0.0)
    return _marked(equation, Flops(n * (1 - share), n * share))
  elif name in CUDNN:
    model, again = CUDNN[name]
    n = _attention_product(equation)
    return _marked(equation, Flops(model * n, again * n))
  else:
    jaxprs = [jaxpr for value in params.values() for jaxpr in _jaxprs(value)]
    inner = sum((_of(jaxpr, passes) for jaxpr in jaxprs), Flops())
    turns = {"scan": "length", "shard_map": "mesh"}.get(name)
    if turns:  # of each turn; of each device
      inner = inner.times(getattr(params[turns], "size", params[turns]))
    return inner if name == "scan" else _marked(equation, inner)
  return _marked(equation, Flops(n))


def _times(equation: core.JaxprEqn, passes: Passes) -> float:
  asked = equation.params["precision"]  # one for each operand, or None, or an algorithm by name
  precisions = asked if isinstance(asked, tuple) else ()
  return times([x.aval.dtype.name for x in equation.invars], precisions, passes)


def _of_kernel(params: Mapping[str, Any], passes: Passes) -> float:
  return _of(params["jaxpr"], passes).total * math.prod(params["grid_mapping"].grid)


def _kernel_name(params: Mapping[str, Any]) -> str:
  return str(params.get("name_and_src_info", params.get("name", "")))


def _attention_product(equation: core.JaxprEqn) -> float:
  """One of q k^T, or of the like: of [b n k d] and [b m k d]."""
  (b, n, heads, d), (_, m, _, _) = (x.aval.shape for x in equation.invars[:2])
  return 2.0 * b * heads * n * m * d


def _marked(equation: core.JaxprEqn, found: Flops) -> Flops:
  again = RECOMPUTED in str(equation.source_info.name_stack)
  return Flops(0.0, found.total) if again else found


def _jaxprs(value: Any) -> list[Any]:
  values = value if isinstance(value, tuple | list) else [value]
  return [x for x in values if isinstance(x, core.ClosedJaxpr | core.Jaxpr)]


def _product(equation: core.JaxprEqn) -> float:
  lhs, rhs = (x.aval.shape for x in equation.invars)
  (contracted, _), (batch, _) = equation.params["dimension_numbers"]
  shared = math.prod(lhs[i] for i in (*contracted, *batch))
  batches = math.prod(lhs[i] for i in batch)
  return 2.0 * math.prod(lhs) * math.prod(rhs) / shared if batches else 0.0


def _convolution(equation: core.JaxprEqn) -> float:
  """Without the products with padding, and with the zeros between the pixels of a dilated one."""
  lhs, rhs = (x.aval.shape for x in equation.invars)
  out, params = equation.outvars[0].aval.shape, equation.params
  lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
  met = 1.0
  for i in range(len(out) - 2):
    met *= pairs(
      lhs[lhs_spec[i + 2]],
      rhs[rhs_spec[i + 2]],
      out[out_spec[i + 2]],
      stride=params["window_strides"][i],
      low=params["padding"][i][0],
      spread=params["lhs_dilation"][i],
      reach=params["rhs_dilation"][i],
    )
  return 2.0 * out[out_spec[0]] * out[out_spec[1]] * rhs[rhs_spec[1]] * met


def pairs(n: int, k: int, m: int, *, stride: int, low: int, spread: int, reach: int) -> int:
  """Multiplications of a convolution along one axis, without those with padding and dilation zeros.

  Args:
    n, k, m: lengths of input, kernel and output.
    stride: of the window.
    low: padding before the input.
    spread: dilation of the input.
    reach: dilation of the kernel.
  """
  places = np.arange(m)[:, None] * stride + np.arange(k)[None] * reach - low
  met = (places >= 0) & (places < (n - 1) * spread + 1) & (places % spread == 0)
  return int(met.sum())


COUNTED = {"dot_general": _product, "conv_general_dilated": _convolution}
