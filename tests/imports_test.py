"""The import diagram: lower floors never import higher ones, folders of one floor never each other."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "fbjax"

FLOORS = [
  {"compiled", "errors", "flops", "hardware", "lazy", "trees"},
  {"checks", "digest", "places", "processes", "roofline"},
  {"box", "seal", "sharding"},
  {"checkpoint", "partition", "tracker", "workdir"},
  {"bridge", "models", "data", "port"},
  {"markup", "systems", "weights"},
  {"train", "sampling", "start", "evaluation"},
  {"build"},
  {"loading", "caches"},
  {"pipe", "programs", "reports"},
  {"app"},
  {"modes", "options"},
  {"main"},
  {"command", "prepare"},
]


def part(module: str) -> str:
  """`fbjax.data.video` belongs to `data`."""
  return module.split(".")[1]


def floor(name: str) -> int:
  return next(i for i, names in enumerate(FLOORS) if name in names)


def imported(file: pathlib.Path) -> set[str]:
  modules = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Import):
      modules |= {alias.name for alias in node.names}
  return {part(m) for m in modules if m.startswith("fbjax.")}


def files() -> list[pathlib.Path]:
  return [f for f in sorted(PACKAGE.rglob("*.py")) if f != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_lower_floors_and_its_own_folder(file):
  relative = file.relative_to(PACKAGE)
  own = relative.parts[0].removesuffix(".py")
  for other in imported(file) - {own}:
    assert floor(other) < floor(own), f"{relative} ({own}) imports {other}"


def test_the_bridge_needs_nothing_but_jax():
  for file in (PACKAGE / "bridge").glob("*.py"):
    assert imported(file) <= {"bridge"}
    assert "flax" not in file.read_text().replace("Flax", "")
