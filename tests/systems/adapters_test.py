import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ucf101_bridge, webvid_saf, webvid_saf_cogvideox
from fbjax import build
from fbjax.systems import adapters, base, networks


class Linear(networks.NetworkSet):
  """Two kernels; its output is x through both."""

  def __init__(self):
    super().__init__({})

  def init(self, key):
    one, two = jax.random.split(key)
    return {
      "net": {
        "q": {"kernel": jax.random.normal(one, (4, 5)), "bias": jnp.zeros(5)},
        "last": {0: {"kernel": jax.random.normal(two, (5, 3))}},
      }
    }

  def init_frozen(self, key):
    return {"vae": jnp.ones(2)}

  def denoise(self, weights, x):
    net = weights["net"]
    return (x @ net["q"]["kernel"] + net["q"]["bias"][None]) @ net["last"][0]["kernel"]

  def encode(self, frozen, batch, keys): ...
  def drop(self, cond, text, image): ...
  def embed(self, weights, cond): ...
  def decode(self, frozen, z): ...


@pytest.fixture
def linear():
  return Linear()


def run(system, params, frozen):
  return system.denoise(system.weights(params, frozen), jnp.ones((2, 4)))


@pytest.mark.parametrize(
  "adapt",
  [
    lambda s: adapters.matching(s, pattern="last/0/kernel$"),
    lambda s: adapters.lora(s, rank=2, pattern="kernel$"),
  ],
)
def test_an_adapted_system_starts_as_the_whole_one(linear, adapt):
  system = adapt(linear)
  assert isinstance(system, base.System)
  whole = linear.init(jax.random.key(0))
  params, kept = system.split(whole, jax.random.key(1))
  frozen = {"base": kept}
  np.testing.assert_allclose(run(system, params, frozen), run(linear, whole, {}), rtol=1e-6)
  structure = jax.tree.structure(system.weights(params, frozen))
  assert structure == jax.tree.structure(whole)


def test_only_what_matches_trains(linear):
  system = adapters.matching(linear, pattern="last")
  params, kept = system.split(linear.init(jax.random.key(0)), jax.random.key(1))
  assert set(params) == {"net/last/0/kernel"}
  assert set(kept) == {"net/q/kernel", "net/q/bias"}


def test_low_rank_additions_are_the_product_of_two(linear):
  system = adapters.lora(linear, rank=2, pattern="q/kernel$", scale=4.0)
  whole = linear.init(jax.random.key(0))
  params, kept = system.split(whole, jax.random.key(1))
  assert {k: x.shape for k, x in params.items()} == {
    "net/q/kernel/a": (4, 2),
    "net/q/kernel/b": (2, 5),
  }
  params["net/q/kernel/b"] = jnp.ones((2, 5))
  merged = system.weights(params, {"base": kept})
  expected = whole["net"]["q"]["kernel"] + 2 * params["net/q/kernel/a"] @ jnp.ones((2, 5))
  np.testing.assert_allclose(merged["net"]["q"]["kernel"], expected, rtol=1e-6)
  np.testing.assert_array_equal(
    merged["net"]["last"][0]["kernel"], whole["net"]["last"][0]["kernel"]
  )


def test_gradients_reach_what_trains_and_nothing_else(linear):
  system = adapters.lora(linear, rank=1, pattern="q/kernel$")
  params, kept = system.split(linear.init(jax.random.key(0)), jax.random.key(1))
  grads = jax.grad(lambda p: jnp.sum(run(system, p, {"base": kept})))(params)
  # b is zero, so a cannot matter yet.
  assert np.abs(grads["net/q/kernel/b"]).min() > 1e-6
  assert np.abs(grads["net/q/kernel/a"]).max() == 0


def test_a_pattern_that_matches_nothing_is_refused(linear):
  with pytest.raises(ValueError, match="config.trainable.pattern='nowhere' matches no weight"):
    adapters.matching(linear, pattern="nowhere").init(jax.random.key(0))


@pytest.mark.parametrize(
  ("module", "expected"),
  [
    (webvid_saf, {"attn1/q", "attn1/k", "attn1/v", "attn1/out", "attn2/q", "attn2/k", "attn2/v"}),
    (ucf101_bridge, {"spatial/qkv", "spatial/out", "temporal/qkv", "temporal/out"}),
    (webvid_saf_cogvideox, {"attn/q", "attn/k", "attn/v", "attn/out"}),
  ],
)
def test_low_rank_additions_go_to_the_attention_of_every_system(module, expected):
  config = module.get_config("smoke").to_dict()
  config["trainable"] = {"name": "lora", "rank": 2}
  system = build.make_system(config, build.make_tokenizer(config))
  trained = jax.eval_shape(system.init, jax.random.key(0))
  layers = {"/".join(name.split("/")[-4:-2]) for name in trained}
  assert expected <= layers and layers <= expected | {"attn2/out", "attn/q", "attn/kv", "attn/out"}
