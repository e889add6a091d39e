import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import networks

import golden
from fbjax import port, trees
from fbjax.models import latte, layers
from fbjax.port import table
from fbjax.port.names import latte as names

TOY = dict(c_in=3, c_out=3, size=8, frames=4, width=16, depth=4, heads=2, classes=3)
VARIANTS = [
  {},
  {"c_in": 5, "patch": 4, "classes": None, "mult": 2},
  {"c_out": 6, "depth": 2, "size": 4},
  {"text": 5},
]
FULL = [
  ("latte_s2_framebridge", "latte_s2_bridge", "latte", latte.Latte, 32_513_680),
  (
    "latte_s2_framebridge_nprior",
    "latte_s2_bridge_neural_prior",
    "latte",
    latte.Latte,
    32_519_824,
  ),
  ("latte_nwarp_s2", "latte_s2_neural_prior", "latte_prior", latte.NeuralPrior, 32_267_152),
]


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def inputs(frames=3, size=(8, 8), b=2, c=3):
  x = normal(b, frames, *size, c)
  return x, jnp.linspace(0.3, 900, b), jnp.arange(b) % 3, normal(b, *size, c, seed=1)


@functools.cache
def toy(**sizes):
  sizes = TOY | sizes
  graph, _ = networks.split(latte.Latte, **sizes)
  return networks.call(graph), networks.params(latte.Latte, **sizes)


@functools.cache
def fresh():
  return networks.split(latte.Latte, **TOY)[1](0)


def channels_last(x):
  return x.transpose(0, 1, 3, 4, 2)


def published(shared, name, network="latte", prefix=""):
  """The call and the params of a golden network; its fixed tables are those of a new one."""
  manifest = golden.manifest(shared, name)
  tensors = golden.weights(manifest)
  for key, (_, *shape), _, kind in manifest["keys"]:
    if kind == "fixed":
      n, c = shape
      side = math.isqrt(n)
      places = key.endswith("pos_embed")
      own = latte.place_table(side, c) if places else latte.line_table(n, c)
      tensors[key] = own.reshape(1, n, c)
  tensors = {key: x for key, x in tensors.items() if key.startswith(prefix)}
  params = port.to_flax(network, tensors, manifest["config"])
  model = latte.NeuralPrior if network == "latte_prior" else latte.Latte
  sizes = port.arguments(network, manifest["config"])
  return networks.call(networks.split(model, **sizes)[0]), params


def error(ours, theirs):
  return golden.error(np.asarray(ours).transpose(0, 1, 4, 2, 3), theirs)


def mean_square(x):
  """Over all of a clip."""
  return np.square(np.asarray(x, np.float64)).reshape(len(x), -1).mean(1)


@pytest.mark.parametrize(("time", "name"), [("t", "out"), ("t_aligned", "out_aligned")])
def test_latte_matches_the_published_one(shared, time, name):
  arrays = golden.arrays(shared, "latte_tiny")
  forward, params = published(shared, "latte_tiny")
  x, label = channels_last(arrays["x"]), arrays["y"].astype(np.int32)
  assert error(forward(params, x, arrays[time].astype(np.float32), label), arrays[name]) < 1e-4


def test_latte_with_a_coarse_video_matches_the_published_one(shared):
  arrays = golden.arrays(shared, "latte_tiny")
  forward, params = published(shared, "latte_tiny_nprior")
  x, label = channels_last(arrays["nprior.x"]), arrays["y"].astype(np.int32)
  time = arrays["t"].astype(np.float32)
  assert error(forward(params, x, time, label), arrays["nprior.out"]) < 1e-4
  # The same from its parts: video and image, coarse video.
  parts = x[:, 1:, ..., :4], time, label, x[:, 0, ..., :4], x[:, 1:, ..., 4:]
  image_again = np.concatenate([x[..., :4], x[..., 4:]], -1)
  image_again[:, 0, ..., 4:] = x[:, 0, ..., :4]
  ours = forward(params, *parts)
  np.testing.assert_allclose(ours, forward(params, image_again, time, label)[:, 1:], atol=1e-5)


def test_the_last_label_is_the_null_class_of_guidance(shared):
  arrays = golden.arrays(shared, "latte_tiny")
  forward, params = published(shared, "latte_tiny")
  x = channels_last(arrays["x"])[[0, 0]]
  given, null = forward(params, x, arrays["cfg.t"].astype(np.float32), arrays["cfg.y"].astype(int))
  guided = null + arrays["cfg_scale"] * (given - null)
  assert arrays["cfg.y"][1] == 5
  assert error(jnp.stack([guided, guided]), arrays["cfg.out"]) < 1e-4


@pytest.mark.parametrize("name", ["plain", "aligned", "nprior"])
def test_the_published_loss_is_reached_from_frame_and_coarse_video(shared, name):
  arrays = golden.arrays(shared, "latte_bridge")
  prior = name == "nprior"
  forward, params = published(shared, "latte_tiny_nprior" if prior else "latte_tiny")
  net_input = channels_last(arrays[f"train.{name}.net_input"])
  coarse = channels_last(arrays["coarse_video"]) if prior else None
  time = arrays["t"].astype(np.float32) if prior else arrays[f"train.{name}.net_time"]
  frame, x = channels_last(arrays["condition_frame"])[:, 0], net_input[:, 1:, ..., :4]
  pred = forward(params, x, time, arrays["y"].astype(np.int32), frame, coarse)
  target = arrays["target.eps_psi"]
  if prior:
    sigma = arrays["sched.bridge_sigmas"][arrays["t"]].reshape(-1, 1, 1, 1, 1)
    target = (x.transpose(0, 1, 4, 2, 3) - arrays["x0"]) / sigma
  loss = mean_square(pred - channels_last(target))
  np.testing.assert_allclose(loss, arrays[f"train.{name}.latte.loss"], rtol=1e-5)


def test_the_neural_prior_matches_the_published_one(shared):
  arrays = golden.arrays(shared, "latte_nwarp_tiny")
  forward, params = published(shared, "latte_nwarp_tiny", "latte_prior")
  frame = channels_last(arrays["condition_frame"])[:, 0]
  coarse = forward(params, frame, arrays["y"].astype(np.int32))
  assert error(coarse, arrays["coarse_video"]) < 1e-4
  loss = mean_square(coarse - channels_last(arrays["x0"]))
  np.testing.assert_allclose(loss, arrays["loss_regression"], rtol=1e-5)


def test_a_prior_trained_with_its_diffusion_network_matches_the_published_pair(shared):
  """Both come out of one file; the second is shown the first's video and predicts the noise."""
  arrays = golden.arrays(shared, "latte_nwarp_tiny")
  name = "latte_nwarp_tiny_combination"
  forward, params = published(shared, name, "latte_prior")
  denoise, denoiser = published(shared, name, prefix="diffusion_model.")
  x0, noise = channels_last(arrays["x0"]), channels_last(arrays["noise"])
  frame, label = channels_last(arrays["condition_frame"])[:, 0], arrays["y"].astype(np.int32)
  coarse = forward(params, frame, label)
  keep = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[arrays["t"]].reshape(-1, 1, 1, 1, 1)
  zt = np.float32(np.sqrt(keep) * x0 + np.sqrt(1 - keep) * noise)
  pred = denoise(denoiser, zt, arrays["t"].astype(np.float32), label, frame, coarse)
  denoising, regression = mean_square(pred - noise), mean_square(coarse - x0)
  np.testing.assert_allclose(denoising, arrays["combination.loss_denoising"], rtol=1e-5)
  regression *= arrays["combination.lambda"]
  np.testing.assert_allclose(regression, arrays["combination.loss_regression"], rtol=1e-5)
  np.testing.assert_allclose(regression + denoising, arrays["combination.loss"], rtol=1e-5)


def test_positions_are_the_published_tables(shared):
  arrays = golden.arrays(shared, "latte_tiny")
  np.testing.assert_array_equal(latte.place_table(4, 32).reshape(1, 16, 32), arrays["pos_embed"])
  np.testing.assert_array_equal(latte.line_table(5, 32)[None], arrays["temp_embed"])


@pytest.mark.parametrize(("manifest", "keys", "network", "model", "trained"), FULL)
def test_every_key_of_the_full_size_files_has_its_leaf(
  shared, manifest, keys, network, model, trained
):
  manifest = golden.manifest(shared, f"full/{manifest}")
  layout = table.layout(network, manifest["config"])
  leaves = {leaf.key: leaf.shape for leaf in layout.leaves(manifest["config"])}
  assert leaves == {layout.plain(key): tuple(shape) for key, shape, *_ in manifest["keys"]}
  lines = (shared / "golden/keys" / f"{keys}.tsv").read_text().splitlines()
  listed = dict(line.split("\t")[:2] for line in lines)
  assert {key: str(shape) for key, shape in leaves.items()} == {
    layout.plain(key): shape for key, shape in listed.items()
  }
  ours = networks.shapes(model, **port.arguments(network, manifest["config"]))
  assert sum(map(math.prod, ours.values())) == manifest["total_parameters"]
  assert sum(math.prod(x) for path, x in ours.items() if "positions" not in path) == trained
  prefix = layout.prefix if network == "latte_prior" else ""
  assert port.recognize(key for key, *_ in manifest["keys"]) == {prefix: network}


@pytest.mark.parametrize(
  ("name", "millions"), [("S", 32.48), ("B", 129.55), ("L", 456.82), ("XL", 673.68)]
)
def test_a_diffusion_latte_has_the_published_number_of_parameters(name, millions):
  config = dict(model=f"Latte-{name}/2", input_size=32, num_frames=16, learn_sigma=True)
  ours = networks.shapes(latte.Latte, **port.arguments("latte", config))
  trained = sum(math.prod(x) for path, x in ours.items() if "positions" not in path)
  assert round(trained / 1e6, 2) == millions


def test_places_count_columns_first_and_frames_are_a_line():
  """Channels: [sin, cos] of the column, then of the row."""
  row, column = 3, 2
  place = latte.place_table(5, 16)[row, column]
  frequency = np.array([1, 1e-1, 1e-2, 1e-3])
  parts = [f(n * frequency) for n in (column, row) for f in (np.sin, np.cos)]
  np.testing.assert_allclose(place, np.concatenate(parts), atol=1e-6)
  frequency = 10_000 ** (-np.arange(8) / 8)
  line = np.concatenate([np.sin(6 * frequency), np.cos(6 * frequency)])
  np.testing.assert_allclose(latte.line_table(7, 16)[6], line, atol=1e-6)


def test_larger_and_longer_videos_meet_the_positions_of_a_larger_table():
  positions = latte.Positions(4, 5, 64)
  places = positions.of_places(6, 3).reshape(6, 3, 64)
  np.testing.assert_allclose(places, latte.place_table(6, 64)[:, :3], atol=1e-6)
  np.testing.assert_allclose(positions.of_frames(9), latte.line_table(9, 64), atol=1e-6)
  # A table whose first row stands twice is one frame behind, and stays so.
  table = latte.line_table(5, 64)
  positions.time = nnx.Param(jnp.asarray(np.concatenate([table[:1], table])))
  np.testing.assert_allclose(positions.of_frames(10)[1:], latte.line_table(9, 64), atol=1e-6)


def test_smaller_videos_meet_the_same_positions():
  positions = latte.Positions(4, 5, 8)
  places = positions.of_places(2, 3).reshape(2, 3, 8)
  np.testing.assert_array_equal(places, latte.place_table(4, 8)[:2, :3])
  np.testing.assert_array_equal(positions.of_frames(3), latte.line_table(3, 8))
  forward, params = toy()
  x, time, label, _ = inputs(2, (4, 6))
  assert jax.eval_shape(forward, params, x, time, label).shape == x.shape


def test_a_fresh_latte_predicts_zero_and_its_blocks_are_the_identity():
  assert not np.any(toy()[0](fresh(), *inputs()))
  graph, _ = networks.split(latte.Latte, **TOY)

  @jax.jit
  def pair(params, *args):
    return jax.tree.map(lambda p: p[1], nnx.merge(graph, params).pairs)(*args)

  x, emb, frames = normal(2, 3, 4, 16), normal(2, 16), normal(3, 16, seed=1)
  np.testing.assert_array_equal(pair(fresh(), x, emb, frames), x + frames[None, :, None])


def test_weights_start_as_published():
  params = trees.flatten(fresh())
  for path, (c_in, c_out) in {"pairs/temporal/qkv": (16, 48), "patches": (12, 16)}.items():
    kernel, bound = params[f"{path}/kernel"], math.sqrt(6 / (c_in + c_out))
    assert 0.97 * bound < np.abs(kernel).max() <= bound  # Xavier's, of the fused projection
  for path in ("time/up/kernel", "time/out/kernel", "label/embedding"):
    np.testing.assert_allclose(np.std(params[path]), 0.02, rtol=0.15)
  for path, x in params.items():
    fixed = path.endswith("bias") or "modulation" in path or "head" in path
    assert bool(np.any(x)) != fixed, path
  spatial, temporal = (params[f"pairs/{kind}/qkv/kernel"] for kind in ("spatial", "temporal"))
  assert len({float(x[0, 0]) for x in (*spatial, *temporal)}) == 4  # no two alike


def test_the_scan_is_a_loop_over_blocks_in_the_published_order():
  """Spatial, temporal, spatial, ...: frames get their positions before the first temporal one."""
  graph, _ = networks.split(latte.Latte, **TOY)
  _, params = toy()

  def loop(params, x, time, label):
    model = nnx.merge(graph, params)
    emb = nnx.silu(model.time(time) + model.label(label))
    b, t, h, w, c = x.shape
    patches = x.reshape(b, t, h // 2, 2, w // 2, 2, c).transpose(0, 1, 2, 4, 3, 5, 6)
    x = model.patches(patches.reshape(b, t, h * w // 4, 4 * c))
    x += model.positions.space[...].reshape(1, 1, h * w // 4, -1)
    for i in range(TOY["depth"]):
      blocks = model.pairs.temporal if i % 2 else model.pairs.spatial
      block = jax.tree.map(lambda p, i=i: p[i // 2], blocks)
      if i == 1:
        x += model.positions.time[...][None, :t, None]
      turned = x.swapaxes(1, 2) if i % 2 else x
      turned = block(turned, emb, along_time=bool(i % 2))
      x = turned.swapaxes(1, 2) if i % 2 else turned
    x = model.head(x, emb).reshape(b, t, h // 2, w // 2, 2, 2, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h, w, c)

  x, time, label, _ = inputs(4)
  forward, _ = toy()
  ours = forward(params, x, time, label)
  np.testing.assert_allclose(ours, jax.jit(loop)(params, x, time, label), atol=1e-4)


def test_the_image_is_one_more_frame_in_front_whose_output_is_dropped():
  forward, params = toy()
  x, time, label, frame = inputs()
  out = forward(params, x, time, label, frame)
  whole = forward(params, jnp.concatenate([frame[:, None], x], 1), time, label)
  np.testing.assert_allclose(out, whole[:, 1:], atol=1e-5)
  other = forward(params, x, time, label, frame.at[0].add(1))
  assert np.abs(other - out)[0].reshape(3, -1).max(1).min() > 1e-3  # all frames see it
  np.testing.assert_allclose(other[1], out[1], atol=1e-5)  # those of its own clip
  assert np.abs(forward(params, x, time, label) - out).max() > 1e-3


def test_the_coarse_video_is_more_channels_and_the_image_stands_in_front_of_it():
  forward, params = toy(c_in=6)
  x, time, label, frame = inputs()
  coarse = normal(2, 3, 8, 8, 3, seed=2)
  out = forward(params, x, time, label, frame, coarse)
  whole = jnp.concatenate([frame[:, None], x], 1), jnp.concatenate([frame[:, None], coarse], 1)
  ours = forward(params, jnp.concatenate(whole, -1), time, label)[:, 1:]
  np.testing.assert_allclose(out, ours, atol=1e-5)
  without = forward(params, x, time, label, None, coarse)
  ours = forward(params, jnp.concatenate([x, coarse], -1), time, label)
  np.testing.assert_allclose(without, ours, atol=1e-5)


def test_time_between_integers_label_place_and_frame_matter():
  forward, params = toy()
  x, time, label, _ = inputs()
  out = forward(params, x, time, label)
  for changed in (
    (x, time + 0.5, label),
    (x, time, label + 1),
    (x + 0.1, time, label),
  ):
    assert np.abs(forward(params, *changed) - out).max() > 1e-3
  # Without positions the output would be reversed with the frames, and turned with the patches.
  turned = x.reshape(2, 3, 4, 2, 8, 3)[:, :, ::-1].reshape(x.shape)
  back = forward(params, turned, time, label).reshape(2, 3, 4, 2, 8, 3)[:, :, ::-1]
  assert np.abs(back.reshape(out.shape) - out).max() > 1e-3
  assert np.abs(forward(params, x[:, ::-1], time, label)[:, ::-1] - out).max() > 1e-3


def test_the_prior_tells_frames_apart_by_their_positions_alone():
  sizes = TOY | {"depth": 2}
  graph, _ = networks.split(latte.NeuralPrior, **sizes)
  params, forward = networks.params(latte.NeuralPrior, **sizes), networks.call(graph)
  _, _, label, frame = inputs()
  out = forward(params, frame, label)
  assert out.shape == (2, 4, 8, 8, 3)
  assert np.abs(out[:, 1:] - out[:, :1]).max((0, 2, 3, 4)).min() > 1e-3
  assert np.abs(forward(params, frame, label + 1) - out).max() > 1e-3
  params["latte"]["positions"]["time"] = jnp.zeros((4, 16))
  out = forward(params, frame, label)
  np.testing.assert_allclose(out[:, 1:], out[:, :3], atol=1e-5)
  assert not [path for path in networks.shapes(latte.NeuralPrior, **sizes) if "latte/time" in path]


def test_wrapping_pairs_in_checkpoint_leaves_the_gradient_and_positions_have_none():
  _, params = toy()
  *args, frame = inputs()

  def grad(**kwargs):
    forward = networks.call(networks.split(latte.Latte, **TOY, **kwargs)[0])

    def loss(params):
      return jnp.square(forward(params, *args, frame) - args[0]).sum()

    return jax.jit(jax.grad(loss)).lower(params)

  plain, wrapped = grad(), grad(wrap=jax.checkpoint)
  assert "optimization_barrier" in wrapped.as_text()
  assert "optimization_barrier" not in plain.as_text()
  ours, theirs = (trees.flatten(x.compile()(params)) for x in (wrapped, plain))
  for path, x in theirs.items():
    scale = float(np.abs(x).max())
    assert np.isfinite(scale)
    assert (scale == 0) == path.startswith("positions"), path
    np.testing.assert_allclose(ours[path], x, atol=1e-5 * max(1, scale), err_msg=path)


def test_bfloat16_stays_within_two_percent_and_leaves_params_in_float32():
  forward, params = toy(width=64)
  exact = forward(params, *inputs())
  sizes = TOY | {"width": 64, "dtype": jnp.bfloat16}
  # As users compile it: unoptimised code rounds to bfloat16 more often.
  optimised = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
  graph, _ = networks.split(latte.Latte, **sizes)
  out = networks.call(graph, compiler_options=optimised)(params, *inputs())
  assert out.dtype == jnp.float32
  assert 1e-4 < math.sqrt(np.square(out - exact).mean() / np.square(exact).mean()) < 2e-2

  def make():
    return latte.Latte(**sizes, rngs=layers.Keys(jax.random.key(0)))

  leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param))
  assert {x.dtype for x in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  ("sizes", "change", "message"),
  [
    ({}, lambda x, t, y, f: (x[:, :, :7], t, y), "7 x 8: both must divide by the patch of 2"),
    ({"c_in": 6}, lambda x, t, y, f: (x, t, y), "6 channels, x and `coarse` together have 3"),
    ({}, lambda x, t, y, f: (x, None, y), "needs a time: pass `time`"),
    ({}, lambda x, t, y, f: (x, t), "needs a label: pass `label`"),
    ({"classes": None}, lambda x, t, y, f: (x, t, y), "knows no label: leave out `label`"),
    ({"timed": False}, lambda x, t, y, f: (x, t, y), "knows no time: leave out `time`"),
    ({"text": 5}, lambda x, t, y, f: (x, t, y), "needs a text: pass `text`"),
  ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(sizes, change, message):
  sizes = TOY | sizes
  graph, _ = networks.split(latte.Latte, **sizes)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(networks.call(graph), networks.params(latte.Latte, **sizes), *change(*inputs()))


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"heads": 3}, "width, 16, must divide by its heads, 3"),
    ({"depth": 3}, "depth, 3, must be even"),
    ({"patch": 3}, "size, 8, must divide by its patch, 3"),
    ({"width": 18}, "18 does not divide by 4"),
  ],
)
def test_sizes_that_no_latte_has_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    networks.shapes(latte.Latte, **TOY | sizes)


CASES = [("latte", latte.Latte, TOY | v) for v in VARIANTS]
CASES += [("latte_prior", latte.NeuralPrior, TOY | v) for v in VARIANTS]


def tensors(network, sizes):
  leaves = table.layout(network, sizes).leaves(sizes)
  return {leaf.key: golden.weight(leaf.key, leaf.shape) for leaf in leaves}


@pytest.mark.parametrize(("network", "model", "sizes"), CASES)
def test_the_table_names_the_leaves_of_the_model_and_back_is_bitwise(network, model, sizes):
  there = tensors(network, sizes)
  params = port.to_flax(network, there, sizes)
  ours = {path: np.shape(x) for path, x in trees.flatten(params).items()}
  assert ours == networks.shapes(model, **sizes)
  back = port.to_torch(network, params, sizes)
  assert back.keys() == there.keys()
  for key in there:
    np.testing.assert_array_equal(back[key], there[key])


def test_patches_are_a_convolution_and_blocks_alternate():
  there = tensors("latte", TOY)
  params = port.to_flax("latte", there, TOY)
  x, kernel = inputs()[0][:, 0], there["x_embedder.proj.weight"].transpose(2, 3, 1, 0)
  theirs = jax.lax.conv_general_dilated(
    x, jnp.asarray(kernel), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  patches = x.reshape(2, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 12)
  np.testing.assert_allclose(patches @ params["patches"]["kernel"], theirs, atol=1e-5)
  for i in range(4):
    kernel = params["pairs"]["temporal" if i % 2 else "spatial"]["qkv"]["kernel"][i // 2]
    np.testing.assert_array_equal(kernel, there[f"blocks.{i}.attn.qkv.weight"].T)


def test_a_learned_variance_is_cut_and_leaves_the_mean():
  full = TOY | {"c_out": 6}
  there = tensors("latte", full)
  ours, done = names.from_diffusion(there, **TOY)
  assert done == {
    "final_layer.linear.weight": "12 of 24 rows left, those of the learned variance cut",
    "final_layer.linear.bias": "12 of 24 rows left, those of the learned variance cut",
  }
  mean = toy()[0](port.to_flax("latte", ours, TOY), *inputs())
  both = toy(c_out=6)[0](port.to_flax("latte", there, full), *inputs())
  np.testing.assert_allclose(mean, both[..., :3], atol=1e-5)
  again, done = names.from_diffusion(ours, **TOY)
  assert not done and all(again[key] is ours[key] for key in ours)


def test_a_diffusion_latte_gets_a_frame_in_front_at_the_place_of_the_first():
  there = tensors("latte", TOY)
  more = TOY | {"frames": 5}
  ours, done = names.from_diffusion(there, **more)
  assert done == {"temp_embed": "4 frames became 5: the first is repeated in front"}
  time = port.to_flax("latte", ours, more)["positions"]["time"]
  np.testing.assert_array_equal(time, there["temp_embed"][0][[0, 0, 1, 2, 3]])


def test_both_networks_of_a_priors_file_are_recognized_and_read():
  prior, network = tensors("latte_prior", TOY), tensors("latte", TOY | {"c_in": 6})
  whole = {f"nwarp_model.{key}": x for key, x in prior.items()}
  whole |= {f"diffusion_model.{key}": x for key, x in network.items()}
  assert port.recognize(whole) == {"nwarp_model.": "latte_prior", "diffusion_model.": "latte"}
  params, report = port.fill("latte_prior", whole, TOY)
  assert len(report.left) == len(network)
  kernel = np.asarray(params["latte"]["patches"]["kernel"])
  np.testing.assert_array_equal(kernel[0], prior["x_embedder.proj.weight"][:, 0, 0, 0])
  assert port.recognize(network) == {"": "latte"}


def test_a_checkpoint_that_is_no_latte_of_these_sizes_is_refused():
  there = tensors("latte", TOY)
  with pytest.raises(ValueError, match="missing    blocks.4.attn.qkv.weight"):
    port.to_flax("latte", there, TOY | {"depth": 6})
  with pytest.raises(ValueError, match="misshapen  final_layer.linear.bias"):
    port.to_flax("latte", there, TOY | {"c_out": 6})
  prior = {f"nwarp_model.{key}": x for key, x in tensors("latte_prior", TOY).items()}
  with pytest.raises(ValueError, match="It looks like latte_prior"):
    port.to_flax("latte", prior, TOY)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"extras": 78}, "extras 1 or 2, the config says 78"),
    ({"condition_type": "cross_attention"}, "'concat_pre', the config says 'cross_attention'"),
    ({"dct_domain": True}, "dct_domain"),
  ],
)
def test_a_config_of_another_kind_of_latte_is_refused(change, message):
  config = dict(model="Latte-S/2", input_size=32, num_frames=16, learn_sigma=True) | change
  with pytest.raises(ValueError, match=message):
    port.arguments("latte", config)
