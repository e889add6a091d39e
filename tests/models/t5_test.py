import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from models import networks

import golden
from fbjax import port, trees
from fbjax.models import t5
from fbjax.port import files, table
from fbjax.port.names import t5 as names

TOY = dict(vocab=20, width=8, layers=3, heads=2, head_dim=6, mlp=10, buckets=8, distance=16)


def forward(sizes, **more):
  return networks.call(networks.split(t5.Encoder, **sizes, **more)[0])


def test_it_matches_transformers(shared):
  arrays, manifest = golden.arrays(shared, "t5_tiny"), golden.manifest(shared, "t5_tiny")
  weights = golden.weights(manifest)
  del weights["encoder.embed_tokens.weight"]  # tied, and the rule knows no ties
  params = port.to_flax("t5", weights, manifest["config"])
  run = forward(port.arguments("t5", manifest["config"]))
  tokens = arrays["input_ids"].astype(np.int32)
  assert golden.error(run(params, tokens), arrays["out"]) < 5e-4
  masked = run(params, tokens, tokens != 0)[:, :12]
  assert golden.error(masked, arrays["out_masked"]) < 5e-4


def test_distances_fall_into_buckets():
  """Of 32, 16 lie behind: 8 hold one distance each, 8 grow to 128; and 16 ahead."""
  row = t5.relative_buckets(300, 32, 128)[150]
  behind, ahead = row[150::-1], row[150:]
  np.testing.assert_array_equal(behind[:9], range(9))
  assert [behind[d] for d in (11, 12, 15, 16, 22, 23, 32, 64, 90, 91, 149)] == [
    *(8, 9, 9, 10, 10, 11, 12, 14, 14, 15, 15)
  ]
  np.testing.assert_array_equal(ahead[1:], behind[1:150] + 16)


def test_tokens_look_both_ways_and_know_where_they_are():
  params, run = networks.params(t5.Encoder, **TOY), forward(TOY)
  tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
  out = run(params, tokens)
  assert out.shape == (1, 6, 8) and out.dtype == jnp.float32
  changed = np.abs(run(params, tokens.at[0, 3].set(7)) - out).max(-1)
  assert changed.min() > 1e-5
  turned = run(params, tokens[:, ::-1])[:, ::-1]
  assert np.abs(turned - out).max() > 1e-3


def test_masked_tokens_are_not_seen():
  params, run = networks.params(t5.Encoder, **TOY), forward(TOY)
  tokens = jnp.array([[1, 2, 3, 4, 0, 0]])
  out = run(params, tokens, tokens != 0)[:, :4]
  np.testing.assert_allclose(out, run(params, tokens[:, :4]), atol=1e-5)
  assert np.abs(out - run(params, tokens)[:, :4]).max() > 1e-3


def test_bfloat16_is_close():
  params = networks.params(t5.Encoder, **TOY)
  tokens = jnp.arange(18).reshape(2, 9)
  exact, half = (forward(TOY, dtype=dtype)(params, tokens) for dtype in (jnp.float32, jnp.bfloat16))
  error = float(jnp.sqrt(jnp.mean((half - exact) ** 2) / jnp.mean(exact**2)))
  assert 1e-4 < error < 2e-2


# Checkpoints.


def tensors():
  return {x.key: golden.weight(x.key, x.shape) for x in names.table(**TOY)}


def test_the_table_names_the_leaves_and_leads_there_and_back():
  there = tensors()
  params = port.to_flax("t5", there, TOY)
  ours = {path: np.shape(x) for path, x in trees.flatten(params).items()}
  assert ours == networks.shapes(t5.Encoder, **TOY)
  back = port.to_torch("t5", params, TOY)
  assert back.keys() == there.keys()
  for key, x in there.items():
    np.testing.assert_array_equal(back[key], x)


def test_token_embeddings_are_found_under_either_name_or_both():
  there = tensors()
  tokens = there.pop("shared.weight")
  alias = "encoder.embed_tokens.weight"
  for more in ({alias: tokens}, {"shared.weight": tokens, alias: tokens}):
    params = port.to_flax("t5", there | more, TOY)
    np.testing.assert_array_equal(params["token"]["embedding"], tokens)


def test_a_decoder_is_left_over():
  extra = {"decoder.final_layer_norm.weight": np.ones(8), "lm_head.weight": np.ones((20, 8))}
  _, report = port.fill("t5", tensors() | extra, TOY)
  assert report.left.keys() == extra.keys()


def test_every_key_of_the_full_size_file_has_its_leaf(shared):
  manifest = golden.manifest(shared, "full/t5_v1_1_xxl_encoder")
  config, listed = manifest["config"], {k: tuple(shape) for k, shape, *_ in manifest["keys"]}
  lines = (shared / "golden/keys/t5_v1_1_xxl_encoder.tsv").read_text().splitlines()
  alias = "encoder.embed_tokens.weight"
  keys = {key: str(x) for key, x in listed.items()} | {alias: str(listed["shared.weight"])}
  assert dict(line.split("\t") for line in lines) == keys
  layout = table.layout("t5", config)
  leaves = layout.leaves(config)
  assert {x.key: x.shape for x in leaves} == listed
  assert sum(math.prod(x.target) for x in leaves) == 4_762_310_656
  assert port.recognize(listed) == {"": "t5"}


def test_the_published_encoder_has_its_number_of_parameters():
  sizes = dict(vocab=32128, width=4096, layers=24, heads=64, head_dim=64, mlp=10240)
  ours = networks.shapes(t5.Encoder, **sizes)
  assert sum(map(math.prod, ours.values())) == 4_762_310_656


def test_the_config_written_is_the_config_read():
  assert port.arguments("t5", names.config(**TOY)) == TOY
  with pytest.raises(ValueError, match="feed_forward_proj=gated-gelu, not relu"):
    port.arguments("t5", names.config(**TOY) | {"feed_forward_proj": "relu"})


def test_folders_of_the_real_transformers_are_read_and_written(tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = names.config(**TOY)
  tokens = np.random.default_rng(0).integers(0, 20, (2, 40))

  def run(model):
    with torch.no_grad():
      return model.eval()(torch.from_numpy(tokens)).last_hidden_state.numpy()

  theirs = transformers.T5EncoderModel(transformers.T5Config(**config))
  for key, x in theirs.named_parameters():
    x.data = torch.from_numpy(golden.weight(key, tuple(x.shape)))
  theirs.save_pretrained(tmp_path / "theirs")
  checkpoint = files.read(tmp_path / "theirs")
  assert port.arguments("t5", checkpoint.config) == TOY
  params = port.to_flax("t5", checkpoint.tensors, checkpoint.config)
  assert golden.error(forward(TOY)(params, tokens.astype(np.int32)), run(theirs)) < 5e-4

  params = networks.params(t5.Encoder, **TOY)
  folder = tmp_path / "ours"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  files.write(folder / "model.safetensors", port.to_torch("t5", params, TOY))
  loaded = transformers.T5EncoderModel.from_pretrained(folder)
  assert golden.error(forward(TOY)(params, tokens.astype(np.int32)), run(loaded)) < 5e-4
