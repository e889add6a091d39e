"""Where the leaves of a run come from: a folder, zeros, a draw, or the folder and zeros."""

import jax
import numpy as np
import pytest
from flax import nnx

import toy
from fbjax import build, errors, loading, sharding, start, trees
from fbjax import weights as weights_lib
from fbjax.systems import networks


class Net(nnx.Module):
  """Kernels of a network that grew by input channels, a stride embedding and an image branch."""

  def __init__(self, c_in: int, *, rngs):
    self.enter = nnx.Linear(c_in, 8, rngs=rngs)
    self.stride = nnx.Linear(8, 8, rngs=rngs)
    self.image = nnx.Linear(8, 8, rngs=rngs)
    self.out = nnx.Linear(8, 3, rngs=rngs)


RULES = {"net": {"new": ("stride/.*",), "zero": ("image/.*",), "widen": ("enter/kernel",)}}


def system(c_in=6):
  spec = networks.NetworkSpec(Net, {"c_in": c_in}, network="net", trained=True)
  return networks.NetworkSet({"net": spec})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What a file of the narrower network has held."""
  path = str(tmp_path_factory.mktemp("weights"))
  held = trees.flatten(system(4).init(jax.random.key(7))["net"])
  held = {f"networks/net/{k}": np.asarray(x) for k, x in held.items() if "stride" not in k}
  held = {path: x for path, x in held.items() if "image" not in path}
  weights_lib.write(path, held, lambda path, x: None, {"parts": {}})
  return path


def load(folder, rules, seed=0, mesh=None):
  made = system()
  chosen = start.sources(made, folder, rules)
  mesh = mesh or sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  key = jax.random.key(seed)
  like = jax.eval_shape(made.init, key)
  return trees.flatten(start.load(made.init, like, chosen, folder, mesh, key)), chosen


def test_without_a_folder_what_is_zero_is_zero_and_all_else_is_new():
  flat, chosen = load("", RULES)
  assert {path for path in flat if not np.any(flat[path])} >= {
    "net/image/kernel",
    "net/image/bias",
  }
  assert np.any(flat["net/stride/kernel"]) and np.any(flat["net/enter/kernel"])
  assert set(chosen.values()) == {"zero", "new"}


def test_each_leaf_comes_from_where_the_rules_say(folder):
  flat, chosen = load(folder, RULES)
  there = {path: weights_lib.read_leaf(folder, path) for path in weights_lib.stored(folder)}
  np.testing.assert_array_equal(flat["net/out/kernel"], there["networks/net/out/kernel"])
  np.testing.assert_array_equal(flat["net/enter/kernel"][:4], there["networks/net/enter/kernel"])
  assert not np.any(flat["net/enter/kernel"][4:]) and not np.any(flat["net/image/kernel"])
  fresh = system().init(jax.random.key(0))["net"]["stride"]["kernel"]
  np.testing.assert_array_equal(flat["net/stride/kernel"], fresh)
  assert chosen["net/enter/kernel"] == "widen" and chosen["net/out/kernel"] == "stored"


def test_the_seed_changes_what_is_new_and_nothing_else(folder):
  one, two = (load(folder, RULES, seed)[0] for seed in (0, 1))
  differing = {path for path in one if np.any(one[path] != two[path])}
  assert differing == {"net/stride/kernel"}


def test_the_start_is_the_same_on_any_mesh(folder):
  one, two = (load(folder, RULES, 3, mesh)[0] for mesh in (None, sharding.make_mesh(2, 4)))
  for path in one:
    np.testing.assert_array_equal(one[path], two[path])
  assert {x.sharding.mesh.size for x in two.values()} == {8}


def test_one_folder_serves_other_rules(folder):
  redrawn = {"net": {"new": ("stride/.*", "enter/kernel"), "zero": ("image/.*",)}}
  flat, chosen = load(folder, redrawn)
  assert chosen["net/enter/kernel"] == "new" and np.all(np.any(flat["net/enter/kernel"], axis=1))


@pytest.mark.parametrize(
  ("missing", "line"),
  [
    ("new", "missing   net/stride/kernel"),
    ("zero", "missing   net/image/bias"),
    ("widen", "misshapen net/enter/kernel: (4, 8) there, (6, 8) in the config"),
  ],
)
def test_a_leaf_that_no_rule_names_is_listed(folder, missing, line):
  rules = {"net": {k: v for k, v in RULES["net"].items() if k != missing}}
  with pytest.raises(errors.UserError) as error:
    start.sources(system(), folder, rules)
  assert line in str(error.value) and "config.start" in str(error.value)


def test_what_starts_anew_is_everything_that_the_folder_lacks(folder):
  made = system()
  chosen = start.sources(made, folder, RULES)
  anew = start.started_anew(made, chosen, folder, RULES)
  names = ("enter/kernel", "stride/kernel", "stride/bias", "image/kernel", "image/bias")
  assert anew == {f"net/{name}" for name in names}
  # Without a folder nothing is pretrained, and the rules tell what would be new.
  chosen = start.sources(made, "", RULES)
  assert start.started_anew(made, chosen, "", RULES) == anew
  assert start.started_anew(made, chosen, "", {}) == set()


@pytest.mark.parametrize(
  ("rules", "sentence"),
  [
    ({"nett": {}}, "config.start has 'nett', which is no network of this system; it has net"),
    ({"net": {"fresh": ()}}, "config.start.net has fresh; it takes new, zero, widen"),
    ({"net": "enter"}, "config.start.net is 'enter'; expected new, zero, widen below it"),
    ({"net": {"new": "("}}, "config.start.net.new has '[(]', which is no regular expression"),
    ({"net": {"new": 3}}, "config.start.net.new is 3; expected a list of strings"),
    ({"net": {"new": ("(',",)}}, "config.start.net.new has .*, which is no regular expression"),
  ],
)
def test_rules_that_do_not_exist_are_named(rules, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    start.check_rules(rules, system())


def test_a_pattern_by_itself_is_a_list_of_one(folder):
  alone = {"net": {kind: r"(x|stride/.*|image/.*|enter/kernel)" for kind in ("new", "widen")}}
  listed = {"net": {kind: (pattern,) for kind, pattern in alone["net"].items()}}
  assert start.sources(system(), folder, alone) == start.sources(system(), folder, listed)


def test_a_folder_without_weights_says_how_to_make_them(tmp_path):
  with pytest.raises(errors.UserError, match="holds no weights: .*--mode=port --out="):
    start.sources(system(), str(tmp_path), RULES)


def test_the_digest_tells_values_apart(tmp_path):
  digests = []
  for i, value in enumerate((1.0, 1.0, 2.0)):
    folder = str(tmp_path / str(i))
    leaves = {"networks/n/w": np.full((3, 2), value)}
    weights_lib.write(folder, leaves, lambda path, x: None, {"parts": {}})
    digests.append(weights_lib.read_about(folder)["digest"])
  assert digests[0] == digests[1] != digests[2]


def test_a_training_finds_out_once_what_its_weights_start_from(monkeypatch):
  found, sources = [], start.sources

  def counted(*args):
    found.append(sources(*args))
    return found[-1]

  monkeypatch.setattr(start, "sources", counted)
  config = toy.config()
  system = build.make_system(config, build.make_tokenizer(config))
  build.make_optimizer(config, system)
  starting = loading.starting_weights(config, system, build.make_mesh(config))
  assert len(found) == 1 and set(found[0]) >= set(trees.flatten(starting.params()))
