import collections
import json
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from fbjax.port import files


def tensors():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 4), np.float32)
  return {
    "a.weight": x,
    "a.half": x.astype(np.float16),
    "a.brain": x.astype(ml_dtypes.bfloat16),
    "scalar": np.float32(2.5).reshape(()),
    "count": np.arange(5),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "turned": x.T,
  }


def same(ours, theirs):
  assert ours.keys() == theirs.keys()
  for key, x in theirs.items():
    assert ours[key].dtype == x.dtype and ours[key].shape == x.shape
    assert ours[key].tobytes() == np.ascontiguousarray(x).tobytes()


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.safetensors"])
def test_what_is_written_is_read_again_bitwise(tmp_path, name):
  files.write(tmp_path / name, tensors())
  same(files.read(tmp_path / name).tensors, tensors())
  assert [f.name for f in tmp_path.iterdir()] == [name]


def test_tensors_are_mapped_and_not_copied(tmp_path):
  for name in ("x.ckpt", "x.safetensors"):
    files.write(tmp_path / name, tensors())
    x = files.read(tmp_path / name).tensors["a.weight"]
    assert not x.flags.owndata and not x.flags.writeable


@pytest.mark.parametrize(
  ("home", "kind"),
  [
    ("state_dict", "a Lightning checkpoint"),
    ("module", "a DeepSpeed checkpoint"),
    ("ema", "averaged weights under `ema`"),
    ("", "a state dict"),
  ],
)
def test_weights_are_found_where_training_programs_put_them(tmp_path, home, kind):
  wrapped = {f"_forward_module.{key}": x for key, x in tensors().items()}
  files.write(tmp_path / "x.ckpt", wrapped if home == "module" else tensors(), home=home)
  checkpoint = files.read(tmp_path / "x.ckpt")
  assert checkpoint.kind == kind
  same(checkpoint.tensors, tensors())


def test_a_deepspeed_folder_is_read_through_its_model_states(tmp_path):
  (tmp_path / "checkpoint").mkdir()
  wrapped = {f"_forward_module.{key}": x for key, x in tensors().items()}
  files.write(tmp_path / "checkpoint" / "mp_rank_00_model_states.pt", wrapped, home="module")
  same(files.read(tmp_path).tensors, tensors())


class Hyper(dict):
  """A class of a training program, as Lightning pickles it beside the weights."""


class Bomb:
  def __reduce__(self):
    return (eval, ("open('/tmp/fbjax_bomb', 'w')",))


def test_nothing_in_a_pickle_is_run_and_what_was_asked_for_is_named(tmp_path):
  pathlib.Path("/tmp/fbjax_bomb").unlink(missing_ok=True)
  path = tmp_path / "x.ckpt"
  files.write(path, {"w": np.ones(3, np.float32)}, home="")
  with zipfile.ZipFile(path) as file:
    entries = {name: file.read(name) for name in file.namelist()}
  # {"hyper": <pickled>, "state_dict": <what was written>}
  evil = {"hyper": Hyper(a=1), "bomb": Bomb(), "list": collections.deque([1, 2])}
  inner = pickle.dumps(evil, protocol=2)[2:-1]
  weights = entries["archive/data.pkl"][2:-1]

  def text(s):
    return b"X" + len(s).to_bytes(4, "little") + s.encode()

  whole = b"\x80\x02}(" + text("hyper") + inner + text("state_dict") + weights + b"u."
  entries["archive/data.pkl"] = whole
  with zipfile.ZipFile(path, "w") as file:
    for name, data in entries.items():
      file.writestr(name, data)
  checkpoint = files.read(path)
  same(checkpoint.tensors, {"w": np.ones(3, np.float32)})
  assert checkpoint.kind == "a Lightning checkpoint"
  assert checkpoint.inert == (
    "__builtin__.eval",
    "collections.deque",
    f"{Hyper.__module__}.Hyper",
  )
  assert not pathlib.Path("/tmp/fbjax_bomb").exists()


def test_strided_views_of_one_storage_are_read(tmp_path):
  storage = np.arange(12, dtype=np.float32)
  view = files._tensor(storage, 1, (2, 3), (1, 4))
  np.testing.assert_array_equal(view, [[1, 5, 9], [2, 6, 10]])
  with pytest.raises(ValueError, match="beyond its storage"):
    files._tensor(storage, 4, (2, 3), (1, 4))
  with pytest.raises(ValueError, match="beyond its storage"):
    files._tensor(storage, 0, (2, 3), (-1, 4))


def test_diffusers_folders_whole_and_in_shards(tmp_path):
  named = {key: x for key, x in tensors().items()}
  whole, shards = tmp_path / "whole", tmp_path / "shards"
  whole.mkdir(), shards.mkdir()
  (whole / "config.json").write_text(json.dumps({"block_out_channels": [4]}))
  files.write(whole / "diffusion_pytorch_model.safetensors", named)
  files.write(whole / "diffusion_pytorch_model.fp16.safetensors", named)
  checkpoint = files.read(whole)
  same(checkpoint.tensors, named)
  assert checkpoint.config == {"block_out_channels": [4]}

  weight_map = {}
  for i, key in enumerate(named):
    part = f"model-{i % 2}.safetensors"
    weight_map[key] = part
  for part in set(weight_map.values()):
    files.write(shards / part, {k: named[k] for k, p in weight_map.items() if p == part})
  (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  assert files.read(shards).tensors.keys() == named.keys()


def test_broken_files_end_in_one_sentence(tmp_path):
  for name in ("x.ckpt", "x.safetensors"):
    files.write(tmp_path / name, tensors())
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 3 // 5])
    with pytest.raises(ValueError, match="truncated"):
      files.read(tmp_path / name)
  for text, message in (
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 2020"),
    (b"hello", "neither a torch checkpoint nor"),
  ):
    (tmp_path / "y.ckpt").write_bytes(text)
    with pytest.raises(ValueError, match=message):
      files.read(tmp_path / "y.ckpt")
  with pytest.raises(ValueError, match="no checkpoint at"):
    files.read(tmp_path / "z.ckpt")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="holds no .safetensors"):
    files.read(tmp_path / "empty")
  with pytest.raises(ValueError, match="must end in"):
    files.write(tmp_path / "x.npz", tensors())


def test_torch_reads_what_is_written_and_we_read_what_torch_writes(tmp_path):
  torch = pytest.importorskip("torch")
  ours = {k: x for k, x in tensors().items() if k != "a.brain"}
  files.write(tmp_path / "ours.ckpt", ours)
  theirs = torch.load(tmp_path / "ours.ckpt", weights_only=True)["state_dict"]
  same({key: x.numpy() for key, x in theirs.items()}, ours)

  base = torch.arange(12.0).reshape(3, 4)
  tree = {"view": base.T[1:], "p": torch.nn.Parameter(base.half()), "b": base.bfloat16()}
  torch.save({"state_dict": tree}, tmp_path / "theirs.ckpt")
  read = files.read(tmp_path / "theirs.ckpt").tensors
  np.testing.assert_array_equal(read["view"], base.T[1:].numpy())
  np.testing.assert_array_equal(read["p"], base.half().numpy())
  np.testing.assert_array_equal(read["b"].astype(np.float32), base.numpy())
