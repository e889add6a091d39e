from typing import NamedTuple

import numpy as np

from fbjax import trees


class State(NamedTuple):
  step: int
  params: dict


TREE = {"a": {0: {"b": 1.0}, 1: {"b": 2.0}}, "c": 3.0}


def test_leaves_by_path_are_the_tree_again():
  assert trees.flatten(TREE) == {"a/0/b": 1.0, "a/1/b": 2.0, "c": 3.0}
  assert trees.nest(trees.flatten(TREE)) == TREE


def test_fields_keys_and_places_are_written_alike():
  state = State(5, {"layers": [np.zeros(1), {"w": np.ones(2)}]})
  assert list(trees.paths(state)) == ["step", "params/layers/0", "params/layers/1/w"]
  assert trees.paths(TREE) == trees.flatten(TREE)
  named = trees.map_paths(lambda path, x: (path, np.size(x)), state)
  assert named == State(
    ("step", 1), {"layers": [("params/layers/0", 1), {"w": ("params/layers/1/w", 2)}]}
  )
