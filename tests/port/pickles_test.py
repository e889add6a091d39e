import collections
import pickle

import ml_dtypes
import numpy as np
import pytest
from port import forge

from fbjax.port import limits, pickles

PLAIN = {"a": [1, 2.5, None, True], "b": ("x", b"y", {"c": (1, 2, 3, 4)}), "d": 2**70, "e": "ü猫"}
OWN = (pickles.Global, pickles.Call, pickles.Outside)


def inside(tree):
  """Every object in a tree."""
  yield tree
  match tree:
    case dict():
      below = list(tree.values())
    case list() | tuple():
      below = tree
    case pickles.Call():
      below = [tree.what, *tree.args, tree.items, tree.state]
    case pickles.Outside():
      below = [tree.id]
    case _:
      below = []
  for x in below:
    yield from inside(x)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_are_what_pickle_makes_of_them(protocol):
  again = pickle.loads(pickle.dumps(PLAIN, protocol))
  if protocol < 3:  # in which bytes are a call of codecs.encode
    again["b"] = again["b"][::2]
    again = {**PLAIN, "b": PLAIN["b"][::2]}
  assert pickles.load(pickle.dumps(again, protocol))[0] == again


def test_shared_and_endless_objects_stay_so():
  tree = {"x": [1]}
  tree["y"], tree["self"] = tree["x"], tree
  loaded, _ = pickles.load(pickle.dumps(tree))
  assert loaded["self"] is loaded and loaded["x"] is loaded["y"]


@pytest.mark.parametrize(
  "hostile",
  [
    b"cos\nsystem\n" + forge.text("touch /tmp/fbjax_bomb") + b"\x85R",
    b"(cos\nsystem\n" + forge.text("touch /tmp/fbjax_bomb") + b"o",
    b"cbuiltins\neval\n" + forge.text("1/0") + b"\x85\x81",
    b"cbuiltins\neval\n" + forge.text("1/0") + b"\x85}\x92",
    forge.text("os") + forge.text("system") + b"\x93" + forge.text("false") + b"\x85R",
    # __setstate__ of a dtype, attributes of a class, items and elements of a function
    b"ctorch\nBFloat16Storage\n(K\x03" + forge.text("<") + b"NNNK\x01K\x01K\x00tb",
    b"cml_dtypes\nbfloat16\n}" + forge.text("x") + b"K\x01sb",
    b"cnumpy\ndtype\n" + forge.text("x") + b"K\x01s",
    b"cnumpy\ndtype\n(" + forge.text("x") + b"K\x01u",
    b"cnumpy\ndtype\nK\x01a",
    b"ccollections\nOrderedDict\n(K\x01K\x02e",
    b"ccollections\nOrderedDict\n)R}" + forge.text("__class__") + b"K\x01sb",
  ],
)
def test_nothing_is_looked_up_called_or_changed(hostile, tmp_path):
  before = vars(collections.OrderedDict).keys(), np.dtype(ml_dtypes.bfloat16).itemsize
  tree, _ = pickles.load(forge.pickle(hostile))
  plain = (dict, list, tuple, str, bytes, int, float, bool, type(None))
  assert all(type(x) in (*OWN, *plain) for x in inside(tree))
  assert (vars(collections.OrderedDict).keys(), np.dtype(ml_dtypes.bfloat16).itemsize) == before


def test_what_was_asked_for_is_named():
  _, names = pickles.load(pickle.dumps([collections.deque([1]), np.float32(1)]))
  assert "collections.deque" in names and any("numpy" in name for name in names)


@pytest.mark.parametrize("place", [b"r" + b"\xff\xff\xff\x7f", b"p" + b"9" * 300 + b"\n"])
def test_a_far_place_in_the_memo_costs_nothing(place):
  with forge.at_most(2**20):
    pickles.load(forge.pickle(b"}" + place))


def test_deep_objects_need_no_deep_stack():
  tree, _ = pickles.load(forge.pickle(b")" + b"\x85" * 100_000))
  assert isinstance(tree, tuple)
  del tree


def test_keys_that_are_no_text_are_left_out():
  """The hash of the key takes 2**60 steps."""
  key = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60
  tree, _ = pickles.load(forge.pickle(b"}(" + key + b"K\x01" + forge.text("a") + b"K\x02u"))
  assert tree == {"a": 2}


def test_what_no_checkpoint_needs_is_refused(monkeypatch):
  with pytest.raises(limits.Refused, match="EXT1"):
    pickles.load(forge.pickle(b"\x82\x01"))
  with pytest.raises(limits.Refused, match="calls what has no name"):
    pickles.load(forge.pickle(b"))\x93"))
  monkeypatch.setattr(limits, "OPCODES", 100)
  with pytest.raises(limits.Refused, match="more than 100 steps"):
    pickles.load(forge.pickle(b"}" * 200))
