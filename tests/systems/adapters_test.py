import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from configs import ucf101_bridge, webvid_saf, webvid_saf_cogvideox
from fbjax import build, errors, trees
from fbjax.systems import adapters, base, networks


class Linear(toy.Uncached, networks.NetworkSet):
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


def adapted(linear, **changes):
  options = {"added": ["net/q/kernel"], "whole": ["net/q/bias"], "rank": 2} | changes
  system = adapters.LoRA(linear, **options)
  assert isinstance(system, base.System)
  return system, system.init(jax.random.key(1)), system.init_frozen(jax.random.key(1))


def test_a_system_with_additions_starts_as_the_whole_one(linear):
  system, params, frozen = adapted(linear)
  whole = linear.init(jax.random.key(1))
  np.testing.assert_allclose(run(system, params, frozen), run(linear, whole, {}), rtol=1e-6)
  assert jax.tree.structure(system.weights(params, frozen)) == jax.tree.structure(whole)


def test_additions_and_whole_leaves_train_and_all_others_are_frozen(linear):
  _, params, frozen = adapted(linear)
  shapes = {path: x.shape for path, x in trees.flatten(params).items()}
  assert shapes == {
    "net/q/bias": (5,),
    "net/q/kernel/a": (4, 2),
    "net/q/kernel/b": (2, 5),
  }
  assert trees.flatten(frozen).keys() == {"vae", "base/net/q/kernel", "base/net/last/0/kernel"}


def test_low_rank_additions_are_the_product_of_two(linear):
  system, params, frozen = adapted(linear, scale=4.0)
  params["net"]["q"]["kernel"]["b"] = jnp.ones((2, 5))
  merged = system.weights(params, frozen)
  kept = frozen["base"]["net"]
  expected = kept["q"]["kernel"] + 2 * params["net"]["q"]["kernel"]["a"] @ jnp.ones((2, 5))
  np.testing.assert_allclose(merged["net"]["q"]["kernel"], expected, rtol=1e-6)
  np.testing.assert_array_equal(merged["net"]["last"][0]["kernel"], kept["last"][0]["kernel"])


def test_a_small_addition_to_a_bfloat16_kernel_is_not_rounded_away(linear):
  system, params, frozen = adapted(linear)
  frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen)
  before = system.weights(params, frozen)["net"]["q"]["kernel"]
  params["net"]["q"]["kernel"]["b"] += 1e-5
  after = system.weights(params, frozen)["net"]["q"]["kernel"]
  assert np.abs(after - before).max() > 1e-6


def test_gradients_reach_what_trains(linear):
  system, params, frozen = adapted(linear)
  grads = jax.grad(lambda p: jnp.sum(run(system, p, frozen)))(params)["net"]["q"]
  # b is zero, so a cannot matter yet.
  assert np.abs(grads["kernel"]["b"]).min() > 1e-6 and np.abs(grads["bias"]).min() > 1e-6
  assert np.abs(grads["kernel"]["a"]).max() == 0


def test_patterns_name_leaves_and_what_is_new():
  names = ["unet/q/kernel", "unet/k/kernel", "unet/q/bias"]
  assert adapters.chosen(names, ("/q/",), set()) == ["unet/q/kernel", "unet/q/bias"]
  assert adapters.chosen(names, ("new", "k/kernel"), {"unet/q/bias"}) == names[1:]
  assert adapters.chosen(names, ("new",), set()) == []


def test_a_pattern_that_names_nothing_is_refused():
  with pytest.raises(
    errors.UserError, match="trainable.lora has 'nowhere', which matches no weight"
  ):
    adapters.chosen(["unet/kernel"], ("nowhere",), set(), "lora")


def test_additions_to_what_is_no_kernel_are_refused(linear):
  with pytest.raises(errors.UserError, match="names net/q/bias, which is no kernel"):
    adapters.LoRA(linear, added=["net/q/bias"], whole=[], rank=2)


def test_biases_of_stacked_blocks_are_no_kernel():
  system = build.make_networks(ucf101_bridge.get_config("smoke").to_dict(), None)
  name = "pairs/spatial/qkv/bias"
  assert len(system.shapes("latte")[name].shape) == 2
  with pytest.raises(errors.UserError, match="qkv/bias, which is no kernel"):
    adapters.LoRA(system, added=[f"latte/{name}"], whole=[], rank=2)


def test_a_leaf_that_starts_anew_and_would_never_train_is_refused():
  adapters.check_anew(["a", "b"], {"a"})
  with pytest.raises(errors.UserError, match="1 weights start anew and would never train, a among"):
    adapters.check_anew(["b"], {"a"})


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
  config["start"] = {}
  config["trainable"] = {"lora": (adapters.ATTENTION,), "whole": (adapters.NEW,), "rank": 2}
  system = build.make_system(config, build.make_tokenizer(config))
  trained = trees.flatten(jax.eval_shape(system.init, jax.random.key(0)))
  layers = {"/".join(name.split("/")[-4:-2]) for name in trained}
  assert expected <= layers and layers <= expected | {"attn2/out", "attn/q", "attn/kv", "attn/out"}
