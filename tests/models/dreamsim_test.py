import math

import numpy as np
from models import networks, references

import golden
from fbjax import port, trees
from fbjax.models import dreamsim
from fbjax.port import table


def test_embeddings_are_those_of_the_ensemble():
  sizes = references.DREAMSIM
  leaves = table.layout("dreamsim", {}).leaves(sizes)
  tensors = {x.key: references.weight(x.key, x.shape) for x in leaves}
  # What DINO has besides is left over.
  tensors["extractor_list.0.model.norm.weight"] = np.ones(sizes["width"], np.float32)
  tensors["extractor_list.0.proj.mlp.0.bias"] = np.ones(7, np.float32)
  params, report = port.fill("dreamsim", tensors, sizes)
  assert len(report.left) == 2
  params = trees.nest({path: np.asarray(x) for path, x in trees.flatten(params).items()})
  forward = networks.call(networks.split(dreamsim.DreamSim, **sizes)[0])
  image = references.images(2, sizes["size"]).astype(np.float32) / 255
  found = forward(params, image)
  with np.load(references.FILE) as theirs:
    assert golden.error(found, theirs["dreamsim"]) < 1e-4
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_the_table_names_exactly_the_leaves_of_the_model():
  leaves = table.layout("dreamsim", {}).leaves({})
  lazy, _ = port.fill(
    "dreamsim", {x.key: np.broadcast_to(np.float32(0), x.shape) for x in leaves}, {}
  )
  ours = networks.shapes(dreamsim.DreamSim)
  assert {path: x.shape for path, x in trees.flatten(lazy).items()} == ours
  assert sum(map(math.prod, ours.values())) == 3 * 85_798_656 + 2 * 768 * 512 + 2 * 768
