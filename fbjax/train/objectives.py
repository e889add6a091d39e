"""Losses. A new method is a new loss here, never a new loop."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fbjax.bridge import process
from fbjax.systems import base, formulation
from fbjax.train import step

# The published grid of 1000 times visits neither end: (i + 1) / 1001.
FIRST, LAST = 1 / 1001, 1000 / 1001


def bridge_loss(
  system: base.System,
  form: formulation.Formulation,
  *,
  drop_text: float = 0.0,
  drop_image: float = 0.0,
  drop_both: float = 0.0,
  dropout: bool = True,
) -> step.LossFn:
  """Mean square of the network's error at a random time of the bridge (FrameBridge, eq. 9 and 12).

  Args:
    system: who encodes and denoises.
    form: the bridge, and what the network sees of it and predicts.
    drop_text: share of clips that lose their text alone.
    drop_image: share of clips that lose their image condition alone.
    drop_both: share of clips that lose both.
    dropout: whether the network's dropout is on.
  """

  def loss(
    params: base.Params, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
  ) -> tuple[jax.Array, step.Metrics]:
    purposes = jax.vmap(lambda key: jax.random.split(key, 5))(keys)
    encoding, timing, noising, dropping, network = (purposes[:, i] for i in range(5))
    z0, z1, cond = system.encode(frozen, batch, encoding)
    time = FIRST + (LAST - FIRST) * jax.vmap(jax.random.uniform)(timing)
    noise = jax.vmap(lambda key: jax.random.normal(key, z0.shape[1:]))(noising)
    zt = process.sample_marginal(form.process, z0, z1, time, noise)
    x, t_net = form.network_input(zt, z1, time)

    draw = jax.vmap(jax.random.uniform)(dropping)
    text = draw < drop_text + drop_both
    image = (draw >= drop_text) & (draw < drop_text + drop_both + drop_image)
    cond = system.embed(params, system.drop(cond, text, image))

    pred = system.denoise(params, x, t_net, cond, network[0] if dropout else None)
    target = form.target(z0, z1, noise, time)
    return jnp.mean(jnp.square(pred - target)), {}

  return loss
