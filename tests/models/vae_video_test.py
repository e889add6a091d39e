import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import networks

import golden
from fbjax import port, trees
from fbjax.models import layers, vae_video
from fbjax.port import files, table

# Tiles of 24 x 20 pixels, 6 x 5 latents; a fourth of a pixel's frames and sides for a latent.
TOY = dict(c_in=3, c_latent=4, widths=(8, 12, 16), blocks=1, groups=2, tile=(24, 20))
CONFIG = {
  "in_channels": 3,
  "out_channels": 3,
  "down_block_types": ["CogVideoXDownBlock3D"] * 3,
  "up_block_types": ["CogVideoXUpBlock3D"] * 3,
  "block_out_channels": [8, 12, 16],
  "latent_channels": 4,
  "layers_per_block": 1,
  "act_fn": "silu",
  "norm_eps": 1e-6,
  "norm_num_groups": 2,
  "temporal_compression_ratio": 4,
  "sample_height": 48,
  "sample_width": 40,
  "scaling_factor": 1.15258426,
}
FULL = dict(c_in=3, c_latent=16, widths=(128, 256, 256, 512), blocks=3)


class Coder:
  """An autoencoder whose methods are compiled once for each shape and set of options."""

  def __init__(self, params=None, **sizes):
    self.graph, _ = networks.split(vae_video.CausalAutoencoder, **sizes)
    self.params = (
      networks.params(vae_video.CausalAutoencoder, **sizes) if params is None else params
    )
    self.jitted = {}

  def __call__(self, method, x, params=None, **options):
    """What a method makes of x, as numpy; of a distribution, mean and log variance in one array."""

    def f(params, x):
      y = getattr(nnx.merge(self.graph, params), method)(x, **options)
      return jnp.concatenate(y, -1) if method == "encode" else y

    jitted = self.jitted.setdefault((method, *options.items()), jax.jit(f))
    return np.asarray(jitted(self.params if params is None else params, jnp.asarray(x)))

  def temporary(self, method, *shape, **options):
    """Bytes in use between the arguments and the result."""

    def f(params, x):
      return getattr(nnx.merge(self.graph, params), method)(x, **options)

    compiled = jax.jit(f).lower(self.params, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def toy():
  return Coder(**TOY)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def ours(x):
  return x.transpose(0, 2, 3, 4, 1)


def theirs(x):
  return np.asarray(x).transpose(0, 4, 1, 2, 3)


# What was published


@pytest.fixture(scope="module")
def published(shared):
  manifest = golden.manifest(shared, "cogvideox_vae_tiny")
  params = port.to_flax("vae_video", golden.weights(manifest), manifest["config"])
  coder = Coder(params, **port.arguments("vae_video", manifest["config"]))
  return coder, golden.arrays(shared, "cogvideox_vae_tiny")


@pytest.mark.parametrize(
  ("video", "moments", "options"),
  [
    ("video1_u8", "moments1", {}),
    ("video9_u8", "moments9", {}),
    ("video17_u8", "moments17", {}),
    ("video_tiled_u8", "untiled.moments", {}),
    ("video_tiled_u8", "tiled.moments", {"tiled": True}),
  ],
)
def test_latents_are_the_published_ones(published, video, moments, options):
  coder, arrays = published
  latent = coder("encode", ours(arrays[video] / np.float32(127.5) - 1), **options)
  mean, logvar = np.split(arrays[moments], 2, 1)
  assert golden.error(theirs(latent[..., :16]), mean) < 5e-5
  assert golden.error(theirs(latent[..., 16:]), np.clip(logvar, -30, 20)) < 5e-5


@pytest.mark.parametrize(
  ("z", "video", "options"),
  [
    ("z1", "dec1", {}),
    ("z9", "dec9", {}),
    ("z17", "dec17", {}),
    ("z_tiled", "tiled.dec", {"tiled": True}),
  ],
)
def test_decoded_videos_are_the_published_ones(published, z, video, options):
  coder, arrays = published
  assert golden.error(theirs(coder("decode", ours(arrays[z]), **options)), arrays[video]) < 5e-5


def test_bfloat16_stays_close_to_float32(toy):
  half = Coder(toy.params, **TOY, dtype=jnp.bfloat16)
  for method, x in (("encode", normal(1, 9, 8, 8, 3)), ("decode", normal(1, 3, 2, 2, 4))):
    exact, rounded = toy(method, x), half(method, x)
    assert rounded.dtype == np.float32
    assert 1e-4 < rms(rounded - exact) / rms(exact) < 2e-2


def rms(x):
  return np.sqrt(np.square(x).mean())


# Time


def test_a_causal_convolution_sees_its_frame_and_two_before():
  conv = vae_video.CausalConv(1, 1, dtype=jnp.float32, rngs=layers.Keys(jax.random.key(0)))
  conv.conv.bias[...] = jnp.zeros(1)
  video = jnp.arange(1.0, 6.0).reshape(1, 5, 1, 1, 1)
  for tap, expected in ((0, [1, 1, 1, 2, 3]), (1, [1, 1, 2, 3, 4]), (2, [1, 2, 3, 4, 5])):
    conv.conv.kernel[...] = jnp.zeros((3, 3, 3, 1, 1)).at[tap, 1, 1].set(1)
    np.testing.assert_array_equal(conv(video, vae_video.Past()).ravel(), expected)
    first = vae_video.Past()
    start = conv(video[:, :3], first)
    rest = conv(video[:, 3:], vae_video.Past(first.after))
    np.testing.assert_array_equal(jnp.concatenate([start, rest], 1).ravel(), expected)


@pytest.fixture(scope="module")
def without_statistics():
  """Norms only scale and shift, which is what remains when all chunks have equal statistics."""

  def affine(norm, x):
    return x * layers.per_channel(norm.scale[...], x) + layers.per_channel(norm.bias[...], x)

  coder = Coder(**TOY)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(layers.GroupNorm, "__call__", affine)
    # Compiled while the patch holds.
    z = coder("encode", normal(1, 25, 8, 8, 3))[..., :4]
    whole_z = coder("encode", normal(1, 25, 8, 8, 3), chunked=False)[..., :4]
    return coder, z, whole_z, coder("decode", z), coder("decode", z, chunked=False)


def test_but_for_the_norms_chunks_are_the_whole(without_statistics):
  """25 frames are 9 + 8 + 8, and their 7 latents 3 + 2 + 2."""
  _, z, whole_z, video, whole_video = without_statistics
  assert z.shape == (1, 7, 2, 2, 4) and video.shape == (1, 25, 8, 8, 3)
  np.testing.assert_allclose(z, whole_z, atol=1e-4 * rms(z))
  np.testing.assert_allclose(video, whole_video, atol=1e-4 * rms(video))


def test_but_for_the_norms_nothing_sees_a_later_frame(without_statistics):
  coder, z, _, video, _ = without_statistics
  frames = normal(1, 25, 8, 8, 3)
  for frame in (1, 5, 8, 9, 17):
    first = (frame + 3) // 4
    other = coder("encode", after(frames, frame))[..., :4]
    np.testing.assert_array_equal(other[:, :first], z[:, :first])
    assert np.all(np.abs(other - z)[:, first:].max((0, 2, 3, 4)) > 1e-3)
  for latent in (1, 2, 3, 5):
    first = 4 * latent - 3
    other = coder("decode", after(z, latent))
    np.testing.assert_array_equal(other[:, :first], video[:, :first])
    assert np.all(np.abs(other - video)[:, first:].max((0, 2, 3, 4)) > 1e-3)


def after(x, start):
  """x, changed from its frame `start` on."""
  return np.concatenate([x[:, :start], x[:, start:] + 1], 1)


def test_no_chunk_sees_a_later_one(toy):
  """The norms of a chunk go over all of it: this is how causal the network is."""
  video = normal(1, 17, 8, 8, 3)
  z = toy("encode", video)
  np.testing.assert_allclose(toy("encode", video[:, :9]), z[:, :3], atol=1e-4 * rms(z))
  np.testing.assert_array_equal(toy("encode", after(video, 9))[:, :3], z[:, :3])
  before = np.concatenate([video[:, :8] + 1, video[:, 8:]], 1)
  # What a chunk knows of the one before are two frames at every convolution.
  assert np.abs(toy("encode", before) - z)[:, 3:].max() > 1e-3
  z = normal(1, 5, 2, 2, 4)
  video = toy("decode", z)
  np.testing.assert_allclose(toy("decode", z[:, :3]), video[:, :9], atol=1e-4 * rms(video))


@pytest.mark.parametrize("frames", [1, 5, 13, 16, 21])
def test_lengths(toy, frames):
  """4k + 1 frames have k + 1 latents; an even number of latents has four frames each."""

  def shapes(params, video):
    network = nnx.merge(toy.graph, params)
    z = network.encode(video).mean
    return z, network.decode(z)

  z, video = jax.eval_shape(shapes, toy.params, jnp.zeros((1, frames, 8, 8, 3)))
  latents = -(-frames // 4)
  assert z.shape == (1, latents, 2, 2, 4)
  assert video.shape[1] == (4 * latents - 3 if latents % 2 else 4 * latents)


@pytest.mark.parametrize(
  ("method", "short", "long"),
  [
    ("encode", (1, 25, 32, 32, 3), (1, 49, 32, 32, 3)),
    ("decode", (1, 7, 8, 8, 4), (1, 13, 8, 8, 4)),
  ],
)
def test_memory_does_not_grow_with_the_video(toy, method, short, long):
  chunks = toy.temporary(method, *short)
  # The results of chunks and the whole are both in memory while the one becomes the other.
  more = 24 * 32 * 32 * 3 * 4
  assert toy.temporary(method, *long) - chunks <= 2.1 * more
  assert toy.temporary(method, *long, chunked=False) > 2.5 * chunks


# Space


def test_tiles_of_the_published_size_overlap_as_published():
  """240 x 360 pixels: 40 and 72 of them shared, 5 and 9 latents."""
  down, across = vae_video._axes((240, 360), (30, 45))
  assert down == (240, 200, 5, 25) and across == (360, 288, 9, 36)
  down, across = vae_video._axes((30, 45), (240, 360))
  assert down == (30, 25, 40, 200) and across == (45, 36, 72, 288)


def test_tiles_are_coded_alone_and_fade_into_the_next():
  """3 x 3 tiles, blended one after the other with neighbours that are blended already."""
  tile, out_tile, steps, blends, keeps = (12, 20), (6, 10), (10, 16), (1, 2), (5, 8)
  x = normal(1, 2, 24, 44, 1)

  def f(x):
    return x[:, :, ::2, ::2] - x.mean()

  rows = {}
  expected = np.zeros_like(f(x))
  for i, top in enumerate(range(0, 24, steps[0])):
    for j, left in enumerate(range(0, 44, steps[1])):
      y = rows[i, j] = f(x[:, :, top : top + tile[0], left : left + tile[1]])
      for k in range(blends[0] if i else 0):
        fade = k / blends[0]
        y[:, :, k] = rows[i - 1, j][:, :, k - blends[0]] * (1 - fade) + y[:, :, k] * fade
      for k in range(blends[1] if j else 0):
        fade = k / blends[1]
        y[:, :, :, k] = rows[i, j - 1][:, :, :, k - blends[1]] * (1 - fade) + y[:, :, :, k] * fade
      place = expected[:, :, i * keeps[0] : (i + 1) * keeps[0], j * keeps[1] : (j + 1) * keeps[1]]
      place[...] = y[:, :, : place.shape[2], : place.shape[3]]
  assert rows.keys() == {(i, j) for i in range(3) for j in range(3)}
  tiled = vae_video._by_tiles(f, jnp.asarray(x), tile, out_tile)
  np.testing.assert_allclose(tiled, expected, atol=1e-6)
  small = jnp.asarray(x[:, :, :12, :20])
  np.testing.assert_array_equal(vae_video._by_tiles(f, small, tile, out_tile), f(small))


@pytest.mark.parametrize(
  ("method", "shape", "tile", "keep"),
  [("encode", (1, 5, 20, 28, 3), 20, 4), ("decode", (1, 1, 5, 7, 4), 5, 16)],
)
def test_the_first_tile_is_a_video_of_its_own_size(toy, method, shape, tile, keep):
  x = normal(*shape)
  tiled, alone = toy(method, x, tiled=True), toy(method, x[:, :, :, :tile])
  np.testing.assert_allclose(tiled[:, :, :, :keep], alone[:, :, :, :keep], atol=1e-4 * rms(alone))
  assert np.abs(tiled - toy(method, x)).max() > 1e-3


def test_shrinking_pads_the_far_edges_only_and_averages_pairs_behind_an_odd_frame():
  rngs = layers.Keys(jax.random.key(0))
  down = vae_video.Downsample(1, time=True, dtype=jnp.float32, rngs=rngs)
  down.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
  down.conv.bias[...] = jnp.zeros(1)
  x = jnp.arange(16.0).reshape(1, 1, 4, 4, 1)
  np.testing.assert_array_equal(down(x)[0, 0, ..., 0], [[0, 2], [8, 10]])
  time = jnp.broadcast_to(jnp.arange(5.0).reshape(1, 5, 1, 1, 1), (1, 5, 2, 2, 1))
  np.testing.assert_array_equal(down(time).ravel(), [0, 1.5, 3.5])
  np.testing.assert_array_equal(down(time[:, :4]).ravel(), [0.5, 2.5])


def test_a_video_of_odd_size_is_refused(toy):
  with pytest.raises(ValueError, match="6 x 8: both must divide by 4"):
    toy("encode", np.zeros((1, 1, 6, 8, 3), np.float32))


def test_fewer_levels_than_time_is_squeezed_in_are_refused():
  with pytest.raises(ValueError, match="at least 3 levels"):
    networks.shapes(vae_video.CausalAutoencoder, **TOY | {"widths": (8, 8)})


# Training


@pytest.mark.thorough
def test_the_gradient_reaches_the_encoder_through_both_chunks():
  """Directional derivative against finite differences, in the direction of the gradient."""
  # Gradients take long to compile: no more blocks than there must be.
  toy = Coder(**TOY | {"widths": (8, 8, 8), "blocks": 0})
  x = jnp.asarray(normal(1, 17, 8, 8, 3))

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    network = nnx.merge(toy.graph, params)
    z = network.encode(x).mean
    return jnp.square(z).mean() + jnp.square(network.decode(z[:, 2:])).mean()

  _, grad = loss(toy.params)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grad))
  assert all(np.any(g) for g in jax.tree.leaves(grad["encoder"]["levels"]))
  norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grad)))

  def along(step):
    return loss(jax.tree.map(lambda p, g: p + step * g / norm, toy.params, grad))[0]

  slope = (along(1e-3) - along(-1e-3)) / 2e-3
  np.testing.assert_allclose(slope, norm, rtol=2e-2)


def test_the_latent_is_never_certain_beyond_reason(toy):
  """The log variance stays between -30 and 20."""
  flat = trees.flatten(toy.params)
  bias = np.repeat(np.float32([0, -100, 100]), [4, 2, 2])
  params = trees.nest(flat | {"encoder/out_conv/conv/bias": bias})
  latent = toy("encode", normal(1, 9, 8, 8, 3), params)
  np.testing.assert_array_equal(latent[..., 4:6], -30)
  np.testing.assert_array_equal(latent[..., 6:], 20)


# The port


def test_the_port_is_its_own_inverse(toy):
  tensors = port.to_torch("vae_video", toy.params, CONFIG)
  back = trees.flatten(port.to_flax("vae_video", tensors, CONFIG))
  for path, x in trees.flatten(toy.params).items():
    assert back[path].tobytes() == np.asarray(x).tobytes(), path
  again = port.to_torch("vae_video", trees.nest(back), TOY)
  assert all(again[key].tobytes() == x.tobytes() for key, x in tensors.items())
  assert port.recognize(tensors) == {"": "vae_video"}
  # Two matrices of one shape, which only their names tell apart.
  scale = toy.params["decoder"]["out_norm"]["scale"]["kernel"]
  np.testing.assert_array_equal(
    tensors["decoder.norm_out.conv_y.conv.weight"][..., 0, 0, 0], scale.T
  )


def test_the_published_network_has_the_published_number_of_parameters():
  ours = networks.shapes(vae_video.CausalAutoencoder, **FULL)
  assert sum(map(math.prod, ours.values())) == 215_583_907
  leaves = table.layout("vae_video", FULL).leaves(FULL)
  assert {leaf.path: leaf.target for leaf in leaves} == ours
  assert len(leaves) == 436


def test_every_key_of_the_full_size_file_has_its_leaf(shared):
  manifest = golden.manifest(shared, "full/cogvideox_vae")
  leaves = table.layout("vae_video", manifest["config"]).leaves(manifest["config"])
  assert {leaf.key: leaf.shape for leaf in leaves} == {
    key: tuple(shape) for key, shape, *_ in manifest["keys"]
  }
  arguments = port.arguments("vae_video", manifest["config"])
  assert arguments == FULL | {"groups": 32, "tile": (240, 360)}
  listed = (shared / "golden/keys/cogvideox_vae.tsv").read_text().splitlines()
  assert {leaf.key for leaf in leaves} == {line.split("\t")[0] for line in listed}


@pytest.mark.parametrize(
  "change", [{"use_quant_conv": True}, {"temporal_compression_ratio": 8}, {"out_channels": 4}]
)
def test_what_the_network_cannot_be_is_said(change):
  with pytest.raises(ValueError, match=f"only with {next(iter(change))}="):
    port.arguments("vae_video", CONFIG | change)


def test_folders_go_to_diffusers_and_back(toy, tmp_path):
  """Its own folder runs here, and ours runs there, with equal outputs."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")

  def check(params, model, method, x, **options):
    with torch.no_grad():
      y = getattr(model, method)(torch.from_numpy(x))
    y = y.latent_dist.mode() if method == "encode" else y.sample
    mine = theirs(toy(method, ours(x), params, **options))
    assert golden.error(mine[:, :4], y.numpy()) < 5e-5

  torch.manual_seed(0)
  model = diffusers.AutoencoderKLCogVideoX(**CONFIG).eval()
  with torch.no_grad():
    for x in model.parameters():
      x.add_(0.1 * torch.randn_like(x))
  model.save_pretrained(tmp_path / "theirs")
  folder = files.read(tmp_path / "theirs")
  assert port.arguments("vae_video", folder.config) == TOY
  params = port.to_flax("vae_video", folder.tensors, folder.config)
  check(params, model, "encode", normal(1, 3, 17, 8, 8))
  check(params, model, "decode", normal(1, 4, 5, 2, 2))
  model.enable_tiling()
  check(params, model, "encode", normal(1, 3, 5, 20, 28), tiled=True)
  check(params, model, "decode", normal(1, 4, 1, 5, 7), tiled=True)

  config = {"_class_name": "AutoencoderKLCogVideoX"} | CONFIG
  (tmp_path / "ours").mkdir()
  (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
  tensors = port.to_torch("vae_video", toy.params, CONFIG)
  files.write(tmp_path / "ours" / "diffusion_pytorch_model.safetensors", tensors)
  model = diffusers.AutoencoderKLCogVideoX.from_pretrained(tmp_path / "ours").eval()
  check(toy.params, model, "encode", normal(1, 3, 17, 8, 8))
  check(toy.params, model, "decode", normal(1, 4, 5, 2, 2))
