"""A sampler as one program: run where fbjax is not, its clips are those that fbjax makes."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import fbjax
import settings
import toy
from fbjax import errors, options
from fbjax.data import tokenizers
from fbjax.modes import export

jax_export = pytest.importorskip("jax.export")
pytest.importorskip("flatbuffers")

EXAMPLE = settings.ROOT / "examples/run_sampler.py"
# Runs the example, and keeps frames as they are: a GIF has 256 colours. fbjax must not be there.
RUN = """
import importlib.util, sys
sys.path = [p for p in sys.path if p != {root!r}]
assert importlib.util.find_spec("fbjax") is None
import numpy as np, PIL.Image
saved = []
made = PIL.Image.fromarray
PIL.Image.fromarray = lambda frame: saved.append(frame) or made(frame)
spec = importlib.util.spec_from_file_location("example", {example!r})
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
example.main(*sys.argv[1:])
assert not [name for name in sys.modules if name.split(".")[0] == "fbjax"]
np.save("frames.npy", np.stack(saved))
"""


def load(file: pathlib.Path):
  names: dict = {"__name__": "example"}
  exec(compile(file.read_text(), file, "exec"), names)
  return names


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, one_device):
  return toy.wild(str(tmp_path_factory.mktemp("wild")))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
  out = tmp_path_factory.mktemp("exported") / "sampler"
  export.export(None, workdir, str(out), format="sampler", steps=3, frames=2)
  return out


def run(folder: pathlib.Path, cwd: pathlib.Path, *args: str) -> np.ndarray:
  program = RUN.format(root=str(settings.ROOT), example=str(EXAMPLE))
  environment = os.environ | {"XLA_FLAGS": settings.FAST_COMPILATION}
  bare = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p != str(settings.ROOT)]
  done = subprocess.run(
    [sys.executable, "-c", program, str(folder), *args],
    cwd=cwd,
    env=environment | {"PYTHONPATH": ":".join(bare), "JAX_COMPILATION_CACHE_DIR": ""},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return np.load(cwd / "frames.npy")


def test_without_fbjax_the_clip_is_the_one_that_fbjax_makes(workdir, exported, tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  Image.fromarray(picture).save(tmp_path / "cat.png")
  prompt = "A red circle, moves zigzag quickly"
  theirs = run(exported, tmp_path, "cat.png", prompt, "cat.gif", "7").astype(int)
  pipe = fbjax.load(workdir)
  ours = pipe(tmp_path / "cat.png", prompt, seed=7, steps=3, frames=2)
  assert theirs.shape == (2, 16, 16, 3) and (tmp_path / "cat.gif").stat().st_size > 100
  assert np.abs(theirs - ours).max() <= 1
  for other in (
    pipe(tmp_path / "cat.png", prompt, seed=8, steps=3, frames=2),
    pipe(tmp_path / "cat.png", "a blue star", seed=7, steps=3, frames=2),
  ):
    assert np.abs(theirs - other).max() > 10


def test_it_runs_on_every_platform_and_says_what_it_is_told(exported):
  program = jax_export.deserialize((exported / "sampler.jax").read_bytes())
  assert set(program.platforms) == {"cpu", "cuda", "tpu"}
  about = json.loads((exported / "sampler.json").read_text())
  assert about["inputs"]["image"] == {"shape": [1, 16, 16, 3], "dtype": "uint8"}
  assert about["output"] == {"shape": [2, 16, 16, 3], "dtype": "uint8"}
  (video, _) = program.out_avals
  assert video.shape == tuple(about["output"]["shape"])
  # Weights are an argument: as constants they would be in the program.
  assert (exported / "weights.safetensors").stat().st_size > 100_000
  assert not re.search(r"dense<\"0x[0-9A-F]{20000}", program.mlir_module())


@pytest.mark.parametrize(
  "prompt", ["", "a red star moves up", "Zigzag zigzag, a RED (star)!", "é " * 20, "one" * 20]
)
def test_the_example_makes_the_ids_of_the_byte_tokenizer(prompt):
  byte_ids = load(EXAMPLE)["byte_ids"]
  tokenizer = tokenizers.Bytes()
  ids = byte_ids(prompt, list(tokenizer.words), tokenizer.length)
  np.testing.assert_array_equal(ids, tokenizer([prompt])[0])


def test_what_cannot_be_exported_is_told(workdir, exported, tmp_path):
  with pytest.raises(errors.UserError, match="already holds a sampler"):
    export.export(None, workdir, str(exported), format="sampler")
  with pytest.raises(errors.UserError, match="--steps is for --format=sampler; this is --format=w"):
    export.export(None, workdir, str(tmp_path / "a.ckpt"), steps=3)
  with pytest.raises(errors.UserError, match="whose noise is a diffusion's"):
    export.export(None, workdir, str(tmp_path / "b"), format="sampler", sampler="ddpm")
  with pytest.raises(errors.UserError, match="has no low-rank additions"):
    export.export(None, workdir, str(tmp_path / "a.safetensors"), format="lora")


def test_the_flag_names_the_formats_that_there_are():
  assert options.flags.FLAGS["format"].parser.enum_values == list(export.FORMATS)
