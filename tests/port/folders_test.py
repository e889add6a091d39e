import json
import os

import numpy as np
import pytest

from fbjax import errors
from fbjax.port import files

FULL = {"a.weight": np.arange(4, dtype=np.float32), "b.bias": np.ones(2, np.float32)}
HALF = {key: x.astype(np.float16) for key, x in FULL.items()}


def put(folder, name, tensors, index=None):
  """A file, or two of them and the index that lists them."""
  folder.mkdir(exist_ok=True)
  if index is None:
    files.write(folder / name, tensors, home="")
    return
  listed = {}
  for i, (key, x) in enumerate(tensors.items()):
    listed[key] = name.format(f"-{i + 1:05}-of-00002")
    files.write(folder / listed[key], {key: x}, home="")
  (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def refused(folder, why):
  with pytest.raises(errors.UserError, match=why) as error:
    files.read(folder)
  assert str(folder) in str(error.value) and "\n" not in str(error.value)


def dtype(checkpoint):
  assert checkpoint.tensors.keys() == FULL.keys()
  np.testing.assert_array_equal(checkpoint.tensors["a.weight"], FULL["a.weight"])
  (found,) = {x.dtype for x in checkpoint.tensors.values()}
  return found


def test_the_usual_weights_come_before_their_variants(tmp_path):
  put(tmp_path, "model.fp16.bin", HALF)
  assert dtype(files.read(tmp_path)) == np.float16
  put(tmp_path, "model.fp16.safetensors", HALF)
  assert files.read(tmp_path).kind == "a diffusers folder, variant fp16"
  put(tmp_path, "model{}.fp16.safetensors", HALF, "model.safetensors.index.fp16.json")
  assert dtype(files.read(tmp_path)) == np.float16
  put(tmp_path, "pytorch_model.bin", FULL)
  assert dtype(files.read(tmp_path)) == np.float32
  put(tmp_path, "model.safetensors", FULL)
  assert dtype(files.read(tmp_path)) == np.float32
  (tmp_path / "config.json").write_text(json.dumps({"width": [4]}))
  (tmp_path / "._model.safetensors").write_bytes(b"as macOS leaves it")
  checkpoint = files.read(tmp_path)
  assert (checkpoint.kind, checkpoint.config) == ("a diffusers folder", {"width": [4]})


@pytest.mark.parametrize(
  ("name", "index"),
  [
    ("model.fp16{}.safetensors", "model.fp16.safetensors.index.json"),
    ("model{}.fp16.safetensors", "model.safetensors.index.fp16.json"),
  ],
)
def test_of_two_indices_the_one_without_a_variant_counts(tmp_path, name, index):
  put(tmp_path, name, HALF, index)
  assert dtype(files.read(tmp_path)) == np.float16
  put(tmp_path, "model{}.safetensors", FULL, "model.safetensors.index.json")
  assert dtype(files.read(tmp_path)) == np.float32


def test_a_version_in_a_name_is_no_variant(tmp_path):
  put(tmp_path, "model_v1.5.safetensors", FULL)
  assert files.read(tmp_path).kind == "a diffusers folder"
  put(tmp_path, "model_v2.safetensors", FULL)
  refused(tmp_path, "holds model_v1.5.safetensors, model_v2.safetensors: name the one")


def test_a_deepspeed_folder_is_read_through_its_model_states(tmp_path):
  states = tmp_path / "checkpoint" / "mp_rank_00_model_states.pt"
  states.parent.mkdir()
  files.write(states, {f"_forward_module.{k}": x for k, x in FULL.items()}, home="module")
  checkpoint = files.read(tmp_path)
  assert checkpoint.kind == "a DeepSpeed checkpoint"
  assert dtype(checkpoint) == np.float32


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_shards_hold_what_their_index_lists(tmp_path, wrapper):
  named = {wrapper + key: x for key, x in FULL.items()}
  put(tmp_path, "model{}.safetensors", named, "model.safetensors.index.json")
  assert dtype(files.read(tmp_path)) == np.float32
  files.write(tmp_path / "model-00002-of-00002.safetensors", {"c": np.ones(2)})
  refused(tmp_path, "lacks 1 tensors that its index names, such as b.bias")
  (tmp_path / "model-00002-of-00002.safetensors").unlink()
  refused(tmp_path, "lacks model-00002-of-00002.safetensors, which its index")
  (tmp_path / "model.safetensors.index.json").unlink()
  refused(tmp_path, "no index of such files")


@pytest.mark.parametrize(
  "name",
  [
    *("../outside/secret.safetensors", "{outside}/secret.safetensors", ".", "..", "", "/"),
    *("inner/x.safetensors", "./x.safetensors", "x\0.safetensors", "link.safetensors"),
    *("inner", "fifo.safetensors", "x.safetensors.index.json", "nothing.safetensors", "x" * 300),
  ],
)
def test_an_index_leads_to_files_of_its_folder_only(tmp_path, name):
  outside, folder = tmp_path / "outside", tmp_path / "in"
  put(outside, "secret.safetensors", FULL)
  put(folder, "x.safetensors", FULL)
  put(folder / "inner", "x.safetensors", FULL)
  (folder / "link.safetensors").symlink_to(outside / "secret.safetensors")
  os.mkfifo(folder / "fifo.safetensors")
  listed = {"a.weight": name.format(outside=outside)}
  (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
  refused(folder, "index x.safetensors.index.json|holds|cannot be read|inside|links|JSON")


def test_links_lead_to_the_folder_or_the_cache_of_the_hub(tmp_path):
  """models--x/snapshots/<revision>/unet/model.safetensors -> models--x/blobs/<digest>."""
  put(tmp_path / "blobs", "digest.safetensors", FULL)
  folder = tmp_path / "snapshots" / "revision" / "unet"
  folder.mkdir(parents=True)
  (folder / "model.safetensors").symlink_to("../../../blobs/digest.safetensors")
  assert dtype(files.read(folder)) == np.float32
  other = tmp_path / "folder"
  other.mkdir()
  (other / "model.safetensors").symlink_to("../blobs/digest.safetensors")
  refused(other, "links model.safetensors to outside")
  (other / "model.safetensors").unlink()
  put(other, "model.safetensors", FULL)
  (other / "config.json").symlink_to("/etc/passwd")
  refused(other, "links config.json to outside")


@pytest.mark.parametrize(
  ("text", "why"),
  [
    (b"", "no JSON"),
    (b"{", "no JSON"),
    (b"[" * 10**5, "no JSON"),
    (b'{"a": "\xff"}', "no JSON"),
    (b"[]", "no table"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    (b"{" + b" " * 2**24 + b"}", "more than"),
  ],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_cannot_be_read_is_named(tmp_path, name, text, why):
  put(tmp_path, "model.safetensors", FULL)
  (tmp_path / name).write_bytes(text)
  refused(tmp_path, f"{name}.*{why}")


@pytest.mark.parametrize("listed", [None, [], {}, 1, {"a": 1}, {"a": ["x"]}])
def test_an_index_without_files_is_refused(tmp_path, listed):
  put(tmp_path, "model.safetensors", FULL)
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
  refused(tmp_path, "index")


def test_folders_without_weights_say_what_they_hold(tmp_path):
  refused(tmp_path, "holds no .safetensors and no .bin: name")
  put(tmp_path / "unet", "model.safetensors", FULL)
  put(tmp_path / "vae", "model.bin", FULL)
  refused(tmp_path, "but unet, vae: name one of these")
  put(tmp_path, "last.ckpt", FULL)
  refused(tmp_path, "but last.ckpt: name one of these")
  put(tmp_path, "a\n.safetensors", FULL)
  put(tmp_path, "b.safetensors", FULL)
  refused(tmp_path, r"holds a\\n.safetensors, b.safetensors: name the one")


def test_what_is_wrong_with_a_shard_names_the_shard(tmp_path):
  put(tmp_path, "model{}.safetensors", FULL, "model.safetensors.index.json")
  shard = tmp_path / "model-00002-of-00002.safetensors"
  shard.write_bytes(b"")
  refused(tmp_path, f"{shard} is empty")
