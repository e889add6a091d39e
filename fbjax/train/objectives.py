"""Losses of `train.step`: functions of (params, frozen, batch, keys)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fbjax import checks, errors
from fbjax.bridge import alignment, grids, initialise, prediction, process
from fbjax.systems import base, formulation
from fbjax.train import step


def bridge_loss(
  system: base.System,
  form: formulation.Formulation,
  *,
  shift: float = 1.0,
  weight_like: str | None = None,
  regression: float = 0.0,
  drop_text: float = 0.0,
  drop_image: float = 0.0,
  drop_both: float = 0.0,
) -> step.LossFn:
  """Mean square of the network's error at a random time of the bridge.

  Args:
    system: the model.
    form: the bridge, the kind of prediction, and the alignment with a pretrained diffusion.
    shift: above 1 draws more times next to the prior, where all that the network knows is its
      conditions: a uniform u becomes shift u / (1 + (shift - 1) u) (arXiv:2403.03206, eq. 23).
    weight_like: weight the error over time as if this kind were predicted; "z0" makes the loss the
      mean square error of the clean latent. None leaves the weight at 1, as published.
    regression: weight of the mean square error of the coarse video that a neural prior, trained
      along, tells the network (0 trains by the denoising loss alone).
    drop_text: share of clips that lose their text alone.
    drop_image: share of clips that lose their image condition alone.
    drop_both: share of clips that lose both.

  Raises:
    UserError: when the shares are negative or make more than 1; when something is dropped that the
      system is not told; for other numbers that make no sense.
    ValueError: for a kind that the process cannot be weighted by.
  """
  checks.number("config.objective.shift", shift, above=0, most=1e6)
  checks.number("config.objective.regression", regression, least=0)
  shares = {"drop_text": drop_text, "drop_image": drop_image, "drop_both": drop_both}
  for name, share in shares.items():
    checks.number(f"config.objective.{name}", share, least=0, most=1)
    wanted = {"drop_text": ["text", "label"]}.get(name, ["image"])
    if share and not system.conditions.intersection(wanted):
      raise errors.UserError(
        f"config.objective.{name}={share} drops a condition that this system has not: it is told "
        f"{' and '.join(sorted(system.conditions)) or 'nothing'} beside the given frame, which is "
        f"never dropped; set config.objective.{name}=0"
      )
  if sum(shares.values()) > 1:
    raise errors.UserError(
      f"config.objective.drop_text={drop_text}, drop_image={drop_image} and drop_both={drop_both} are "
      "shares of the clips: together at most 1"
    )
  # Here rather than while compiling: whether the process knows both kinds.
  prediction.loss_weight(form.predict, weight_like or form.predict, form.process, np.array([0.5]))

  def loss(
    params: base.Params, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
  ) -> tuple[jax.Array, step.Metrics]:
    purposes = jax.vmap(lambda key: jax.random.split(key, 5))(keys)
    encoding, timing, noising, dropping, network = (purposes[:, i] for i in range(5))
    z0, z1, cond = system.encode(frozen, batch, encoding)
    time = jax.vmap(lambda key: grids.draw(key, 1, form.steps)[0])(timing)
    time = grids.towards_prior(time, shift)
    if form.process is form.diffusion:  # the baseline: a diffusion's times are its indices
      time = grids.index_of(time, form.steps)
    noise = jax.vmap(lambda key: jax.random.normal(key, z0.shape[1:]))(noising)
    zt = process.sample_marginal(form.process, z0, z1, time, noise)
    x, t_net = alignment.align(form.process, form.diffusion, zt, z1, time, form.rule, form.steps)

    draw = jax.vmap(jax.random.uniform)(dropping)
    text, image = dropped(draw, drop_text, drop_image, drop_both)
    weights = system.weights(params, frozen)
    cond = system.embed(weights, system.drop(cond, text, image))

    pred = system.denoise(weights, x, t_net, cond, network)
    rescale = None if form.diffusion is None else form.diffusion.rescale_at(t_net)
    if form.pretrained is not None:
      pred = initialise.align_output(
        form.pretrained, form.predict, form.process, pred, zt, z1, time, rescale
      )
    target = prediction.target(form.predict, form.process, z0, z1, noise, time, rescale)
    error = jnp.square(pred - target)
    if weight_like is not None:
      weight = prediction.loss_weight(form.predict, weight_like, form.process, time)
      error = process.per_clip(weight, error) * error
    if not regression:
      return jnp.mean(error), {}
    coarse = jnp.mean(jnp.square(cond.coarse - z0))
    return jnp.mean(error) + regression * coarse, {"coarse": coarse}

  return loss


def dropped(
  draw: Float[Array, "b"], drop_text: float, drop_image: float, drop_both: float
) -> tuple[Bool[Array, "b"], Bool[Array, "b"]]:
  """Masks (text, image) of dropped conditions, from a uniform draw a clip."""
  text = draw < drop_text + drop_both
  image = (draw >= drop_text) & (draw < drop_text + drop_both + drop_image)
  return text, image
