"""The Colab notebook, run from top to bottom without a screen."""

import os

import nbclient
import nbformat

import settings

NOTEBOOK = settings.ROOT / "launch/sampling_colab.ipynb"


def test_the_notebook_trains_samples_and_shows_a_clip(tmp_path, monkeypatch):
  monkeypatch.setenv("FBJAX_CONFIG", "configs/quickstart.py:smoke")
  monkeypatch.setenv("FBJAX_WORKDIR", str(tmp_path / "run"))
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(settings.CACHE))
  monkeypatch.setenv("XLA_FLAGS", settings.FAST_COMPILATION)
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  resources = {"metadata": {"path": os.fspath(NOTEBOOK.parent)}}
  nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
  shown = notebook.cells[-1].outputs[-1]["data"]["text/html"]
  assert shown.startswith('<video src="data:video/mp4;base64,')
  assert (tmp_path / "run/clip.mp4").stat().st_size > 1000


def test_the_notebook_is_kept_without_outputs():
  for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
    assert not cell.get("outputs") and not cell.get("execution_count")
