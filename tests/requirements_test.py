"""What is imported is declared, what is declared is imported, and all of it is pinned."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import settings

PROJECT = tomllib.loads((settings.ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
  """`huggingface_hub>=1` -> huggingface-hub."""
  return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def imported(*folders: str) -> set[str]:
  """Top-level modules that are neither ours nor Python's own."""
  modules = set()
  for folder in folders:
    for file in (settings.ROOT / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
          modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
          modules.add(node.module.split(".")[0])
  return modules - {"fbjax", "configs"} - set(sys.stdlib_module_names)


def pinned(file: str) -> set[str]:
  lines = (settings.ROOT / file).read_text().splitlines()
  return {normal(line) for line in lines if re.match(r"[\w.\[\]-]+==", line)}


def test_what_is_imported_is_declared_and_the_reverse():
  """In code that runs; a package that only another one brings along may leave with it."""
  providers = importlib.metadata.packages_distributions()
  declared = {normal(name) for name in PROJECT["dependencies"]}
  optional = PROJECT["optional-dependencies"]
  extras = {normal(name) for extra in optional if extra != "dev" for name in optional[extra]}
  used = set()
  for module in sorted(imported("fbjax", "configs")):
    candidates = {normal(name) for name in providers.get(module, [module])}
    assert candidates & (declared | extras), f"{module} is imported, none declares {candidates}"
    used |= candidates & declared
  assert declared == used, f"{sorted(declared - used)} are declared and not imported"


def test_what_is_declared_is_pinned():
  runs = {normal(name) for name in PROJECT["dependencies"]}
  assert runs <= pinned("requirements.txt")
  tests = {normal(name) for name in PROJECT["optional-dependencies"]["dev"]}
  assert tests == pinned("requirements-dev.txt")
