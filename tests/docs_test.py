"""The pages: what they link to is there, and the reference is made of every public docstring."""

import pathlib
import re
import subprocess
import sys

import pytest

import settings

PAGES = sorted(
  page
  for page in settings.ROOT.rglob("*.md")
  if not any(part.startswith(".") for part in page.relative_to(settings.ROOT).parts)
)


def anchors(page: pathlib.Path) -> set[str]:
  """Of the headings, as GitHub makes them."""
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
  heads = re.findall(r"^#+ (.+)$", text, re.M)
  plain = [re.sub(r"[^\w\- ]", "", head.replace("`", "")).strip().lower() for head in heads]
  return {head.replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(settings.ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page):
  text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.S | re.M)
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if re.match(r"[a-z]+:", target):
      continue
    path, _, anchor = target.partition("#")
    there = page.parent / path if path else page
    assert there.exists(), f"{page}: {target}"
    if anchor:
      assert anchor in anchors(there), f"{page}: {target}"


@pytest.mark.parametrize("what", [
  "fbjax.bridge", pytest.param("fbjax", marks=pytest.mark.thorough)
])  # fmt: skip
def test_the_reference_is_built_of_the_docstrings(what, tmp_path):
  """The command of CONTRIBUTING.md; an import that fails is an error. Packages with __all__ show that alone."""
  command = ["-m", "pdoc", "--docformat=google", what, "-o", str(tmp_path)]
  done = subprocess.run(
    [sys.executable, *command], cwd=settings.ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert "resolve" not in done.stderr, done.stderr
  folder = settings.ROOT / what.replace(".", "/")
  hidden = [file.parent for file in folder.rglob("__init__.py") if "__all__" in file.read_text()]
  files = [f for f in folder.rglob("*.py") if f.stem != "__init__" and f.parent not in hidden]
  for file in files:
    assert (tmp_path / file.relative_to(settings.ROOT).with_suffix(".html")).exists(), file
  assert "dbim" in (tmp_path / "fbjax/bridge/samplers.html").read_text()
