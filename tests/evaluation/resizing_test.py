import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from models import references

from fbjax.evaluation import clipsim, fid, pic, resizing
from fbjax.models import clip


@pytest.mark.parametrize("size", [(256, 256), (240, 320), (100, 64), (224, 300)])
def test_bicubic_is_pils_to_a_grey_level(size):
  h, w = size
  image = references.images(1, max(size))[0, :h, :w]
  theirs = np.asarray(PIL.Image.fromarray(image).resize((224, 224), PIL.Image.BICUBIC))
  ours = np.asarray(resizing.bicubic(jnp.asarray(image, jnp.float32), 224, 224))
  # What lies between two grey levels PIL rounds by the last bit of its coefficients, on each axis.
  off = np.abs(ours - theirs)
  assert off.max() <= 2 and (off > 0).mean() < (0.02 if min(size) < 224 else 1e-3)
  np.testing.assert_allclose(pic.prepare(jnp.asarray(image)[None])[0], ours / 255, atol=1e-6)


@pytest.mark.parametrize(("size", "box"), [((240, 320), (37, 0)), ((320, 240), (0, 37))])
def test_clip_is_shown_the_centre(size, box):
  """Shorter side to 224, the other in proportion, rounded down; half of what is over cut at each side."""
  h, w = size
  image = references.images(1, 320)[0, :h, :w]
  wide = PIL.Image.fromarray(image).resize((298, 224) if h < w else (224, 298), PIL.Image.BICUBIC)
  theirs = np.asarray(wide.crop((*box, box[0] + 224, box[1] + 224))) / 255
  theirs = (theirs - np.array(clip.MEAN)) / np.array(clip.STD)
  ours = jax.jit(clipsim.prepare)(jnp.asarray(image)[None])[0]
  np.testing.assert_allclose(ours, theirs, atol=1.01 / 255 / min(clip.STD))


def test_frames_of_fid_are_torchs():
  torch = pytest.importorskip("torch")
  image = references.images(1, 320)[:, :240]
  x = torch.as_tensor(image).permute(0, 3, 1, 2).float() / 255
  x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
  theirs = (2 * x - 1).permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(jax.jit(fid.prepare)(jnp.asarray(image)), theirs, atol=2e-5)
