import jax
import jax.numpy as jnp
import numpy as np

from fbjax.systems import codecs


def test_pixels_come_back_and_stay_in_their_block():
  video = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 4, 3)).astype(np.float32)
  codec = codecs.Pixels(patch=2, scale=1.5)
  z = codec.encode({}, jnp.asarray(video), jax.random.split(jax.random.key(0), 2))
  assert z.shape == (2, 3, 4, 2, 12) == (2, 3, 4, 2, codec.channels)
  np.testing.assert_allclose(z[0, 0, 1, 0].reshape(2, 2, 3), 1.5 * video[0, 0, 2:4, 0:2], rtol=1e-6)
  np.testing.assert_allclose(codec.decode({}, z), video, rtol=1e-6)
