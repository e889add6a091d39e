import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import networks

import golden
from fbjax import port
from fbjax.models import layers, vae_image

TOY = dict(c_in=3, c_latent=2, width=4, mult=(1, 2), blocks=1, groups=2)


@pytest.fixture(scope="module")
def toy():
  graph, _ = networks.split(vae_image.AutoencoderKL, **TOY)
  return graph, networks.params(vae_image.AutoencoderKL, **TOY)


def run(graph, method, params, x, **kwargs):
  return jax.jit(lambda params, x: getattr(nnx.merge(graph, params), method)(x, **kwargs))(
    params, x
  )


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_autoencoder_matches_the_published_one(shared, layout):
  name = f"vae_{layout}_tiny"
  manifest, arrays = golden.manifest(shared, name), golden.arrays(shared, name)
  params = port.to_flax("vae_image", golden.weights(manifest), manifest["config"])
  sizes = port.arguments("vae_image", manifest["config"])
  graph, _ = networks.split(vae_image.AutoencoderKL, **sizes)

  def ours(frames):
    return np.asarray(frames[:, 0]).transpose(0, 3, 1, 2)

  def theirs(x):
    return x.transpose(0, 2, 3, 1)[:, None]

  latent = run(graph, "encode", params, theirs(arrays["x"]))
  assert golden.error(ours(latent.mean), arrays["mean"]) < 1e-4
  assert golden.error(ours(latent.logvar), arrays["logvar"]) < 1e-4
  assert golden.error(ours(run(graph, "decode", params, theirs(arrays["z"]))), arrays["dec"]) < 1e-4
  if layout == "ldm":
    sample = latent.sample(jnp.asarray(theirs(arrays["posterior_noise"])))
    assert golden.error(ours(sample), arrays["sample"]) < 1e-4


def test_frames_do_not_meet_and_slices_of_frames_are_the_whole(toy):
  graph, params = toy
  video = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 4, 6, 3), np.float32))
  whole = run(graph, "encode", params, video)
  assert whole.mean.shape == (1, 5, 2, 3, 2)
  sliced = run(graph, "encode", params, video, at_once=2)
  for a, b in zip(whole, sliced, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  alone = run(graph, "encode", params, video[:, 3:4])
  np.testing.assert_allclose(alone.mean, whole.mean[:, 3:4], atol=1e-5)
  back = run(graph, "decode", params, whole.mean)
  assert back.shape == video.shape
  np.testing.assert_allclose(run(graph, "decode", params, whole.mean, at_once=2), back, atol=1e-5)


def test_slices_bound_the_memory(toy):
  graph, params = toy
  z = jnp.zeros((1, 16, 8, 8, 2))

  def temporary(**kwargs):
    f = jax.jit(lambda params, z: nnx.merge(graph, params).decode(z, **kwargs))
    return f.lower(params, z).compile().memory_analysis().temp_size_in_bytes

  assert temporary(at_once=2) < temporary() / 3


def test_the_latent_is_drawn_with_its_own_mean_and_deviation():
  rng = np.random.default_rng(0)
  mean, logvar = jnp.full(4, 2.0), jnp.log(jnp.full(4, 9.0))
  noise = jnp.asarray(rng.standard_normal((10_000, 4), np.float32))
  drawn = jax.vmap(lambda n: vae_image.Gaussian(mean, logvar).sample(n))(noise)
  np.testing.assert_allclose(drawn.mean(0), mean, atol=0.1)
  np.testing.assert_allclose(drawn.std(0), 3, rtol=0.03)


def test_shrinking_pads_the_far_edges_only():
  down = layers.Downsample(
    1, padding=layers.END_PADDING, dtype=jnp.float32, rngs=layers.Keys(jax.random.key(0))
  )
  down.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
  down.conv.bias[...] = jnp.zeros(1)
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(down(x)[0, ..., 0], [[0, 2], [8, 10]])


def test_a_video_of_odd_size_is_refused(toy):
  with pytest.raises(ValueError, match="5 x 4: both must divide by 2"):
    run(*toy[:1], "encode", toy[1], jnp.zeros((1, 1, 5, 4, 3)))


def test_the_gradient_reaches_the_encoder_through_the_decoder(toy):
  """Directional derivative against finite differences, in the direction of the gradient."""
  graph, params = toy
  x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 1, 4, 4, 3), np.float32))

  @jax.jit
  def loss(params):
    network = nnx.merge(graph, params)
    return jnp.square(network.decode(network.encode(x).mean) - x).mean()

  grad = jax.jit(jax.grad(loss))(params)
  norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grad)))

  def along(step):
    return loss(jax.tree.map(lambda p, g: p + step * g / norm, params, grad))

  slope = (along(1e-3) - along(-1e-3)) / 2e-3
  np.testing.assert_allclose(slope, norm, rtol=2e-2)
