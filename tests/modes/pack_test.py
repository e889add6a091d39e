"""A trained run as one small folder: what samples, trains on and is refused."""

import errno
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import fbjax
import toy
from fbjax import build, errors, loading, places
from fbjax.modes import pack, sample
from fbjax.port import files

LORA = {"whole": ("bias",), "lora": ("spatial.*/q/kernel",), "rank": 2, "scale": 4.0}


@pytest.fixture(scope="module", params=["whole", "lora"])
def workdir(request, tmp_path_factory, one_device):
  changes = {"trainable": LORA} if request.param == "lora" else {}
  return toy.wild(str(tmp_path_factory.mktemp("wild")), **changes)


@pytest.fixture(scope="module")
def packed(workdir, tmp_path_factory):
  out = tmp_path_factory.mktemp("zoo") / "toy"
  pack.pack(None, workdir, str(out))
  return out


def test_a_packed_run_makes_the_clips_of_the_run(workdir, packed, image, tmp_path):
  """From wherever it was copied to, in half the bytes, up to what half precision rounds."""
  moved = shutil.copytree(packed, tmp_path / "elsewhere")
  ours, theirs = (fbjax.load(x)(image, "up", steps=4).astype(int) for x in (moved, workdir))
  assert np.ptp(theirs) > 100 and np.abs(ours - theirs).mean() < 0.5
  sample.sample(
    None, None, model=str(moved), image=str(image), prompt="up", out=str(tmp_path / "x.gif")
  )
  tensors = files.read(moved / "model.safetensors").tensors
  matrices = [x for name, x in tensors.items() if name.endswith("kernel")]
  assert matrices and {x.dtype for x in matrices} == {np.dtype(np.float16)}
  assert not any(name.endswith(".a") for name in tensors)  # low-rank additions are merged


def test_a_disk_that_is_full_in_the_middle_keeps_nothing(workdir, tmp_path, monkeypatch):
  def full(file, value):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(places, "write_json", full)
  (tmp_path / "card.md").write_text("mine")
  with pytest.raises(
    errors.UserError, match=r"cannot write .* \(no space left on device\): make room"
  ):
    pack.pack(None, workdir, str(tmp_path))
  assert [file.name for file in tmp_path.iterdir()] == ["card.md"]


def test_another_run_starts_from_a_packed_one(packed):
  config = toy.config() | {"weights": str(packed)}
  system = build.make_system(config, build.make_tokenizer(config))
  params = loading.starting_weights(config, system, build.make_mesh(config)).params()
  there = files.read(packed / "model.safetensors").tensors
  kernel = params["unet"]["in_conv"]["kernel"]
  np.testing.assert_array_equal(kernel, there["networks.unet.in_conv.kernel"].astype(np.float32))
  assert kernel.dtype == np.float32


def test_a_kernel_too_large_for_half_precision_stays_as_it_is():
  large = np.array([[1.0, 7e4]], np.float32)
  assert pack.halved("unet/out/kernel", large).dtype == np.float32
  assert pack.halved("unet/out/kernel", large / 2).dtype == np.float16
  assert pack.halved("unet/out/bias", large / 2).dtype == np.float32


def test_damage_is_told(packed, image, tmp_path):
  broken = shutil.copytree(packed, tmp_path / "broken")
  file = broken / "model.safetensors"
  content = bytearray(file.read_bytes())
  content[-3] ^= 64
  file.write_bytes(content)
  with pytest.raises(errors.UserError, match="broken are damaged .*make or fetch them again"):
    fbjax.load(broken)(image)


def test_what_cannot_be_packed_or_loaded_is_told(workdir, packed, image, tmp_path):
  with pytest.raises(errors.UserError, match="already holds a model or a run"):
    pack.pack(None, workdir, str(packed))
  with pytest.raises(errors.UserError, match="nothing was trained there"):
    pack.pack(None, str(tmp_path), str(tmp_path / "out"))
  with pytest.raises(errors.UserError, match="needs --workdir=<trained run> and --out=<folder>"):
    pack.pack(None, workdir, None)
  given = {"image": str(image), "out": str(tmp_path / "x.mp4")}
  for model, sentence in (
    (workdir, "is a workdir: give it as --workdir"),
    (str(tmp_path), "holds no model that --mode=pack wrote"),
  ):
    with pytest.raises(errors.UserError, match=sentence):
      sample.sample(None, None, model=model, **given)
  with pytest.raises(errors.UserError, match="leave --config and --workdir out"):
    sample.sample(None, workdir, model=str(packed), **given)
  with pytest.raises(errors.UserError, match="among the weights of a trained run"):
    fbjax.load(packed, step=2)
  assert not pathlib.Path(given["out"]).exists() and Image.open(image)
