import errno
import json
import os
import resource

import ml_dtypes
import numpy as np
import pytest
from port import forge

from fbjax import errors
from fbjax.port import files


def tensors():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 4), np.float32)
  return {
    "a.weight": x,
    "a.half": x.astype(np.float16),
    "a.brain": x.astype(ml_dtypes.bfloat16),
    "a.eight": x.astype(ml_dtypes.float8_e4m3fn),
    "scalar": np.float32(2.5).reshape(()),
    "count": np.arange(5),
    "unsigned": np.arange(5, dtype=np.uint16),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "turned": x.T,
  }


def same(ours, theirs):
  assert ours.keys() == theirs.keys()
  for key, x in theirs.items():
    assert ours[key].dtype == x.dtype and ours[key].shape == x.shape
    assert ours[key].tobytes() == np.ascontiguousarray(x).tobytes()


def refused(path, why):
  with pytest.raises(errors.UserError, match=why) as error:
    files.read(path)
  assert files.printable(str(path))[:100] in str(error.value)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_what_is_written_is_read_again_bitwise(tmp_path, suffix):
  name = f"x{suffix}"
  files.write(tmp_path / name, tensors())
  same(files.read(tmp_path / name).tensors, tensors())
  assert [f.name for f in tmp_path.iterdir()] == [name]


def test_tensors_are_mapped_and_not_copied(tmp_path):
  for name in ("x.ckpt", "x.safetensors"):
    files.write(tmp_path / name, tensors())
    x = files.read(tmp_path / name).tensors["a.weight"]
    assert not x.flags.owndata and not x.flags.writeable


def test_big_files_are_opened_without_being_read(tmp_path):
  """8 GB of safetensors, of which the disk holds the header alone, and 400 views of a storage."""
  shape, names = [5 * 2**20], [f"blocks.{i}.attn.weight" for i in range(400)]
  size = 4 * shape[0]
  header = {
    name: {"dtype": "F32", "shape": shape, "data_offsets": [size * i, size * (i + 1)]}
    for i, name in enumerate(names)
  }
  text = json.dumps(header).encode()
  with (tmp_path / "x.safetensors").open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + size * len(names))
  parts = {name: forge.tensor(offset=i, shape=(1,)) for i, name in enumerate(names)}
  data = forge.archive(forge.pickle(forge.table(parts)), {"0": bytes(2**23)})
  (tmp_path / "x.ckpt").write_bytes(data)
  for name in ("x.safetensors", "x.ckpt"):
    with forge.at_most(2**23):
      assert len(files.read(tmp_path / name).tensors) == len(names)


def test_what_a_file_is_its_content_says(tmp_path):
  files.write(tmp_path / "x.safetensors", tensors())
  files.write(tmp_path / "x.ckpt", tensors())
  (tmp_path / "x.safetensors").rename(tmp_path / "x.pt")
  (tmp_path / "x.ckpt").rename(tmp_path / "x.safetensors")
  for name, kind in (("x.pt", "a safetensors file"), ("x.safetensors", "a Lightning checkpoint")):
    checkpoint = files.read(tmp_path / name)
    assert checkpoint.kind == kind
    same(checkpoint.tensors, tensors())


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".bin", ""])
@pytest.mark.parametrize(
  ("start", "why"),
  [
    (b"", "is empty: download it again"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa", "Git LFS pointer.*lfs pull"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 2020"),
    (b"\x80\x04\x95\x0e" + bytes(7) + b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 2020"),
    (b"<!DOCTYPE html><html>", "is a web page"),
    (b'\n {"weight_map": {}}', "is a JSON file: name the folder"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    (b"\x1f\x8b\x08", "unpack it"),
    (b"PK\x05\x06" + bytes(18), "a zip file, but no torch checkpoint"),
    (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
    (b"\x00" * 100, "no.* safetensors file"),
    (b"hello", "no.* safetensors file"),
  ],
)
def test_files_that_are_no_checkpoint_are_named_with_what_they_are(tmp_path, start, why, suffix):
  path = tmp_path / f"x\n{suffix}"
  path.write_bytes(start)
  refused(path, why)


def test_paths_that_lead_to_no_file_are_named(tmp_path):
  refused(tmp_path / "z.ckpt", "there is no checkpoint at")
  refused(tmp_path / ("z" * 300), "name too long")
  os.mkfifo(tmp_path / "fifo.ckpt")
  refused(tmp_path / "fifo.ckpt", "no regular file")
  refused("/dev/zero", "no regular file")
  (tmp_path / "loop.pt").symlink_to("loop.pt")
  refused(tmp_path / "loop.pt", "no regular file")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_a_file_cut_anywhere_is_not_read(tmp_path, name):
  files.write(tmp_path / name, tensors())
  whole = (tmp_path / name).read_bytes()
  for size in range(0, len(whole), 97):
    (tmp_path / name).write_bytes(whole[:size])
    refused(tmp_path / name, "truncated|damaged|empty|neither|header")
    if size > len(whole) // 2:
      refused(tmp_path / name, "truncated")


@pytest.mark.parametrize("name", ["x.npz", "step1.5", "x", "x.safetensors.index.json"])
def test_names_that_cannot_be_written_are_refused(tmp_path, name):
  with pytest.raises(errors.UserError, match=r"must end in \.safetensors, \.ckpt"):
    files.write(tmp_path / name, tensors())
  assert not list(tmp_path.iterdir())


class Unreadable:
  shape, dtype = (2,), np.dtype(np.float32)

  def __array__(self, dtype=None, copy=None):
    raise KeyError("a bug")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_what_could_not_be_written_leaves_the_old_file_and_nothing_else(tmp_path, name):
  files.write(tmp_path / name, {"a": np.ones(3)})
  for bad, error, why in (
    ({"a": np.ones(2), "b": Unreadable()}, KeyError, "a bug"),
    ({"a": np.ones(2), "b\n": np.ones(2, "datetime64[s]")}, errors.UserError, r"cannot write b\\n"),
  ):
    with pytest.raises(error, match=why):
      files.write(tmp_path / name, bad)
    assert [f.name for f in tmp_path.iterdir()] == [name]
    same(files.read(tmp_path / name).tensors, {"a": np.ones(3)})


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, name):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
  try:
    with pytest.raises(
      errors.UserError, match=f"cannot write .*{name}: {os.strerror(errno.EFBIG)}"
    ):
      files.write(tmp_path / name, {"a": np.ones(10), "b": np.ones(10_000)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written_to_are_named(tmp_path):
  with pytest.raises(errors.UserError, match="cannot write .*No such file"):
    files.write(tmp_path / "no" / "x.ckpt", tensors())
  (tmp_path / "x.ckpt").mkdir()
  with pytest.raises(errors.UserError, match="a folder of this name"):
    files.write(tmp_path / "x.ckpt", tensors())
  assert [f.name for f in tmp_path.iterdir()] == ["x.ckpt"]


def test_torch_reads_what_is_written(tmp_path):
  torch = pytest.importorskip("torch")
  files.write(tmp_path / "ours.ckpt", tensors())
  theirs = torch.load(tmp_path / "ours.ckpt", weights_only=True)["state_dict"]
  assert theirs.keys() == tensors().keys()
  for key, x in tensors().items():
    assert str(theirs[key].dtype) == f"torch.{x.dtype}"
    np.testing.assert_array_equal(theirs[key].double().numpy(), np.asarray(x, np.float64))


def test_the_library_of_safetensors_reads_what_is_written(tmp_path):
  numpy = pytest.importorskip("safetensors.numpy")
  ours = {key: x for key, x in tensors().items() if x.dtype.kind != "V" and x.dtype.itemsize != 1}
  files.write(tmp_path / "ours.safetensors", ours)
  same(numpy.load_file(tmp_path / "ours.safetensors"), ours)
  assert json.loads((tmp_path / "ours.safetensors").read_bytes()[8:1000].split(b"}}")[0] + b"}}")
