import golden
import jax.numpy as jnp
import numpy as np
import pytest
from models import networks

from fbjax import port
from fbjax.models import clip
from fbjax.port import table

TOY = dict(vocab=20, length=6, width=8, layers=3, heads=2)


@pytest.mark.parametrize(("skip", "name"), [(1, "out"), (0, "out_layer_last")])
def test_text_matches_open_clip(shared, skip, name):
  manifest, arrays = (
    golden.manifest(shared, "clip_text_tiny"),
    golden.arrays(shared, "clip_text_tiny"),
  )
  sizes = table.find("clip_text").arguments(manifest["config"])
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


def test_the_full_size_text_network_has_the_published_leaves(shared):
  manifest = golden.manifest(shared, "full/openclip_vit_h_14_text")
  entry = table.find("clip_text")
  leaves = entry.leaves(manifest["config"])
  listed = {entry.plain(key): tuple(shape) for key, shape, *_ in manifest["keys"]}
  assert {leaf.key: leaf.shape for leaf in leaves} == listed
  assert sum(int(np.prod(leaf.target)) for leaf in leaves) == 354_032_641
