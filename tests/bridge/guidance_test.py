"""Guidance: the formulas, and one batched call whose branches stay beside their clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.bridge import guidance, prediction, process


def preds(n, seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.standard_normal((4, 5, 6)), jnp.float32) for _ in range(n)]


TIME = jnp.asarray([0.1, 0.4, 0.6, 0.9], jnp.float32)


def test_text_guidance():
  cond, uncond = preds(2)
  guided = guidance.text(7.5)([cond, uncond], TIME)
  np.testing.assert_allclose(guided, uncond + 7.5 * (cond - uncond), rtol=1e-6)
  np.testing.assert_allclose(guidance.text(1.0)([cond, uncond], TIME), cond, atol=1e-6)


def test_two_scale_guidance():
  both, image, neither = preds(3)
  guided = guidance.two_scale(7.5, 2.0)([both, image, neither], TIME)
  want = neither + 2.0 * (image - neither) + 7.5 * (both - image)
  np.testing.assert_allclose(guided, want, rtol=1e-5, atol=1e-6)
  # Equal scales are plain guidance from neither to both.
  plain = guidance.text(3.0)([both, neither], TIME)
  np.testing.assert_allclose(
    guidance.two_scale(3.0, 3.0)([both, image, neither], TIME), plain, rtol=1e-4, atol=1e-5
  )


def test_rescale_restores_the_conditional_standard_deviation():
  cond, uncond = preds(2)
  std = lambda x: np.std(x, (1, 2))  # noqa: E731
  plain = guidance.text(7.5)([cond, uncond], TIME)
  np.testing.assert_allclose(
    std(guidance.text(7.5, 1.0)([cond, uncond], TIME)), std(cond), rtol=1e-5
  )
  half = guidance.text(7.5, 0.5)([cond, uncond], TIME)
  np.testing.assert_allclose(std(half), (std(plain) + std(cond)) / 2, rtol=1e-5)


def test_scales_may_depend_on_time():
  cosine = guidance.cosine(6.0)
  np.testing.assert_allclose(cosine(jnp.asarray([0.0, 1.0])), [7.0, 1.0], rtol=1e-6)
  assert np.all(np.diff(cosine(jnp.linspace(0, 1, 20))) <= 1e-6)
  limited = guidance.interval(7.5, 0.3, 0.7)
  np.testing.assert_array_equal(limited(TIME), [1, 7.5, 7.5, 1])
  np.testing.assert_allclose(guidance.interval(cosine, 0.0, 0.5)(TIME)[2:], 1)
  cond, uncond = preds(2)
  guided = guidance.text(limited)([cond, uncond], TIME)
  np.testing.assert_allclose(guided[0], cond[0], atol=1e-6)
  np.testing.assert_allclose(guided[1], uncond[1] + 7.5 * (cond[1] - uncond[1]), rtol=1e-6)


def test_all_branches_are_one_call_and_each_is_as_if_alone():
  calls = []

  def predict(x, t_net, cond):
    calls.append(x.shape)
    scale = (t_net + cond["y"])[:, None, None]
    return jnp.tanh(scale * x + cond["image"])

  x, a, b = preds(3)
  branches = [
    {"y": jnp.arange(4.0), "image": a},
    {"y": jnp.zeros(4), "image": a},
    {"y": -jnp.ones(4), "image": b},
  ]
  got = guidance.evaluate(predict, x, TIME, branches)
  assert calls == [(12, 5, 6)]
  for pred, cond in zip(got, branches, strict=True):
    np.testing.assert_allclose(pred, predict(x, TIME, cond), rtol=1e-6)


def test_branches_of_a_clip_stay_on_its_device():
  """Interleaved, a batch sharded over devices is stacked and split without communication."""
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  x, a, b = (jax.device_put(y, sharding) for y in preds(3))
  time = jax.device_put(TIME, sharding)

  @jax.jit
  def guided(x, time, a, b):
    pair = guidance.evaluate(lambda x, t, c: x * t[:, None, None] + c, x, time, [a, b])
    return guidance.text(7.5)(pair, time)

  program = guided.lower(x, time, a, b).compile().as_text()
  for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
    assert collective not in program


@pytest.mark.parametrize("kind", ["noise", "v", "psi", "velocity"])
def test_guiding_any_prediction_is_guiding_z0(kind):
  p = process.Gmax()
  cond, uncond, zt = preds(3)
  z1 = preds(1, seed=1)[0]
  combine = guidance.text(7.5)
  recover = lambda pred: prediction.recover(kind, p, pred, zt, z1, TIME)  # noqa: E731
  np.testing.assert_allclose(
    recover(combine([cond, uncond], TIME)),
    combine([recover(cond), recover(uncond)], TIME),
    rtol=1e-3,
    atol=1e-3,
  )
