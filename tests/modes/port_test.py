import logging
import pathlib
import re
import threading

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import fake_checkpoint, port_memory
from configs import webvid_saf, webvid_saf_cogvideox
from fbjax import build, errors, loading, sharding, trees
from fbjax import weights as weights_lib
from fbjax.evaluation import networks as metrics
from fbjax.modes import export, memory, port, sample, train
from fbjax.port import convert, files, leaf, table


def tiny(**port):
  c = webvid_saf.get_config("smoke")
  c.data.update(frames=2, size=16)
  c.system.unet.update(width=8, groups=4)
  c.system.text.update(vocab=303, length=16, width=16, layers=2)
  c.system.image.update(width=16)
  c.system.resampler.update(width=16)
  return c.to_dict()


@pytest.fixture(scope="module")
def config():
  return tiny()


@pytest.fixture(scope="module")
def system(config):
  return build.make_system(config, None)


@pytest.fixture(scope="module")
def checkpoints(system, tmp_path_factory):
  contents = {
    "t2v.ckpt": fake_checkpoint.text_to_video(system),
    "clip.safetensors": fake_checkpoint.open_clip(system),
  }
  return fake_checkpoint.write(tmp_path_factory.mktemp("published"), contents)


@pytest.fixture(scope="module")
def ported(config, checkpoints, tmp_path_factory):
  folder = tmp_path_factory.mktemp("ported") / "vc"
  port.port_files(config, checkpoints, str(folder))
  return str(folder)


def test_the_port_says_what_it_used_made_new_and_left(config, checkpoints, tmp_path, caplog):
  caplog.set_level(logging.INFO, logger="fbjax")
  port.port_files(config, checkpoints, str(tmp_path / "out"))
  text = caplog.text
  assert "a Lightning checkpoint" in text and "a safetensors file" in text
  assert "videocrafter_unet" in text and "parameters" in text
  assert "in_conv/kernel  2 of 4 input channels" in text or "in_conv/kernel  4 of 8" in text
  assert "stride/out/kernel  not in the file" in text
  assert "resampler is in no file: every run draws it anew." in text
  assert "Of no network: alphas_cumprod, betas, scale_arr." in text


@pytest.mark.thorough
def test_ported_weights_are_the_files_on_any_mesh(config, checkpoints, ported):
  tensors = files.read(checkpoints[0]).tensors
  config = config | {"weights": ported}
  system = build.make_system(config, None)
  for mesh in (sharding.make_mesh(1, 1, devices=jax.devices()[:1]), sharding.make_mesh(2, 4)):
    starting = loading.starting_weights(config, system, mesh)
    params, frozen = starting.params(), starting.frozen
    kernel = tensors["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"]
    ours = params["unet"]["down"][0]["res"]["in_conv"]["kernel"]
    np.testing.assert_array_equal(ours, kernel.transpose(2, 3, 1, 0).astype(np.float32))
    bias = tensors["cond_stage_model.model.ln_final.bias"]
    np.testing.assert_array_equal(frozen["text"]["norm"]["bias"], bias.astype(np.float32))
    assert {x.sharding.mesh.size for x in jax.tree.leaves(params)} == {mesh.size}


def test_export_writes_back_what_was_there_bit_for_bit(config, checkpoints, ported, tmp_path):
  out = tmp_path / "back.ckpt"
  export.export(config | {"weights": ported}, None, str(out))
  back, there = files.read(out).tensors, files.read(checkpoints[0]).tensors
  for key in there:
    assert back[key].dtype == there[key].dtype, key
    np.testing.assert_array_equal(back[key], there[key], err_msg=key)
  own = files.read(checkpoints[1]).tensors
  for key in own:
    np.testing.assert_array_equal(back["embedder.model." + key], own[key])


def test_what_was_exported_can_be_ported_again(config, ported, tmp_path):
  export.export(config | {"weights": ported}, None, str(tmp_path / "whole.safetensors"))
  port.port_files(config, [str(tmp_path / "whole.safetensors")], str(tmp_path / "again"))
  one, two = (export.stored_tree(str(f)) for f in (ported, tmp_path / "again"))
  one, two = (trees.flatten(tree["networks"]) for tree in (one, two))
  assert one.keys() == two.keys()
  for path in one:
    np.testing.assert_array_equal(one[path], two[path], err_msg=path)


def test_missing_unexpected_and_misshapen_keys_are_all_listed(config, system, tmp_path):
  tensors = fake_checkpoint.text_to_video(system)
  del tensors["model.diffusion_model.out.0.weight"]
  tensors["model.diffusion_model.extra.weight"] = fake_checkpoint.random("extra", (3,))
  tensors["model.diffusion_model.out.0.bias"] = fake_checkpoint.random("bias", (7,))
  paths = fake_checkpoint.write(
    tmp_path, {"a.ckpt": tensors, "b.safetensors": fake_checkpoint.open_clip(system)}
  )
  with pytest.raises(ValueError) as error:
    port.port_files(config, paths, str(tmp_path / "out"))
  message = str(error.value)
  assert "network 'unet'" in message
  for line in ("missing    out.0.weight", "unexpected extra.weight", "misshapen  out.0.bias"):
    assert line in message


def test_another_models_file_says_what_it_looks_like(config, system, tmp_path):
  paths = fake_checkpoint.write(tmp_path, {"clip.safetensors": fake_checkpoint.open_clip(system)})
  with pytest.raises(ValueError, match="no file holds the network 'unet'.*look like clip"):
    port.port_files(config, paths, str(tmp_path / "out"))


def test_numbers_that_are_none_leave_nothing_behind(config, system, tmp_path):
  tensors = fake_checkpoint.text_to_video(system)
  key = "model.diffusion_model.out.0.weight"
  tensors[key] = np.full(tensors[key].shape, np.nan, np.float16)
  paths = fake_checkpoint.write(
    tmp_path, {"a.ckpt": tensors, "b.safetensors": fake_checkpoint.open_clip(system)}
  )
  with pytest.raises(ValueError, match="not finite in unet/out_norm/scale"):
    port.port_files(config, paths, str(tmp_path / "out"))
  assert not any((tmp_path / "out").glob("*"))


def test_tensors_of_no_network_must_be_named(config, system, tmp_path):
  tensors = fake_checkpoint.text_to_video(system) | {
    "teacher.weight": fake_checkpoint.random("t", (2, 2))
  }
  paths = fake_checkpoint.write(
    tmp_path, {"a.ckpt": tensors, "b.safetensors": fake_checkpoint.open_clip(system)}
  )
  with pytest.raises(ValueError, match="(?s)teacher.weight.*config.port.ignore"):
    port.port_files(config, paths, str(tmp_path / "out"))
  named = config | {"port": config["port"] | {"ignore": (r"teacher\..*",)}}
  port.port_files(named, paths, str(tmp_path / "out"))


def test_other_sizes_in_the_config_are_listed_before_anything_is_read(config, ported):
  unet = dict(config["system"]["unet"], width=16)
  other = config | {"weights": ported, "system": config["system"] | {"unet": unet}}
  with pytest.raises(errors.UserError, match="misshapen unet/in_conv/kernel"):
    build.make_system(other, None)


def pixels(path):
  with av.open(str(path)) as container:
    return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(int)


@pytest.mark.thorough
def test_a_ported_checkpoint_trains_samples_and_goes_back(config, ported, tmp_path, monkeypatch):
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  monkeypatch.setattr(build, "make_mesh", lambda config: one)
  image, workdir, out = tmp_path / "cat.png", str(tmp_path / "run"), tmp_path / "back.ckpt"
  Image.new("RGB", (20, 30), "teal").save(image)
  config = config | {"weights": ported}
  config["train"] = config["train"] | dict(steps=1, batch_size=2, preview_every=100, save_every=1)
  train.train(config, workdir)
  sample.sample(config, workdir, image=str(image), out=str(tmp_path / "a.mp4"), image_guidance=2.0)
  assert (tmp_path / "a.mp4").stat().st_size > 1000
  export.export(config, workdir, str(out))
  back = files.read(out).tensors
  key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
  frozen = "first_stage_model.encoder.conv_in.weight"
  was = export.stored_tree(ported)
  before = np.asarray(was["networks"]["unet"]["down"][0]["res"]["in_conv"]["kernel"])
  moved = np.abs(back[key].transpose(2, 3, 1, 0) - before.astype(np.float32)).max()
  assert 0 < moved < 1e-3  # one step of 1e-5, averaged
  # What no file held is written too, and the file can be sampled as one that was released.
  assert any(key.startswith("image_proj_model.") for key in back)
  again = config | {"weights": str(tmp_path / "again"), "start": {}}
  again["port"] = config["port"] | {"ignore": (".*",)}
  port.port_files(again, [str(out)], str(tmp_path / "again"))
  named = {"image": str(image), "image_guidance": 2.0}
  sample.sample(again, None, out=str(tmp_path / "b.mp4"), **named)
  one, two = (pixels(tmp_path / name) for name in ("a.mp4", "b.mp4"))
  assert np.abs(one - two).max() <= 8  # bf16, and the codec
  np.testing.assert_array_equal(
    back[frozen].transpose(2, 3, 1, 0), was["networks"]["vae"]["encoder"]["in_conv"]["kernel"]
  )


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_stack_is_written_in_less_memory_than_it_takes(tmp_path):
  """And read in little more."""
  rng = np.random.default_rng(0)
  (kernel, _) = leaf.linear(1280, 5120)
  # Uniform bits of normal numbers: what can be compressed takes less memory on the way.
  bits = rng.integers(0, 2**10, (16, *kernel.shape), np.uint16) | np.uint16(0x2800)
  stack = convert.stack([(x, kernel) for x in bits.view(np.float16)])
  size = bits.nbytes / 1e6
  memory.return_freed()
  write = peak(
    lambda: weights_lib.write(str(tmp_path), {"networks/n/w": stack}, port.check, {"parts": {}})
  )
  assert write < 0.85 * size  # how much waits to be written depends on the disk
  stored = export.stored_tree(str(tmp_path))["networks"]["n"]["w"]
  assert peak(lambda: np.asarray(stored)) < 1.5 * size
  for x, there in zip(bits.view(np.float16), np.asarray(stored), strict=True):
    np.testing.assert_array_equal(there, x.T)


def peak(work):
  """The most memory, in MB, that no file backs, beyond that at the start."""
  done, before, most = threading.Event(), port_memory.anonymous(), [0.0]

  def watch():
    while not done.wait(0.002):
      most[0] = max(most[0], port_memory.anonymous())

  thread = threading.Thread(target=watch)
  thread.start()
  work()
  done.set()
  thread.join()
  return most[0] - before


def test_a_second_port_into_a_folder_is_refused(config, checkpoints, ported):
  with pytest.raises(ValueError, match="already holds weights"):
    port.port_files(config, checkpoints, ported)


def test_a_file_in_the_place_of_a_network_s_folder_is_named(tmp_path):
  config = webvid_saf_cogvideox.get_config("smoke").to_dict()
  spec = build.make_networks(config, None).networks["transformer"]
  (tmp_path / "transformer").write_text("")
  with pytest.raises(errors.UserError, match="cannot write to .*transformer: it is no folder"):
    export.write_folder("transformer", spec, "diffusers", {}, tmp_path)


def test_a_trained_cogvideox_is_a_folder_that_diffusers_runs(tmp_path, monkeypatch):
  """Port its folders, train, and export: diffusers loads them, and the outputs are ours."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  c = webvid_saf_cogvideox.get_config("smoke")
  c.system.text.update(vocab=303)
  c.system.transformer.update(patch=2)
  config = c.to_dict()
  system = build.make_system(config, None)
  published = tmp_path / "published"
  for name, part in system.networks.items():
    changes = {"c_in": 4} if name == "transformer" else {}  # as released: no image channels yet
    narrow = part._replace(sizes=dict(part.sizes) | changes)
    layout = table.layout_name(part.network, part.sizes)
    tensors = {k: np.asarray(x, np.float32) for k, x in fake_checkpoint.tensors(narrow, "").items()}
    export.write_folder(name, narrow, layout, tensors, published)
  folders = [str(published / name) for name in ("transformer", "vae", "text_encoder")]
  port.port_files(config, folders, str(tmp_path / "weights"))
  config["weights"], workdir = str(tmp_path / "weights"), str(tmp_path / "run")
  config["optim"] |= {"lr": 1e-2, "warmup": 0}
  config["train"] |= {"preview_every": 100}
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  monkeypatch.setattr(build, "make_mesh", lambda config: one)
  train.train(config, workdir)
  export.export(config, workdir, str(tmp_path / "back"))

  theirs = diffusers.CogVideoXTransformer3DModel.from_pretrained(
    tmp_path / "back/transformer", sample_height=4, sample_width=4, max_text_seq_length=16
  ).eval()
  system = build.make_system(config, None)
  starting = loading.starting_weights(config, system, one)
  frozen, was = starting.frozen, starting.params()
  params, _ = loading.trained_weights(config, system, one, workdir)
  moved = np.abs(params["transformer"]["out"]["kernel"] - was["transformer"]["out"]["kernel"])
  assert moved.max() > 1e-4
  rng = np.random.default_rng(0)
  x, text = (rng.standard_normal(s, np.float32) for s in ((1, 2, 4, 4, 8), (1, 16, 16)))
  time = np.array([500.0], np.float32)
  ours = np.asarray(system.run("transformer", params)(*map(jnp.asarray, (x, time, text))))
  with torch.no_grad():
    out = theirs(
      torch.from_numpy(x.transpose(0, 1, 4, 2, 3)), torch.from_numpy(text), torch.tensor([500.0])
    ).sample
  np.testing.assert_allclose(ours, out.numpy().transpose(0, 1, 3, 4, 2), atol=1e-4)
  vae = diffusers.AutoencoderKLCogVideoX.from_pretrained(tmp_path / "back/vae").eval()
  z = rng.standard_normal((1, 2, 2, 2, 4), np.float32)
  with torch.no_grad():
    video = vae.decode(torch.from_numpy(z.transpose(0, 4, 1, 2, 3))).sample
  decoded = np.asarray(system.run("vae", frozen, "decode")(jnp.asarray(z)))
  np.testing.assert_allclose(decoded, video.numpy().transpose(0, 2, 3, 4, 1), atol=1e-4)


@pytest.mark.parametrize(
  ("spec", "sentence"),
  [
    ({"ignore": 3}, "config.port.ignore is 3; expected a list"),
    ({"ignore": ("(",)}, "config.port.ignore has '[(]', which is no regular expression"),
    ({"unet": {"ignore": "("}}, "config.port.unet.ignore has '[(]', which is no regular"),
    ({"unet": "a.*"}, "config.port.unet is no list of keys to ignore"),
    ({"vnet": {}}, "config.port.vnet is no list of keys to ignore"),
  ],
)
def test_what_may_be_left_over_is_named_by_lists_of_patterns(system, spec, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    port.check_ignore(spec, system)


def test_nothing_of_a_network_need_be_left_over(system):
  assert port.check_ignore({"unet": {}}, system) == {"": (), "unet": ()}
  assert port.check_ignore({"ignore": "a.*"}, system) == {"": ("a.*",)}


@pytest.mark.parametrize("network", ["i3d", "c3d", "lpips"])
def test_a_file_without_the_network_of_a_measure_says_which_is_wanted(network, tmp_path):
  np.savez(tmp_path / "a.npz", x=np.zeros(3))
  wanted = re.escape(metrics.SOURCES[network][:20])
  told = f"no network known here, and not {network}; get {wanted}"
  with pytest.raises(errors.UserError, match=told):
    port.port_network(network, [str(tmp_path / "a.npz")], str(tmp_path / "out"))
