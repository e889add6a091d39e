import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbjax.evaluation import fvd


def interpolated(clip, h, w):
  torch = pytest.importorskip("torch")
  x = torch.from_numpy(clip.astype(np.float32)).permute(0, 3, 1, 2)
  x = torch.nn.functional.interpolate(x, size=(h, w), mode="bilinear", align_corners=False)
  return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [(32, 32), (240, 320), (256, 256), (300, 225), (720, 405)])
def test_frames_are_what_torch_makes_of_them(size):
  h, w = size
  clip = np.random.default_rng(0).integers(0, 256, (2, h, w, 3), np.uint8)
  squeezed = jax.jit(fvd.squeezed)(jnp.asarray(clip)[None])[0]
  np.testing.assert_allclose(squeezed, interpolated(clip, 224, 224) / 127.5 - 1, atol=2e-5)

  # The longer side as published: rounded up, cropped at the integer half.
  scale = 224 / min(h, w)
  target = (224, int(np.ceil(w * scale))) if h < w else (int(np.ceil(h * scale)), 224)
  x = interpolated(clip, *target) / 127.5 - 1
  top, left = (target[0] - 224) // 2, (target[1] - 224) // 2
  cropped = jax.jit(fvd.cropped)(jnp.asarray(clip)[None])[0]
  np.testing.assert_allclose(cropped, x[:, top : top + 224, left : left + 224], atol=2e-5)
