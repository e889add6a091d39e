"""The wheel, installed somewhere: what is in the box comes along, and is found from anywhere."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import settings

SOURCES = ("fbjax", "configs", "zoo", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Built of a copy, for the build leaves folders in what it builds."""
  copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
  for name in SOURCES:
    path = settings.ROOT / name
    if path.is_dir():
      shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(path, copy)
  pip("wheel", "--no-build-isolation", f"--wheel-dir={out}", str(copy))
  (found,) = out.glob("*.whl")
  return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
  """Of programs that see the wheel and nothing of this checkout."""
  target = tmp_path_factory.mktemp("target")
  pip("install", f"--target={target}", str(wheel))
  return os.environ | {
    "PYTHONPATH": f"{target}:{settings.BARE}",
    "JAX_COMPILATION_CACHE_DIR": str(settings.CACHE),
    "XLA_FLAGS": settings.FAST_COMPILATION,
  }


def pip(*args: str) -> None:
  command = [sys.executable, "-m", "pip", *args, "--no-deps", "--no-index", "--quiet"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def run(environment, cwd: pathlib.Path, *args: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, check=False
  )


def test_configs_and_models_are_in_it_and_tests_are_not(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  held = {f"zoo/{x.parent.name}/{x.name}" for x in settings.ROOT.glob("zoo/*/*") if x.is_file()}
  held |= {f"configs/{x.name}" for x in settings.ROOT.glob("configs/*.py")}
  assert {f"fbjax/bundled/{name}" for name in held} <= names
  tops = {name.split("/")[0] for name in names}
  assert len(tops) == 2 and "fbjax" in tops  # and its dist-info: nothing beside them
  modules = {x.relative_to(settings.ROOT) for x in (settings.ROOT / "fbjax").rglob("*.py")}
  assert {str(x) for x in modules} <= names


def test_a_model_in_the_box_samples_from_anywhere(environment, tmp_path):
  done = run(
    *(environment, tmp_path, "-m", "fbjax.main", "--mode=sample", "--model=zoo/shapes"),
    *("--image=zoo/shapes/star.png", "--prompt=a large white star grows", "--out=star.gif"),
    "--steps=1",
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "star.gif").stat().st_size > 1000


def test_a_config_is_found_from_anywhere_and_by_the_command(environment, tmp_path):
  target = pathlib.Path(environment["PYTHONPATH"].split(":")[0])
  assert (target / "bin/fbjax").exists()
  program = (
    "from fbjax import command, main; print(command.overview())\n"
    "for name in 'configs/webvid_saf.py:smoke', 'quickstart:smoke': "
    "print(main.load_config(name).train.steps)"
  )
  done = run(environment, tmp_path, "-c", program)
  assert done.stdout.endswith("\n2\n2\n"), done.stderr
  assert "webvid_saf_cogvideox" in done.stdout
