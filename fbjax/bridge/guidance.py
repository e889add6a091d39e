"""Classifier-free guidance (§3.4): how conditional and unconditional predictions mix.

All predictions are affine in z0, so guiding the prediction or the z0 it implies is the same, for
any kind. Branches are evaluated in one call, interleaved along the batch, so that a clip's
branches stay on the device that holds the clip.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fbjax.bridge import process as process_lib

Clips = process_lib.Clips
PerClip = process_lib.PerClip
Scale = float | Callable[[Array], Array]
Combine = Callable[[Sequence[Array], Array], Array]


def evaluate(
  predict: Callable[[Array, Array, Any], Array],
  x: Clips,
  t_net: PerClip,
  conds: Sequence[Any],
) -> list[Array]:
  """The predictions of all branches (§3.4) from one call of predict(x, t_net, cond).

  `conds` holds one tree of arrays per branch, alike in structure, batch first.
  """
  n = len(conds)
  if n == 1:
    return [predict(x, t_net, conds[0])]
  preds = predict(
    jnp.repeat(x, n, axis=0), jnp.repeat(t_net, n, axis=0), jax.tree.map(_interleave, *conds)
  )
  return [preds[i::n] for i in range(n)]


def none() -> Combine:
  """No guidance: returns the prediction of the only branch."""
  return lambda preds, time: preds[0]


def text(scale: Scale, rescale: float = 0.0) -> Combine:
  """Guidance with scale s, branches (cond, uncond): uncond + s (cond - uncond) (§3.4).

  `rescale` in [0, 1] is the factor of `restore_std`; 0 leaves the result as it is.
  """

  def combine(preds: Sequence[Array], time: PerClip) -> Array:
    cond, uncond = preds
    out = uncond + _at(scale, time, cond) * (cond - uncond)
    return restore_std(out, cond, rescale) if rescale else out

  return combine


def two_scale(text_scale: Scale, image_scale: Scale, rescale: float = 0.0) -> Combine:
  """Guidance with two scales, branches (text and image, image, neither):
  e + s_image (e_image - e) + s_text (e_both - e_image) (§3.4). `rescale` is as in `text`."""

  def combine(preds: Sequence[Array], time: PerClip) -> Array:
    both, image, neither = preds
    out = neither + _at(image_scale, time, both) * (image - neither)
    out = out + _at(text_scale, time, both) * (both - image)
    return restore_std(out, both, rescale) if rescale else out

  return combine


def restore_std(guided: Clips, cond: Clips, factor: float) -> Clips:
  """Guidance rescale: pulls the standard deviation back to the conditional one (§3.4;
  arXiv:2305.08891, eq. 14-16)."""
  axes = tuple(range(1, guided.ndim))
  ratio = process_lib.divide(jnp.std(cond, axes), jnp.std(guided, axes))
  return (1 - factor + factor * process_lib.per_clip(ratio, guided)) * guided


def cosine(scale: float, power: float = 5.0, last: float = 1.0) -> Scale:
  """Dynamic guidance of CogVideoX (§3.4), from 1 next to the prior to 1 + s next to the data:
  1 + s (1 - cos(pi ((last - t) / last)^power)) / 2, with `last` the noisiest time."""
  return lambda time: 1 + scale * (1 - jnp.cos(np.pi * ((last - time) / last) ** power)) / 2


def interval(scale: Scale, low: float, high: float) -> Scale:
  """`scale` for low < time < high, 1 (no guidance) outside (arXiv:2404.07724)."""

  def limited(time: Array) -> Array:
    value = scale(time) if callable(scale) else scale
    return jnp.where((time > low) & (time < high), value, 1.0)

  return limited


def _at(scale: Scale, time: Array, like: Array) -> Array | float:
  return process_lib.per_clip(scale(time), like) if callable(scale) else scale


def _interleave(*branches: Array) -> Array:
  stacked = jnp.stack(branches, axis=1)
  return stacked.reshape(-1, *branches[0].shape[1:])
