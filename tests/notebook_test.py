"""The Colab notebook, run from top to bottom without a screen."""

import copy
import json
import os
import subprocess
import sys

import jax
import nbclient
import nbformat
import pytest

import settings
import toy
from fbjax import build, sharding
from fbjax.modes import pack

NOTEBOOK = settings.ROOT / "launch/sampling_colab.ipynb"


def test_the_notebook_animates_and_shows_a_clip(tmp_path, monkeypatch):
  """With every cell run twice, as people do."""
  with pytest.MonkeyPatch.context() as patch:
    one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
    patch.setattr(build, "make_mesh", lambda config: one)
    pack.pack(None, toy.wild(str(tmp_path / "run")), str(tmp_path / "model"))
  monkeypatch.setenv("FBJAX_MODEL", str(tmp_path / "model"))
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(settings.CACHE))
  monkeypatch.setenv("XLA_FLAGS", settings.FAST_COMPILATION)
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert "zoo/shapes" in notebook.cells[3].source
  cells = [copy.deepcopy(cell) for cell in notebook.cells for _ in range(2)]
  # Clip and picture are written where the checkout is.
  for cell in cells:
    for name in ("runs/clip.mp4", "runs/saf.png"):
      cell.source = cell.source.replace(f'"{name}"', f'"{tmp_path}/{name[5:]}"')
  notebook.cells = cells
  resources = {"metadata": {"path": os.fspath(NOTEBOOK.parent)}}
  nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
  shown = [
    output["data"]["text/html"]
    for cell in cells
    for output in cell.get("outputs", [])
    if "text/html" in output.get("data", {})
  ]
  assert len(shown) == 2
  assert all(x.startswith('<video src="data:video/mp4;base64,') for x in shown)
  assert (tmp_path / "clip.mp4").stat().st_size > 1000
  outputs = [output for cell in cells for output in cell.get("outputs", [])]
  # The image, its clips by setting and by prior, and SAF, twice each.
  assert sum("image/png" in output.get("data", {}) for output in outputs) == 8


# Runs the first cell of the notebook three times, as on Colab, and tells where it has come to.
COLAB = """
import json, os, sys, types
sys.modules["google"] = types.ModuleType("google")
sys.modules["google.colab"] = types.ModuleType("google.colab")
from IPython.core.interactiveshell import InteractiveShell
shell, seen = InteractiveShell.instance(), []
for _ in range(3):
  for cell in json.loads(sys.argv[1]):
    result = shell.run_cell(cell)
    if not result.success:
      sys.exit(f"error: {result.error_in_exec}")
  seen.append([os.getcwd(), sys.path[0], sys.path.count(os.getcwd())])
print(json.dumps(seen), file=sys.stderr)
"""


@pytest.fixture
def colab(tmp_path):
  """A function that opens the notebook as Colab does; `git` and `pip` are replaced."""
  programs = tmp_path / "programs"
  programs.mkdir()
  checkout = (
    f"mkdir -p $1/launch && cp -r {settings.ROOT}/configs {settings.ROOT}/requirements.txt $1"
  )
  for name, line in {
    "git": f'set -- "${{@: -1}}"; [ ! -e $1 ] && {checkout}',
    "pip": f'[ -f "${{@: -1}}" ] && echo "$@" >> {tmp_path}/installed',
  }.items():
    (programs / name).write_text(f"#!/bin/bash\n{line}\n")
    (programs / name).chmod(0o755)

  def open_in(folder, repository):
    cells = [c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    cells[0] = cells[0].replace('REPOSITORY = ""', f'REPOSITORY = "{repository}"')
    done = subprocess.run(
      [sys.executable, "-c", COLAB, json.dumps(cells[:1])],
      cwd=folder,
      env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "IPYTHONDIR": str(tmp_path)},
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode:
      return done.stderr.strip().splitlines()[-1]
    assert len((tmp_path / "installed").read_text().splitlines()) == 3
    return json.loads(done.stderr.strip().splitlines()[-1])

  return open_in


@pytest.mark.parametrize("start", [".", "fbjax", "fbjax/launch"])
def test_on_colab_the_first_cell_leads_to_one_checkout_however_often_it_runs(
  colab, tmp_path, start
):
  """Also where the notebook is opened inside of a checkout."""
  content = tmp_path / "content"
  content.mkdir()
  if start != ".":
    subprocess.run([tmp_path / "programs/git", "fbjax"], cwd=content, check=True)
  place = str(content / "fbjax")
  assert colab(content / start, "" if start != "." else "file://here") == [[place, place, 1]] * 3


def test_on_colab_without_a_checkout_the_notebook_asks_for_one(colab, tmp_path):
  assert "fill in REPOSITORY" in colab(tmp_path, "")


def test_the_notebook_is_kept_without_outputs():
  for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
    assert not cell.get("outputs") and not cell.get("execution_count")
