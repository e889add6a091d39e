import jax.numpy as jnp
import numpy as np
import pytest
from models import networks, references

import golden
from fbjax import errors, port
from fbjax.models import c3d
from fbjax.port import table

TOY = {"width": 2, "hidden": 16, "classes": 5}


@pytest.fixture(scope="module")
def tensors():
  """In the names of Chainer."""
  found = {}
  for x in table.layout("c3d", {}).leaves(TOY):
    key = x.key.replace(".weight", "/W").replace(".bias", "/b")
    found[key] = references.weight(x.key, x.shape)
  return found | {"mean": 100 + 20 * found["mean"] / found["mean"].std()}


def reference(tensors, video):
  """The network as TGAN v2 describes it, in torch: "b 3 t h w" in [-1, 1] to logits."""
  torch = pytest.importorskip("torch")
  f = torch.nn.functional
  w = {key: torch.as_tensor(x) for key, x in tensors.items()}
  x = torch.as_tensor(video)
  b, c, t, *_ = x.shape
  frames = x.transpose(1, 2).flatten(0, 1)
  frames = f.interpolate(frames, size=(112, 112), mode="bilinear", align_corners=True)
  x = frames.unflatten(0, (b, t)).transpose(1, 2)
  x = x.flip(1) * 128 + 128 - w["mean"][None, :, :, 8:120, 8:120]
  for names, window in (
    (["1a"], (1, 2, 2)),
    (["2a"], 2),
    (["3a", "3b"], 2),
    (["4a", "4b"], 2),
    (["5a", "5b"], 2),
  ):
    for name in names:
      x = f.relu(f.conv3d(x, w[f"conv{name}/W"], w[f"conv{name}/b"], padding=1))
    x = f.max_pool3d(x, window, ceil_mode=True)
  x = x.flatten(1)
  for name in ("fc6", "fc7"):
    x = f.relu(f.linear(x, w[f"{name}/W"], w[f"{name}/b"]))
  return f.linear(x, w["fc8/W"], w["fc8/b"]).numpy()


def test_logits_are_those_of_the_network_in_torch(tensors):
  params = port.to_flax("c3d", tensors, TOY)
  forward = networks.call(networks.split(c3d.C3D, **TOY)[0])
  video = np.stack([references.images(16, 72, seed=s)[:, :40] for s in range(2)])
  video = video.astype(np.float32) / 127.5 - 1
  found = forward(params, video)
  assert golden.error(found, reference(tensors, video.transpose(0, 4, 1, 2, 3))) < 1e-4
  with pytest.raises(errors.UserError, match="clips of 16 frames, and these have 17"):
    forward(params, jnp.zeros((1, 17, 8, 8, 3)))


def test_the_table_names_exactly_the_leaves_of_the_model(tensors):
  leaves = table.layout("c3d", {}).leaves({})
  ours = networks.shapes(c3d.C3D)
  assert {x.path: x.target for x in leaves} == ours
  assert ours["dense/0/kernel"] == (8192, 4096)
  assert table.recognize(tensors) == {"": "c3d"}
