import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import networks

import golden
from fbjax import port
from fbjax.models import i3d
from fbjax.port import table


@pytest.fixture(scope="module")
def published(shared):
  """Arrays, weights and the video of the golden, enlarged as it was there."""
  manifest, arrays = golden.manifest(shared, "i3d"), golden.arrays(shared, "i3d")
  params = port.to_flax("i3d", golden.weights(manifest), manifest["config"])
  video = arrays["video_u8"].transpose(0, 2, 3, 4, 1) / np.float32(127.5) - 1
  shape = (*video.shape[:2], 224, 224, 3)
  video = np.asarray(jax.image.resize(jnp.asarray(video), shape, "bilinear"))
  corner = arrays["x_corner"].transpose(0, 2, 3, 1)
  assert np.abs(video[:, 0, :8, :8] - corner).max() < 1e-6
  return arrays, params, video


def forward(**options):
  return networks.call(networks.split(i3d.I3D, **options)[0])


def test_logits_and_features_are_the_published_ones(published):
  arrays, params, video = published
  run = forward()
  features, logits = run(params, video)
  assert golden.error(features[:, 0], arrays["features"][:, :, 0, 0, 0]) < 1e-4
  assert golden.error(logits, arrays["logits"].swapaxes(1, 2)) < 1e-4
  _, logits = run(params, video[:, :10])
  assert golden.error(logits, arrays["logits_T10"].swapaxes(1, 2)) < 1e-4


def test_the_copy_of_videogpt_has_another_epsilon(published):
  arrays, params, video = published
  features, logits = forward(epsilon=1e-5)(params, video)
  assert golden.error(features[:, 0], arrays["features_videogpt"][:, :, 0, 0, 0]) < 1e-4
  assert golden.error(logits.mean(1), arrays["logits_videogpt"]) < 1e-4
  assert golden.error(logits.mean(1), arrays["logits"][..., 0]) > 1e-3


def test_the_table_names_exactly_the_leaves_of_the_model(shared):
  ours = networks.shapes(i3d.I3D)
  assert {x.path: x.target for x in table.layout("i3d", {}).leaves({})} == ours
  keys = [key for key, *_ in golden.manifest(shared, "i3d")["keys"]]
  assert table.recognize(keys) == {"": "i3d"}
