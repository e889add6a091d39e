import numpy as np
import pytest
from models import networks, references

import golden
from fbjax import port
from fbjax.models import inception
from fbjax.port import table


@pytest.fixture(scope="module")
def tensors():
  return {
    x.key: references.weight(x.key, x.shape) for x in table.layout("inception", {}).leaves({})
  }


def test_features_are_those_of_pytorch_fid(tensors):
  params = port.to_flax("inception", tensors, {})
  forward = networks.call(networks.split(inception.Inception)[0])
  image = references.images(2, 111).astype(np.float32) / 127.5 - 1
  with np.load(references.FILE) as theirs:
    assert golden.error(forward(params, image), theirs["inception"]) < 1e-4


def test_the_table_names_exactly_the_leaves_of_the_model(tensors):
  leaves = table.layout("inception", {}).leaves({})
  assert {x.path: x.target for x in leaves} == networks.shapes(inception.Inception)
  # Of the published file, 1,008 classes and the counters of the norms are left over.
  others = {"fc.weight": np.zeros((1008, 2048), np.float32), "fc.bias": np.zeros(1008, np.float32)}
  counter = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.zeros((), np.int64)}
  _, report = port.fill("inception", tensors | others | counter, {})
  assert set(report.left) == {*others, *counter}
  assert table.recognize(tensors) == {"": "inception"}
