"""Readers of the golden fixtures: arrays, configs, and the weights that a rule makes from names."""

import json
import math
import pathlib
import zlib
from typing import Any

import numpy as np


def arrays(shared: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  with np.load(shared / "golden" / f"{name}.npz") as file:
    return dict(file)


def manifest(shared: pathlib.Path, name: str) -> dict[str, Any]:
  return json.loads((shared / "golden/manifests" / f"{name}.json").read_text())


def weights(manifest: dict[str, Any]) -> dict[str, np.ndarray]:
  """A tensor for every key of a manifest."""
  return {key: weight(key, tuple(shape)) for key, shape, *_ in manifest["keys"]}


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
  w = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, dtype=np.float32)
  if len(shape) >= 2:
    gain = math.sqrt(2) if key.endswith("conv3d.weight") else 1
    return w * np.float32(gain / math.sqrt(math.prod(shape[1:])))
  if key.endswith("weight"):
    return np.float32(1) + np.float32(0.1) * w
  if key.endswith("running_var"):
    return np.float32(1) + np.float32(0.1) * np.abs(w)
  return np.float32(0.1) * w


def error(ours: Any, theirs: np.ndarray) -> float:
  """max |ours - theirs| / rms(theirs)."""
  ours = np.asarray(ours, np.float32)
  assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
  return float(np.abs(ours - theirs).max() / np.sqrt(np.square(theirs).mean()))
