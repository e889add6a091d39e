"""The Colab notebook, run from top to bottom without a screen."""

import copy
import json
import os
import subprocess
import sys

import nbclient
import nbformat
import pytest

import settings

NOTEBOOK = settings.ROOT / "launch/sampling_colab.ipynb"


# The quickstart at toy size.
CONFIG = """
from configs import quickstart

def get_config(arg=""):
  c = quickstart.get_config("smoke")
  c.data.update(frames=3, size=16)
  c.system.latte.update(size=4, width=16, depth=2, heads=2)
  c.system.text.update(width=16, layers=1, heads=2)
  c.train.batch_size = 2
  return c
"""


def test_the_notebook_trains_samples_and_shows_a_clip(tmp_path, monkeypatch):
  """With every cell run twice, as people do."""
  (tmp_path / "config.py").write_text(CONFIG)
  monkeypatch.setenv("FBJAX_CONFIG", str(tmp_path / "config.py"))
  monkeypatch.setenv("FBJAX_WORKDIR", str(tmp_path / "run"))
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(settings.CACHE))
  monkeypatch.setenv("XLA_FLAGS", settings.FAST_COMPILATION)
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  notebook.cells = [copy.deepcopy(cell) for cell in notebook.cells for _ in range(2)]
  resources = {"metadata": {"path": os.fspath(NOTEBOOK.parent)}}
  nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
  for cell in notebook.cells[-2:]:
    shown = cell.outputs[-1]["data"]["text/html"]
    assert shown.startswith('<video src="data:video/mp4;base64,')
  assert (tmp_path / "run/clip.mp4").stat().st_size > 1000


# Runs the first two cells of the notebook three times, as on Colab, and tells where it has come to.
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
      [sys.executable, "-c", COLAB, json.dumps(cells[:2])],
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
def test_on_colab_the_first_cells_lead_to_one_checkout_however_often_they_run(
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
