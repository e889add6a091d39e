import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import networks

import golden
from fbjax import port
from fbjax.models import clip

TOY = dict(vocab=20, length=6, width=8, layers=3, heads=2)


@pytest.mark.parametrize(("skip", "name"), [(1, "out"), (0, "out_layer_last")])
def test_text_matches_open_clip(shared, skip, name):
  manifest, arrays = (
    golden.manifest(shared, "clip_text_tiny"),
    golden.arrays(shared, "clip_text_tiny"),
  )
  sizes = port.arguments("clip_text", manifest["config"])
  params = port.to_flax("clip_text", golden.weights(manifest), sizes)
  graph, _ = networks.split(clip.TextEncoder, **sizes, skip=skip)
  out = networks.call(graph)(params, arrays["tokens"].astype(np.int32))
  assert golden.error(out, arrays[name]) < 1e-4


def test_a_token_sees_only_what_comes_before_it():
  graph, _ = networks.split(clip.TextEncoder, **TOY)
  params, forward = networks.params(clip.TextEncoder, **TOY), networks.call(graph)
  tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
  out = forward(params, tokens)
  changed = forward(params, tokens.at[0, 3].set(7))
  np.testing.assert_allclose(out[:, :3], changed[:, :3], atol=1e-6)
  assert np.abs(out[:, 3:] - changed[:, 3:]).min(-1).max() > 1e-6


def test_skipping_a_block_is_a_network_without_it():
  graph, _ = networks.split(clip.TextEncoder, **TOY, skip=1)
  params = networks.params(clip.TextEncoder, **TOY)
  tokens = jnp.array([[1, 2, 3]])
  out = networks.call(graph)(params, tokens)
  short, _ = networks.split(clip.TextEncoder, **TOY | {"layers": 2})
  blocks = params["transformer"]["blocks"]
  params["transformer"]["blocks"] = {name: _first_two(block) for name, block in blocks.items()}
  np.testing.assert_allclose(out, networks.call(short)(params, tokens), atol=1e-6)


def _first_two(tree):
  return {k: _first_two(v) for k, v in tree.items()} if isinstance(tree, dict) else tree[:2]


def test_a_prompt_that_is_too_long_is_refused():
  graph, init = networks.split(clip.TextEncoder, **TOY)
  with pytest.raises(ValueError, match="at most 6 tokens, not 7"):
    networks.call(graph)(init(0), jnp.zeros((1, 7), int))


IMAGE = dict(size=8, patch=4, width=8, layers=2, heads=2, c_out=6)


@pytest.mark.parametrize("name", ["0", "1", "2", "224"])
def test_preprocessing_is_that_of_kornia(shared, name):
  arrays = golden.arrays(shared, "clip_preprocess")
  image = arrays[f"img{name}"].transpose(0, 2, 3, 1) / np.float32(127.5) - 1
  ours = np.asarray(jax.jit(clip.preprocess)(image)).transpose(0, 3, 1, 2)
  theirs = arrays.get(f"out{name}")
  if theirs is None:
    theirs, sampled = arrays[f"out{name}_strided4"], ours[:, :, ::4, ::4]
  else:
    sampled = ours
  assert golden.error(sampled, theirs) < 1e-4
  sums = ours.astype(np.float64).sum((0, 2, 3))
  np.testing.assert_allclose(sums, arrays[f"out{name}_sum_f64"], rtol=1e-4, atol=0.1)


def test_image_tokens_match_open_clip(shared):
  name = "clip_image_tiny"
  manifest, arrays = golden.manifest(shared, name), golden.arrays(shared, name)
  params = port.to_flax("clip_image", golden.weights(manifest), manifest["config"])
  sizes = port.arguments("clip_image", manifest["config"])
  forward = networks.call(networks.split(clip.ImageEncoder, **sizes)[0])
  for i in range(2):
    image = arrays[f"image{i}"].transpose(0, 2, 3, 1) / np.float32(127.5) - 1
    assert (
      golden.error(forward(params, clip.preprocess(jnp.asarray(image))), arrays[f"out{i}"]) < 2e-4
    )
  blank = clip.preprocess(jnp.zeros((1, 256, 256, 3)))
  assert golden.error(forward(params, blank), arrays["out_zero_image"]) < 2e-4


@pytest.mark.parametrize(("n_in", "n_out", "blur"), [(9, 5, True), (5, 9, False), (64, 7, True)])
def test_resizing_keeps_constants_and_the_corners_of_what_is_smooth(n_in, n_out, blur):
  matrix = clip.resize_matrix(n_in, n_out, blur=blur)
  np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
  if not blur:  # corners are aligned: the ends are taken over
    np.testing.assert_allclose(matrix[[0, -1]], np.eye(n_in)[[0, -1]], atol=1e-6)


def test_an_image_of_another_size_is_refused():
  graph, _ = networks.split(clip.ImageEncoder, **IMAGE)
  with pytest.raises(ValueError, match="8 pixels square, not 9 x 8: call preprocess"):
    networks.call(graph)(networks.params(clip.ImageEncoder, **IMAGE), jnp.zeros((1, 9, 8, 3)))


def test_the_pair_gives_unit_vectors_and_reads_the_text_at_its_end():
  towers = {
    name: {k: v for k, v in sizes.items() if k != "c_out"}
    for name, sizes in {"image": IMAGE, "text": TOY}.items()
  }
  sizes = dict(c_out=6, quick_gelu=True, **towers)
  graph, _ = networks.split(clip.Clip, **sizes)
  params = networks.params(clip.Clip, **sizes)
  embed = networks.call(graph, "embed_text")
  tokens = jnp.array([[18, 3, 4, 19, 0, 0], [18, 3, 4, 19, 7, 5]])
  a, b = embed(params, tokens)
  np.testing.assert_allclose(a, b, atol=1e-6)  # what stands behind the end is not read
  np.testing.assert_allclose(jnp.linalg.norm(a), 1, rtol=1e-6)
  image = networks.call(graph, "embed_image")(params, jnp.ones((2, 8, 8, 3)))
  np.testing.assert_allclose(jnp.linalg.norm(image, axis=1), 1, rtol=1e-6)


def test_the_quick_gelu_is_another_network():
  tokens = jnp.array([[1, 2, 3]])
  params = networks.params(clip.TextEncoder, **TOY)
  exact, quick = (
    networks.call(networks.split(clip.TextEncoder, **TOY, quick_gelu=quick)[0])(params, tokens)
    for quick in (False, True)
  )
  assert 1e-4 < np.abs(exact - quick).max() < 0.2
