import numpy as np
from models import networks

import golden
from fbjax import port
from fbjax.models import resampler

TOY = dict(c_in=5, c_out=6, width=8, depth=2, heads=3, head_dim=4, queries=2, frames=3)


def test_resampler_matches_the_published_one(shared):
  manifest, arrays = (
    golden.manifest(shared, "resampler_tiny"),
    golden.arrays(shared, "resampler_tiny"),
  )
  params = port.to_flax("resampler", golden.weights(manifest), manifest["config"])
  sizes = port.arguments("resampler", manifest["config"])
  out = networks.call(networks.split(resampler.Resampler, **sizes)[0])(params, arrays["x"])
  assert out.shape == (2, 4, 16, 32)
  assert golden.error(out.reshape(2, 64, 32), arrays["out"]) < 1e-4


def test_every_frame_gets_tokens_of_its_own_from_all_of_the_image():
  params = networks.params(resampler.Resampler, **TOY)
  forward = networks.call(networks.split(resampler.Resampler, **TOY)[0])
  image = np.random.default_rng(0).standard_normal((2, 7, 5), np.float32)
  out = forward(params, image)
  assert out.shape == (2, 3, 2, 6)
  assert np.abs(out[:, 0] - out[:, 1]).max() > 1e-2
  np.testing.assert_allclose(forward(params, image[:, ::-1]), out, atol=1e-5)
  image[0, 6] += 1
  changed = forward(params, image)
  assert np.abs(changed[0] - out[0]).reshape(6, 6).max(1).min() > 1e-4
  np.testing.assert_allclose(changed[1], out[1], atol=1e-6)
