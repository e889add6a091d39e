import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fbjax import errors, flops, port
from fbjax.systems import codecs, networks


def test_pixels_come_back_and_stay_in_their_block():
  video = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 4, 3)).astype(np.float32)
  codec = codecs.Pixels(patch=2, scale=1.5)
  z = codec.draw(codec.moments({}, jnp.asarray(video)), jax.random.split(jax.random.key(0), 2))
  assert z.shape == (2, 3, 4, 2, 12) == (2, 3, 4, 2, codec.channels)
  np.testing.assert_allclose(z[0, 0, 1, 0].reshape(2, 2, 3), 1.5 * video[0, 0, 2:4, 0:2], rtol=1e-6)
  np.testing.assert_allclose(codec.decode({}, z), video, rtol=1e-6)


def video_codec(**changed):
  sizes = {"c_latent": 4, "widths": (8, 8, 8), "blocks": 1, "groups": 4}
  return codecs.VideoAutoencoder(**sizes | changed)


def test_the_video_vae_is_tiled_as_the_config_says():
  """Larger tiles than the frame are no tiles; smaller ones change the latent."""
  video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 1, 32, 24, 3)), jnp.float32)
  frozen = jax.jit(networks.NetworkSet(video_codec().networks).init_frozen)(jax.random.key(1))
  whole, large, small = (
    jax.jit(video_codec(**options).moments)(frozen, video)["mean"]
    for options in ({"tiled": False}, {"tile": (48, 40)}, {"tile": (24, 20)})
  )
  np.testing.assert_array_equal(large, whole)
  assert small.shape == whole.shape and np.abs(small - whole).max() > 1e-3
  with pytest.raises(errors.UserError, match="codec.tile is 30x20 .* a multiple of 24 .* of 20"):
    video_codec(tile=(30, 20))


def test_a_clip_that_shows_one_frame_is_encoded_for_the_price_of_one():
  """The video VAE is causal, and repeats the first frame before it: all latent frames are the same."""
  codec, frames = video_codec(), 17
  frame = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
  frozen = jax.jit(networks.NetworkSet(codec.networks).init_frozen)(jax.random.key(1))
  still = jax.jit(lambda frozen, frame: codecs.still_moments(codec, frozen, frame, frames))
  whole = jax.jit(
    lambda frozen, frame: codec.moments(frozen, jnp.repeat(frame[:, None], frames, 1))
  )
  ours, theirs = still(frozen, frame), whole(frozen, frame)
  assert ours["mean"].shape == (2, 5, 4, 4, 4)
  for name, x in theirs.items():
    np.testing.assert_allclose(ours[name], x, atol=2e-6 * float(jnp.abs(x).max()))
  one, all_ = (flops.of(f.trace(frozen, frame).jaxpr).model for f in (still, whole))
  assert one < 0.15 * all_


def test_what_a_published_video_vae_says_can_be_set_and_is_what_the_network_gets():
  published = {
    "in_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "sample_height": 48,
    "sample_width": 80,
  }
  sizes = port.arguments("vae_video", published)
  codec = codecs.VideoAutoencoder(**{k: v for k, v in sizes.items() if k != "c_in"})
  assert dict(codec.networks["vae"].sizes) == sizes
  assert nnx.eval_shape(codec.networks["vae"].build, jax.random.key(0)).tile == (24, 40)


def test_a_length_that_would_not_come_back_has_no_latents():
  codec = video_codec()
  assert [codec.latent_frames(n) for n in (1, 9, 17, 5, 8)] == [1, 3, 5, None, None]


@pytest.mark.parametrize(
  ("make", "sentence"),
  [
    (lambda: codecs.Pixels(patch=0), "codec.patch is 0"),
    (lambda: codecs.Pixels(scale=0.0), "codec.scale is 0.0; expected a number above 0"),
    (lambda: codecs.Autoencoder(mult=()), r"codec.mult is \(\); expected a list"),
    (lambda: codecs.Autoencoder(at_once=0), "codec.at_once is 0"),
    (lambda: codecs.Autoencoder(scale=float("inf")), "codec.scale is inf"),
    (lambda: codecs.VideoAutoencoder(widths=(0, 8)), "codec.widths is"),
    (lambda: codecs.VideoAutoencoder(c_latent=0), "codec.c_latent is 0"),
    (
      lambda: video_codec(tile=(24, 20, 8)),
      r"codec.tile is \(24, 20, 8\); expected a whole number",
    ),
  ],
)
def test_numbers_of_a_codec_that_make_no_sense_are_named(make, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    make()
