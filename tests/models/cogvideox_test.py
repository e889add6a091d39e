import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import networks

import golden
from fbjax import lazy, port, trees
from fbjax.bridge import initialise
from fbjax.models import cogvideox
from fbjax.port import files, table
from fbjax.port.names import cogvideox as names

TOY = dict(c_in=4, c_out=3, depth=2, heads=2, head_dim=16, text_dim=6, time_dim=8)
TEMPORAL = dict(patch_time=2, positions="rotary_index")
VARIANTS = [{}, {"positions": "rotary", "base": (6, 9)}, TEMPORAL]
FULL = {"num_layers": 30, "num_attention_heads": 30, "text_embed_dim": 4096}
LARGE = FULL | {
  "num_layers": 42,
  "num_attention_heads": 48,
  "use_rotary_positional_embeddings": True,
}


def inputs(c=4, t=2, h=4, w=6, n=5, d=6, b=2, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((b, t, h, w, c), np.float32)
  time = np.array([12.75, 873.4, 3, 999][:b], np.float32)
  return x, time, rng.standard_normal((b, n, d), np.float32)


def forward(sizes, **more):
  return networks.call(networks.split(cogvideox.CogVideoX, **sizes, **more)[0])


@pytest.mark.parametrize("kind", ["sincos", "rotary"])
def test_it_matches_diffusers(shared, kind):
  arrays = golden.arrays(shared, "cogvideox_transformer_tiny")
  manifest = golden.manifest(shared, f"cogvideox_transformer_tiny_{kind}")
  # The published pipeline takes the grid of the full-size network whatever the config says.
  sizes = port.arguments("cogvideox", manifest["config"]) | {"base": (30, 45)}
  params = port.to_flax("cogvideox", golden.weights(manifest), sizes)
  run = forward(sizes)

  def out(x, time, text):
    return run(params, x.transpose(0, 1, 3, 4, 2), time, text).transpose(0, 1, 4, 2, 3)

  time, text = arrays["timesteps"], arrays["text"]
  assert golden.error(out(arrays["x"], time, text), arrays[f"{kind}.out"]) < 1e-4
  other = out(arrays["x_other"], time[:1], text[:1])
  assert golden.error(other, arrays[f"{kind}.other.out"]) < 1e-4


def test_sinusoids_are_of_the_frame_then_the_column_then_the_row():
  table = np.asarray(cogvideox.sincos(2, 3, 4, 32, space=2.0, time=0.5)).reshape(2, 3, 4, 32)
  frame, column, row = np.split(table, [8, 20], axis=-1)
  np.testing.assert_allclose(frame[1, 0, 0, 0], np.sin(2.0), atol=1e-6)
  np.testing.assert_allclose(frame[1, 0, 0, 4], np.cos(2.0), atol=1e-6)
  np.testing.assert_allclose(column[0, 0, :, 0], np.sin(np.arange(4) / 2), atol=1e-6)
  np.testing.assert_allclose(row[0, :, 0, 0], np.sin(np.arange(3) / 2), atol=1e-6)
  np.testing.assert_allclose(row[0, :, 0, 1], np.sin(np.arange(3) / 2 * 1e4 ** (-1 / 6)), atol=1e-6)
  for axes, part in (((1, 2), frame), ((0, 1), column), ((0, 2), row)):
    assert np.ptp(part, axis=axes).max() == 0


def test_a_grid_is_enlarged_to_fit_into_the_base_and_centred():
  rows, columns = cogvideox.fit(3, 4, (30, 45))
  np.testing.assert_allclose(rows, [0, 10, 20])
  np.testing.assert_allclose(columns, [2, 2 + 59 / 6, 2 + 59 / 3, 31.5])
  rows, columns = cogvideox.fit(2, 6, (30, 45))
  np.testing.assert_allclose(rows, [8, 11.5])  # 15 rows in the middle of 30; the end is shrunk
  np.testing.assert_allclose(columns, np.arange(6) * 7.5)
  for whole in cogvideox.fit(30, 45, (30, 45)):
    np.testing.assert_allclose(whole, np.arange(len(whole)), atol=1e-12)


def test_turned_queries_and_keys_know_their_distance_only():
  rng = np.random.default_rng(0)
  q, k = jnp.asarray(rng.standard_normal((2, 1, 1, 1, 16), np.float32))

  def product(shift):
    places = (np.array([1.0, 4.0]) + shift for shift in shift)
    # frame and row and column of token 0 and of token 1: the corners of a 2 x 2 x 2 grid
    angles = cogvideox.rotary(*places, 16)[jnp.array([0, 7])]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = (cogvideox.rotate(x, cos[i : i + 1], sin[i : i + 1]) for i, x in enumerate((q, k)))
    return float((a * b).sum())

  np.testing.assert_allclose(product((0, 0, 0)), product((3, 0.5, 7)), rtol=1e-5)
  assert abs(product((0, 0, 0)) - float((q * k).sum())) > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_video_has_places_and_text_has_none(variant):
  sizes = TOY | variant
  params, run = networks.params(cogvideox.CogVideoX, **sizes), forward(sizes)
  x, time, text = inputs()
  out = run(params, x, time, text)
  assert out.shape == (2, 2, 4, 6, 3) and out.dtype == jnp.float32
  np.testing.assert_allclose(run(params, x, time, text[:, ::-1]), out, atol=2e-5)
  text[0, 2] += 1
  changed = np.abs(run(params, x, time, text) - out)
  assert changed[0].reshape(-1, 3).max(1).min() > 1e-5  # all of the video sees the text
  np.testing.assert_allclose(changed[1], 0, atol=1e-6)  # clips do not see each other
  axes = (2, 3) if variant else (1, 2, 3)
  for axis in axes:
    # The same patches elsewhere are another video: turned axes, in whole patches.
    shifted = np.roll(x, 2 if axis > 1 else 1, axis)
    moved = run(params, shifted, time, text) - np.roll(run(params, x, time, text), 2, axis)
    assert np.abs(moved).max() > 1e-4


def test_text_and_video_have_a_shift_a_scale_and_a_gate_each():
  params, run = networks.params(cogvideox.CogVideoX, **TOY), forward(TOY)
  kernel = params["blocks"]["norm2"]["emb"]["kernel"]
  out = run(params, *inputs())
  for part in range(6):
    # What the last block does to the text after its attention, nobody reads.
    params["blocks"]["norm2"]["emb"]["kernel"] = kernel.copy()
    params["blocks"]["norm2"]["emb"]["kernel"][-1, :, 32 * part : 32 * (part + 1)] += 1
    changed = np.abs(run(params, *inputs()) - out).max()
    assert changed > 1e-3 if part < 3 else changed < 1e-6


def test_a_pixel_reaches_its_own_patch_alone_without_attention():
  sizes = TOY | TEMPORAL | {"positions": "sincos"}
  params, run = networks.params(cogvideox.CogVideoX, **sizes), forward(sizes)
  for name in ("norm1", "norm2"):  # closes the gates
    params["blocks"][name]["emb"] = jax.tree.map(np.zeros_like, params["blocks"][name]["emb"])
  x, time, text = inputs(t=4)
  out = run(params, x, time, text)
  x[0, 2, 1, 4, 1] += 1
  changed = np.abs(run(params, x, time, text) - out).max(-1) > 1e-6
  expected = np.zeros_like(changed)
  expected[0, 2:4, 0:2, 4:6] = True
  np.testing.assert_array_equal(changed, expected)


def test_times_between_two_steps_are_told_apart_whatever_the_dtype():
  params, run = networks.params(cogvideox.CogVideoX, **TOY), forward(TOY, dtype=jnp.bfloat16)
  x, _, text = inputs(b=1)
  a, b = (run(params, x, np.array([t], np.float32), text) for t in (872.0, 872.64))
  assert np.abs(a - b).max() > 1e-3  # as bfloat16 both are 872


def test_a_fresh_network_predicts_zero_and_its_blocks_are_the_identity():
  _, init = networks.split(cogvideox.CogVideoX, **TOY)
  params, run = init(0), forward(TOY)
  x, time, text = inputs()
  assert not np.any(run(params, x, time, text))
  params["out"]["kernel"] = networks.params(cogvideox.CogVideoX, **TOY)["out"]["kernel"]
  out = run(params, x, time, text)
  assert np.any(out)
  np.testing.assert_array_equal(run(params, x, time, 2 * text), out)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_close(variant):
  sizes = TOY | variant | {"depth": 6}
  params = networks.params(cogvideox.CogVideoX, **sizes)
  exact = forward(sizes)(params, *inputs())
  half = forward(sizes, dtype=jnp.bfloat16)(params, *inputs())
  error = float(jnp.sqrt(jnp.mean((half - exact) ** 2) / jnp.mean(exact**2)))
  assert 1e-4 < error < 2e-2


def test_rematerialized_blocks_have_the_same_gradient():
  sizes = TOY | {"positions": "rotary"}
  params = networks.params(cogvideox.CogVideoX, **sizes)

  def gradient(**more):
    run = forward(sizes, **more)
    return jax.jit(jax.grad(lambda p: jnp.mean(run(p, *inputs()) ** 2)))

  plain, remat = gradient(), gradient(wrap=jax.checkpoint)
  assert "remat" in str(jax.make_jaxpr(remat)(params))
  ours, theirs = (trees.flatten(f(params)) for f in (plain, remat))
  for path, x in ours.items():
    scale = np.sqrt(np.mean(np.square(x)))
    np.testing.assert_allclose(theirs[path], x, atol=1e-5 * scale + 1e-9, err_msg=path)
    # A bias that all keys share leaves a softmax as it is, unless it is turned.
    assert scale > 1e-9, path


def test_latents_that_do_not_divide_into_patches_are_refused():
  params, x = networks.params(cogvideox.CogVideoX, **TOY | TEMPORAL), inputs(t=3)
  with pytest.raises(ValueError, match="3 x 4 x 6 do not divide into patches of 2 x 2 x 2"):
    forward(TOY | TEMPORAL)(params, *x)
  with pytest.raises(ValueError, match="a head_dim that divides by 16, not 8"):
    networks.shapes(cogvideox.CogVideoX, **TOY | {"head_dim": 8, "positions": "rotary"})


# Checkpoints.


def tensors(sizes):
  return {x.key: golden.weight(x.key, x.shape) for x in names.table(**sizes)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_names_the_leaves_and_leads_there_and_back(variant):
  sizes = TOY | variant
  there = tensors(sizes)
  params = port.to_flax("cogvideox", there, sizes)
  ours = {path: np.shape(x) for path, x in trees.flatten(params).items()}
  assert ours == networks.shapes(cogvideox.CogVideoX, **sizes)
  back = port.to_torch("cogvideox", params, sizes)
  assert back.keys() == there.keys()
  for key, x in there.items():
    np.testing.assert_array_equal(back[key], x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_widened_patches_ignore_the_channels_they_did_not_know(variant):
  """A checkpoint for the noisy latent alone starts a network that also sees a condition."""
  sizes = TOY | variant
  there = tensors(sizes)
  narrow = port.to_flax("cogvideox", there, sizes)
  wide = sizes | {"c_in": 8}
  held, report = port.fill("cogvideox", there, wide, narrow=("patches/kernel",))
  assert list(report.lacks) == ["patches/kernel"]
  params = jax.tree.map(np.asarray, held, is_leaf=lambda x: isinstance(x, lazy.Lazy))
  kernel = params["patches"]["kernel"]
  np.testing.assert_array_equal(kernel, narrow["patches"]["kernel"])
  params["patches"]["kernel"] = initialise.widen_input(jnp.asarray(kernel), len(kernel))
  x, time, text = inputs()
  both = np.concatenate([x, np.random.default_rng(1).standard_normal(x.shape, np.float32)], -1)
  out = forward(sizes)(narrow, x, time, text)
  np.testing.assert_allclose(forward(wide)(params, both, time, text), out, atol=1e-5)


@pytest.mark.parametrize(
  ("config", "count"),
  [
    (FULL, 1_693_783_872),
    (FULL | {"in_channels": 32}, 1_693_906_752),
    (LARGE, 5_570_283_072),
    (LARGE | {"patch_size_t": 2, "patch_bias": False}, 5_570_676_352),
  ],
)
def test_parameters_are_as_many_as_published(config, count):
  ours = networks.shapes(cogvideox.CogVideoX, **port.arguments("cogvideox", config))
  assert sum(map(math.prod, ours.values())) == count
  leaves = table.find("cogvideox")["diffusers"].leaves(config)
  assert sum(math.prod(x.target) for x in leaves) == count


def test_every_key_of_the_full_size_file_has_its_leaf(shared):
  manifest = golden.manifest(shared, "full/cogvideox_2b_modified_transformer")
  listed = {key: tuple(shape) for key, shape, *_ in manifest["keys"]}
  lines = (shared / "golden/keys/cogvideox_2b_transformer_32ch.tsv").read_text().splitlines()
  assert dict(line.split("\t") for line in lines) == {key: str(x) for key, x in listed.items()}
  leaves = table.layout("cogvideox", manifest["config"]).leaves(manifest["config"])
  assert {x.key: x.shape for x in leaves} == listed
  assert port.recognize(listed) == {"": "cogvideox"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_written_is_the_config_read(variant):
  sizes = TOY | variant
  again = port.arguments("cogvideox", names.config(**sizes))
  assert sizes.items() <= again.items()
  assert port.arguments("cogvideox", names.config(**again)) == again


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"use_learned_positional_embeddings": True}, "use_learned_positional_embeddings=False"),
    ({"ofs_embed_dim": 512}, "ofs_embed_dim=None"),
    ({"patch_bias": False}, "patch_bias=True"),
  ],
)
def test_what_the_network_cannot_be_is_said(change, message):
  with pytest.raises(ValueError, match=message):
    port.arguments("cogvideox", FULL | change)


# With the real diffusers.


def diffusers_output(model, sizes, x, time, text):
  """What a pipeline does around the model: rotary tables are its business."""
  import torch
  from diffusers.models import embeddings

  rotary = None
  _, t, h, w, _ = x.shape
  t, h, w = t // sizes.get("patch_time", 1), h // 2, w // 2
  kind = sizes.get("positions", "sincos")
  if kind == "rotary":
    # Of the grid enlarged to fit into the base: its corners, which pipelines work out themselves.
    rows, columns = sizes["base"]
    high = round(columns / w * h) if h / w <= rows / columns else rows
    wide = columns if h / w <= rows / columns else round(rows / h * w)
    top, left = round((rows - high) / 2), round((columns - wide) / 2)
    corners = (top, left), (top + high, left + wide)
    rotary = embeddings.get_3d_rotary_pos_embed(16, corners, (h, w), t)
  elif kind == "rotary_index":
    rotary = embeddings.get_3d_rotary_pos_embed(
      16, None, (h, w), t, grid_type="slice", max_size=(16, 16)
    )
  with torch.no_grad():
    out = model(
      torch.from_numpy(x.transpose(0, 1, 4, 2, 3).copy()),
      torch.from_numpy(text),
      torch.from_numpy(time),
      image_rotary_emb=rotary,
      return_dict=False,
    )[0]
  return out.numpy().transpose(0, 1, 3, 4, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_folders_of_the_real_diffusers_are_read_and_written(tmp_path, variant):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  sizes = TOY | variant
  config = names.config(**sizes) | {"max_text_seq_length": 5}
  model = diffusers.CogVideoXTransformer3DModel
  x = inputs()

  theirs = model.from_config(config).eval()
  weights = {key: golden.weight(key, tuple(v.shape)) for key, v in theirs.state_dict().items()}
  theirs.load_state_dict({key: torch.from_numpy(v) for key, v in weights.items()})
  theirs.save_pretrained(tmp_path / "theirs")
  checkpoint = files.read(tmp_path / "theirs")
  read = port.arguments("cogvideox", checkpoint.config)
  assert sizes.items() <= read.items()
  params = port.to_flax("cogvideox", checkpoint.tensors, checkpoint.config)
  out = forward(sizes)(params, *x)
  assert golden.error(out, diffusers_output(theirs, sizes, *x)) < 1e-4

  params = networks.params(cogvideox.CogVideoX, **sizes)
  folder = tmp_path / "ours"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  files.write(
    folder / "diffusion_pytorch_model.safetensors", port.to_torch("cogvideox", params, sizes)
  )
  loaded = model.from_pretrained(folder).eval()
  out = forward(sizes)(params, *x)
  assert golden.error(out, diffusers_output(loaded, sizes, *x)) < 1e-4
