import collections
import pathlib
import pickle
import resource
import zipfile

import ml_dtypes
import numpy as np
import pytest
from port import forge

from fbjax import errors
from fbjax.port import files, limits


def refused(path, data, why):
  """The sentence that reading these bytes ends in."""
  path.write_bytes(data)
  with pytest.raises(errors.UserError, match=why) as error:
    files.read(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def one(**tensor):
  return forge.archive(forge.pickle(forge.table({"a": forge.tensor(**tensor)})))


class Hyper(dict):
  """A class of a training program, as Lightning pickles it beside the weights."""


class Bomb:
  def __reduce__(self):
    return (eval, ("open('/tmp/fbjax_bomb', 'w')",))


def test_nothing_in_a_pickle_is_run_and_what_was_asked_for_is_named(tmp_path):
  pathlib.Path("/tmp/fbjax_bomb").unlink(missing_ok=True)
  evil = {"hyper": Hyper(a=1), "bomb": Bomb(), "list": collections.deque([1, 2])}
  tree = forge.table(
    {
      "hyper": pickle.dumps(evil, protocol=2)[2:-1],
      "state_dict": forge.table({"w": forge.tensor()}),
    }
  )
  (tmp_path / "x.ckpt").write_bytes(forge.archive(forge.pickle(tree)))
  checkpoint = files.read(tmp_path / "x.ckpt")
  np.testing.assert_array_equal(checkpoint.tensors["w"], np.zeros(4, np.float32))
  assert checkpoint.kind == "a Lightning checkpoint"
  assert checkpoint.inert == (
    "__builtin__.eval",
    "collections.deque",
    f"{Hyper.__module__}.Hyper",
  )
  assert not pathlib.Path("/tmp/fbjax_bomb").exists()


def test_a_state_for_a_dtype_leaves_numpy_as_it_was(tmp_path):
  state = b"(K\x03" + forge.text("<") + b"NNN\x8a\x01\x01\x8a\x01\x01\x8a\x01\x00tb"
  tree = b"}(" + forge.text("w") + b"ctorch\nBFloat16Storage\n" + state
  tree += forge.text("a") + forge.tensor(dtype="torch\nBFloat16Storage") + b"u"
  (tmp_path / "x.ckpt").write_bytes(forge.archive(forge.pickle(tree)))
  assert files.read(tmp_path / "x.ckpt").tensors["a"].nbytes == 8
  assert np.dtype(ml_dtypes.bfloat16).itemsize == 2


@pytest.mark.parametrize(
  ("tensor", "why"),
  [
    (dict(shape=(-1,)), "a an impossible"),
    (dict(stride=(-1,)), "a an impossible"),
    (dict(offset=-1), "a an impossible"),
    (dict(offset=1), "a reaches beyond its storage, 16 bytes"),
    (dict(offset=2**62), "reaches beyond"),
    (dict(shape=(5,)), "reaches beyond"),
    (dict(stride=(2,)), "reaches beyond"),
    (dict(shape=(2, 2)), "impossible shape"),
    (dict(shape=(1,) * 99, stride=(1,) * 99), "impossible shape"),
    (dict(shape=(10**12,), stride=(0,)), "spreads 16 bytes over"),
    (dict(shape=(2**31, 2**31, 2**31), stride=(0, 0, 0)), "spreads 16 bytes over"),
    (dict(shape=(2000,), stride=(0,)), "more than the file has"),
    (dict(key="1"), "lacks the values of a"),
    (dict(key="../version"), "lacks the values of a"),
  ],
)
def test_a_tensor_is_what_its_storage_has(tmp_path, tensor, why):
  refused(tmp_path / "x.ckpt", one(**tensor), why)


def test_many_tensors_cannot_share_a_storage_without_end(tmp_path):
  tree = {f"a{i}": forge.tensor(count=10**5, shape=(10**5,)) for i in range(100)}
  data = forge.archive(forge.pickle(forge.table(tree)), {"0": bytes(4 * 10**5)})
  refused(tmp_path / "x.ckpt", data, "more than the file has")


def test_views_of_one_storage_are_read(tmp_path):
  storage = np.arange(12, dtype=np.float32)
  places = {
    "rows": dict(offset=1, shape=(2, 3), stride=(4, 1)),
    "turned": dict(offset=1, shape=(2, 3), stride=(1, 4)),
    "spread": dict(offset=3, shape=(20,), stride=(0,)),
    "empty": dict(offset=0, shape=(0, 3), stride=(3, 1)),
    "scalar": dict(offset=11, shape=(), stride=()),
  }
  tree = {name: forge.tensor(count=12, **place) for name, place in places.items()}
  path = tmp_path / "x.ckpt"
  path.write_bytes(forge.archive(forge.pickle(forge.table(tree)), {"0": storage.tobytes()}))
  found = files.read(path).tensors
  np.testing.assert_array_equal(found["rows"], [[1, 2, 3], [5, 6, 7]])
  np.testing.assert_array_equal(found["turned"], [[1, 5, 9], [2, 6, 10]])
  np.testing.assert_array_equal(found["spread"], np.full(20, 3))
  assert found["empty"].shape == (0, 3) and found["scalar"] == 11
  assert not found["rows"].flags.owndata and not found["rows"].flags.writeable


@pytest.mark.parametrize(
  ("tree", "why"),
  [
    (b"N", r"no tensors by name \(its keys: none\)"),
    (b"K\x01", "no tensors by name"),
    (forge.tensor(), "no tensors by name"),
    (b"}" + forge.text("epoch\x1b") + b"K\x01s", r"its keys: epoch\\x1b"),
    (b"}" + forge.text("a") + b"}q\x00h\x00s", "no tensors by name"),  # itself in itself
    (b"}q\x00" + forge.text("model") + b"h\x00s", "no tensors by name"),
    (b"K\x01b", "damaged"),
    (b"", "damaged"),
    (b"\xff", "damaged"),
    (b"X\xff\xff\xff\x7fabc", "damaged"),
    (b"X\x02\x00\x00\x00\xff\xfe", "damaged"),
    (b"I" + b"9" * 5000 + b"\n", "damaged"),
    (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "no tensors by name"),
    (b"}" + forge.text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n)Rs", "damaged"),
    (b"}" + forge.text("a") + b"ctorch._utils\n_rebuild_parameter\n)Rs", "damaged"),
  ],
)
def test_a_pickle_without_tensors_is_one_sentence(tmp_path, tree, why):
  refused(tmp_path / "x.ckpt", forge.archive(forge.pickle(tree)), why)


def test_modules_in_modules_have_an_end(tmp_path):
  """Each of 100 modules holds the next one ten times."""
  module = b"c__torch__\nM\n)\x81"
  tree = module + b"q\x00"
  for _ in range(100):
    held = b"".join(forge.text(str(i)) + b"h\x00" for i in range(10))
    tree += module + b"}(" + held + b"ubq\x00"
  refused(tmp_path / "x.pt", forge.archive(forge.pickle(tree)), "without end")


def test_what_lies_beside_the_tensors_is_capped(tmp_path, monkeypatch):
  path = tmp_path / "x.ckpt"
  bomb = b"\x80\x02" + bytes(10**7)
  refused(path, forge.archive(bomb, method=zipfile.ZIP_DEFLATED), "is compressed")
  monkeypatch.setattr(limits, "PICKLE", 10**6)
  path.write_bytes(forge.archive(bomb))
  with forge.at_most(2**20), pytest.raises(errors.UserError, match="10,000,002 bytes beside"):
    files.read(path)
  monkeypatch.setattr(limits, "DIRECTORY", 100)
  refused(path, one(), "lists entries in")


def patched(data, at, new):
  """The archive with other bytes in every entry of its directory, `at` counted from their heads."""
  data = bytearray(data)
  place = data.find(b"PK\x01\x02")
  while place >= 0:
    data[place + at : place + at + len(new)] = new
    place = data.find(b"PK\x01\x02", place + 4)
  return bytes(data)


def test_damaged_and_odd_zip_files_are_one_sentence(tmp_path):
  path, good = tmp_path / "x.ckpt", one()
  refused(path, good[:-30], "truncated or damaged")
  refused(path, patched(good, 8, b"\1\0"), "encrypted")
  refused(path, patched(good, 16, b"abcd"), "checksum does not fit")
  refused(path, patched(good, 42, b"\1\0\0\0"), "not where the zip file says")
  refused(path, patched(good, 20, b"\0\0\0\x7f\0\0\0\x7f"), "truncated")
  refused(path, patched(good, 10, b"\x0e\0"), "compressed")
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("word/document.xml", "x")
  refused(path, path.read_bytes(), "no torch checkpoint")
  with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
    file.writestr("archive/data.pkl", "x")
    file.writestr("archive/data.pkl", "y")
  refused(path, path.read_bytes(), "two entries of one name")
  refused(path, one().replace(b"little", b"biglit"), "checksum|big-endian")


def test_checksums_that_torch_was_told_to_leave_out_are_not_missed(tmp_path):
  (tmp_path / "x.ckpt").write_bytes(patched(one(), 16, b"\0\0\0\0"))
  assert list(files.read(tmp_path / "x.ckpt").tensors) == ["a"]


@pytest.mark.parametrize("dtype", ["torch\nComplexFloatStorage", "torch\nQInt8Storage", "x\ny"])
def test_a_dtype_that_nobody_needs_keeps_no_file_from_being_read(tmp_path, dtype):
  tree = forge.table({"a": forge.tensor(), "b\x1b": forge.tensor(dtype=dtype, shape=(2,))})
  (tmp_path / "x.ckpt").write_bytes(forge.archive(forge.pickle(tree)))
  found = files.read(tmp_path / "x.ckpt").tensors
  np.testing.assert_array_equal(found["a"], np.zeros(4))
  assert found["b\x1b"].shape == (2,)
  with pytest.raises(errors.UserError, match=r"tensor b\\x1b in .*x.ckpt has the dtype"):
    np.asarray(found["b\x1b"])


@pytest.mark.parametrize(
  ("path", "kind"),
  [
    (["state_dict"], "a Lightning checkpoint"),
    (["module"], "a DeepSpeed checkpoint"),
    (["ema"], "averaged weights under `ema`"),
    (["ema_state_dict"], "averaged weights under `ema_state_dict`"),
    (["ema", "shadow"], "averaged weights under `ema.shadow`"),
    (["model"], "weights under `model`"),
    (["model_state_dict"], "weights under `model_state_dict`"),
    (["model.state_dict"], "weights under `model.state_dict`"),
    (["model", "state_dict"], "weights under `model.state_dict`"),
    (["generator"], "weights under `generator`"),
    ([], "a state dict"),
  ],
)
def test_weights_are_found_where_training_programs_put_them(tmp_path, path, kind):
  """Beside them: an optimizer, a step as a tensor, an average that holds nothing."""
  tree = forge.table({"a.weight": forge.tensor()})
  for key in reversed(path):
    beside = {
      "epoch": b"K\x03",
      "step": forge.tensor(shape=(), stride=()),
      "optimizer_state_dict": forge.table({"m": forge.tensor()}),
    }
    tree = forge.table(beside | {key: tree})
  (tmp_path / "x.pt").write_bytes(forge.archive(forge.pickle(tree)))
  checkpoint = files.read(tmp_path / "x.pt")
  assert (list(checkpoint.tensors), checkpoint.kind) == (["a.weight"], kind)


@pytest.mark.parametrize(
  "ema",
  [
    b"}",
    b"N",
    forge.table({"decay": b"G?\xf0" + bytes(6), "shadow_params": b"](" + forge.tensor() + b"e"}),
    forge.table({"num_updates": forge.tensor(shape=(), stride=()), "shadow_params": b"]"}),
    forge.table({"0": forge.tensor(), "1": forge.tensor()}),
  ],
)
def test_an_average_without_names_gives_way_to_the_model(tmp_path, ema):
  tree = forge.table({"ema": ema, "model": forge.table({"a.weight": forge.tensor()})})
  (tmp_path / "x.pt").write_bytes(forge.archive(forge.pickle(tree)))
  checkpoint = files.read(tmp_path / "x.pt")
  assert (list(checkpoint.tensors), checkpoint.kind) == (["a.weight"], "weights under `model`")


def test_weights_in_two_unknown_places_are_named(tmp_path):
  part = forge.table({"a": forge.tensor()})
  tree = forge.table({"generator": part, "discriminator": part})
  refused(
    tmp_path / "x.pt", forge.archive(forge.pickle(tree)), "under generator, discriminator: save"
  )


def test_scripted_and_pickled_modules_are_read_by_the_names_of_their_parameters(tmp_path):
  def module(name, state):
    return f"c{name}\n)".encode() + b"\x81" + state + b"b"

  linear = {"weight": forge.tensor(), "training": b"\x88"}
  scripted = module(
    "__torch__\nM",
    forge.table({"scale": forge.tensor(), "lin": module("__torch__.nn\nL", forge.table(linear))}),
  )
  inner = module("torch.nn\nLinear", forge.table({"_parameters": forge.table(linear)}))
  pickled = module(
    "my\nNet",
    forge.table(
      {
        "_parameters": b"}",
        "_buffers": forge.table({"scale": forge.tensor()}),
        "_modules": forge.table({"lin": inner}),
        "cache": forge.tensor(),
      }
    ),
  )
  for tree, kind in ((scripted, "a TorchScript archive"), (pickled, "a pickled module")):
    (tmp_path / "x.pt").write_bytes(forge.archive(forge.pickle(tree)))
    checkpoint = files.read(tmp_path / "x.pt")
    assert checkpoint.kind == kind
    assert sorted(checkpoint.tensors) == ["lin.weight", "scale"]
  refused(
    tmp_path / "x.pt",
    forge.archive(forge.pickle(module("__torch__\nM", b"}"))),
    "a TorchScript archive that holds no tensors",
  )


def test_torch_and_we_read_the_same(tmp_path):
  torch = pytest.importorskip("torch")
  base = torch.arange(12.0).reshape(3, 4)
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  tree = {
    "view": base.T[1:],
    "spread": base[0].expand(5, 4),
    "p": torch.nn.Parameter(base.half()),
    "brain": base.bfloat16(),
    "eight": base.to(torch.float8_e5m2),
    "sixteen": base.to(torch.uint16),
    "complex": base.to(torch.complex64),
    "sparse": base.to_sparse(),
  }
  torch.save({"state_dict": tree | module.state_dict()}, tmp_path / "theirs.ckpt")
  torch.jit.script(module).save(tmp_path / "jit.pt")
  torch.save(module, tmp_path / "module.pt")
  found = files.read(tmp_path / "theirs.ckpt").tensors
  assert found.keys() == {*tree, *module.state_dict()}
  for name in tree.keys() - {"complex", "sparse"}:
    assert found[name].shape == tuple(tree[name].shape)
    theirs = tree[name].detach().double().numpy()
    np.testing.assert_array_equal(found[name].astype(np.float64), theirs)
  for name in ("jit.pt", "module.pt"):
    found = files.read(tmp_path / name).tensors
    for key, x in module.state_dict().items():
      np.testing.assert_array_equal(found[key], x.numpy())


def test_damage_anywhere_ends_in_one_sentence_or_is_no_matter(tmp_path):
  """Flips, cuts and swaps in a pickle, a zip directory and a JSON header."""
  rng = np.random.default_rng(0)
  tensors = {"a.weight": np.ones((3, 4), np.float32), "b": np.ones(5, ml_dtypes.bfloat16)}
  whole = {}
  for name in ("x.ckpt", "x.safetensors"):
    files.write(tmp_path / name, tensors)
    whole[name] = (tmp_path / name).read_bytes()
  with zipfile.ZipFile(tmp_path / "x.ckpt") as file:
    pickled = file.read("archive/data.pkl")
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for i in range(600):
    name = ("x.ckpt", "x.safetensors")[i % 2]
    data = bytearray(pickled if i % 4 == 0 else whole[name])
    for _ in range(rng.integers(1, 5)):
      place = rng.integers(len(data))
      match rng.integers(3):
        case 0:
          data[place] ^= 1 << rng.integers(8)
        case 1:
          data[place] = rng.integers(256)
        case 2:
          del data[place : place + rng.integers(1, 30)]
    data = forge.archive(bytes(data)) if i % 4 == 0 else bytes(data)
    (tmp_path / name).write_bytes(data)
    try:
      files.read(tmp_path / name)
    except errors.UserError as error:
      assert name in str(error) and str(error).isprintable()
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kB
