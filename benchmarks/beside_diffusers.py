"""Our networks beside those of diffusers, on this machine's CPU: the same weights, inputs and number of threads.

  python -m benchmarks.beside_diffusers [--networks=cogvideox,vae_video,vae_image] [--calls=5] [--out=x.json]

CogVideoX's transformer, forward and with its gradient, its video autoencoder and Stable Diffusion's, encoding and
decoding, at the published shape and a fraction of the published width, in float32. They take turns, and the fastest
call of each counts. A ratio below 1 says that ours is faster: what a second is worth changes from machine to machine and
from hour to hour. Beside it stands the largest difference between the two results, over the rms of theirs.
`--toy` is a matter of seconds. It needs torch and diffusers (requirements-dev.txt).
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from flax import nnx

from benchmarks import measuring
from fbjax import errors, port
from fbjax.models import cogvideox, layers, vae_image, vae_video
from fbjax.port.names import cogvideox as cogvideox_names
from fbjax.port.names import vae_video as vae_video_names

OWN = flags.FlagValues()  # apart from those of the program, some of which have the same names
NAMES = flags.DEFINE_list(
  "networks", ["cogvideox", "vae_video", "vae_image"], "Which networks", flag_values=OWN
)
CALLS = flags.DEFINE_integer("calls", 5, "Calls to time; the fastest counts", flag_values=OWN)
TOY = flags.DEFINE_bool("toy", False, "Toy sizes", flag_values=OWN)
OUT = flags.DEFINE_string("out", None, "File to write the figures to", flag_values=OWN)


class Case(NamedTuple):
  """A call of both networks, and how far apart their results are."""

  name: str
  ours: Callable[[], Any]
  theirs: Callable[[], Any]
  apart: Callable[[Any, Any], float]


class Twins:
  """A network of ours with the weights of one of diffusers, drawn anew around its own."""

  def __init__(
    self, name: str, network: type[nnx.Module], module: torch.nn.Module, config: Mapping[str, Any]
  ):
    torch.manual_seed(0)
    with torch.no_grad():
      for x in module.parameters():
        x.add_(0.02 * torch.randn_like(x))  # so that nothing is zero
    self.name, self.config, self.module = name, config, module.eval()
    tensors = {key: x.numpy() for key, x in module.state_dict().items()}
    self.params = jax.tree.map(jnp.asarray, port.to_flax(name, tensors, config))
    sizes = port.arguments(name, config)
    make = lambda: network(**sizes, rngs=layers.Keys(jax.random.key(0)))  # noqa: E731
    self.graph, _ = nnx.split(nnx.eval_shape(make))

  def call(self, method: str, *args: jax.Array) -> Callable[[], Any]:
    f = jax.jit(lambda params, *args: getattr(nnx.merge(self.graph, params), method)(*args))
    return lambda: f(self.params, *args)

  def gradient(self, *args: jax.Array) -> Callable[[], Any]:
    """Of the mean square of the result."""

    def loss(params: Any, *args: jax.Array) -> jax.Array:
      return jnp.square(nnx.merge(self.graph, params)(*args)).mean()

    f = jax.jit(jax.value_and_grad(loss))
    return lambda: f(self.params, *args)


def transformer() -> Iterator[Case]:
  depth, heads, side, words = (2, 2, 4, 6) if TOY.value else (4, 8, 16, 226)
  sizes = dict(c_in=16, c_out=16, depth=depth, heads=heads, head_dim=64)
  config = cogvideox_names.config(**sizes, text_dim=512, time_dim=256)
  config |= {"max_text_seq_length": words}
  module = diffusers.CogVideoXTransformer3DModel.from_config(config)
  twins = Twins("cogvideox", cogvideox.CogVideoX, module, config)
  x, text, time = normal(1, 5, side, side, 16), normal(1, words, 512), np.float32([500])
  ours = tuple(map(jnp.asarray, (x, time, text)))
  latents, read, moment = (
    torch.from_numpy(x).permute(0, 1, 4, 2, 3).contiguous(),
    *tensors(text, time),
  )

  def forward() -> torch.Tensor:
    return module(latents, read, moment, return_dict=False)[0]

  def gradient() -> torch.Tensor:
    module.zero_grad()
    loss = forward().square().mean()
    loss.backward()
    return loss

  def of_outputs(mine: jax.Array, theirs: torch.Tensor) -> float:
    return difference([np.asarray(mine)], [theirs.permute(0, 1, 3, 4, 2).numpy()])

  def of_gradients(mine: Any, _: Any) -> float:
    named = port.to_torch("cogvideox", jax.tree.map(np.asarray, mine[1]), config)
    found = dict(module.named_parameters())
    return difference([named[key] for key in found], [x.grad.numpy() for x in found.values()])

  yield Case("forward", twins.call("__call__", *ours), torch.no_grad()(forward), of_outputs)
  yield Case("gradient", twins.gradient(*ours), gradient, of_gradients)


def video_autoencoder() -> Iterator[Case]:
  widths, blocks, side = ((8, 8, 8, 16), 1, 16) if TOY.value else ((32, 64, 64, 128), 3, 64)
  config = vae_video_names.config(c_in=3, c_latent=16, widths=widths, blocks=blocks, groups=8)
  module = diffusers.AutoencoderKLCogVideoX.from_config(config)
  twins = Twins("vae_video", vae_video.CausalAutoencoder, module, config)
  yield from coded(twins, normal(1, 17, side, side, 3), normal(1, 5, side // 8, side // 8, 16))


def image_autoencoder() -> Iterator[Case]:
  width, blocks, side = (8, 1, 16) if TOY.value else (64, 2, 64)
  config = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    block_out_channels=[width * n for n in (1, 2, 4, 4)],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=blocks,
    norm_num_groups=8 if TOY.value else 32,
  )
  module = diffusers.AutoencoderKL(**config)
  twins = Twins("vae_image", vae_image.AutoencoderKL, module, config)
  yield from coded(twins, normal(1, 4, side, side, 3), normal(1, 4, side // 8, side // 8, 4))


def coded(twins: Twins, video: np.ndarray, z: np.ndarray) -> Iterator[Case]:
  """Encoding a video "1 t h w c" and decoding a latent; theirs are "1 c t h w", or frames "t c h w"."""
  frames = twins.name == "vae_image"

  def given(x: np.ndarray) -> torch.Tensor:
    first = torch.from_numpy(x).movedim(-1, 1)
    return (first[0].movedim(1, 0) if frames else first).contiguous()

  def told(x: torch.Tensor) -> np.ndarray:
    return (x.movedim(1, -1)[None] if frames else x.movedim(1, -1)).numpy()

  pixels, latents, module = given(video), given(z), twins.module

  @torch.no_grad()
  def encode() -> torch.Tensor:
    return module.encode(pixels).latent_dist.mode()

  @torch.no_grad()
  def decode() -> torch.Tensor:
    return module.decode(latents).sample

  def of_latents(mine: Any, theirs: torch.Tensor) -> float:
    return difference([np.asarray(mine.mean)], [told(theirs)])

  def of_videos(mine: jax.Array, theirs: torch.Tensor) -> float:
    return difference([np.asarray(mine)], [told(theirs)])

  yield Case("encode", twins.call("encode", jnp.asarray(video)), encode, of_latents)
  yield Case("decode", twins.call("decode", jnp.asarray(z)), decode, of_videos)


NETWORKS = {
  "cogvideox": transformer,
  "vae_video": video_autoencoder,
  "vae_image": image_autoencoder,
}


def normal(*shape: int) -> np.ndarray:
  return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
  return tuple(map(torch.from_numpy, arrays))


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
  """The largest of all, over the rms of theirs."""
  assert [x.shape for x in ours] == [x.shape for x in theirs]
  largest = max(np.abs(x - y).max() for x, y in zip(ours, theirs, strict=True))
  square = sum(np.square(y, dtype=np.float64).sum() for y in theirs) / sum(y.size for y in theirs)
  return float(largest / np.sqrt(square))


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  for name in NAMES.value:
    if name not in NETWORKS:
      raise errors.UserError(f"--networks={name} is none of {', '.join(NETWORKS)}")
  jax.config.update("jax_platforms", "cpu")
  threads = len(os.sched_getaffinity(0))  # as many as XLA takes
  torch.set_num_threads(threads)
  rows = []
  for name in NAMES.value:
    for case in NETWORKS[name]():
      error = case.apart(case.ours(), case.theirs())
      seconds, others = measuring.fastest(case.ours, case.theirs, rounds=CALLS.value)
      row = {"network": name, "call": case.name, "seconds": seconds, "diffusers_seconds": others}
      rows.append(row | {"ratio": seconds / others, "difference": error})
      print(
        f"{name:10} {case.name:9} {seconds:8.4f} s here, {others:8.4f} s in diffusers, "
        f"ratio {seconds / others:5.2f}, largest difference {error:.1e}",
        flush=True,
      )
  if OUT.value:
    names = ("jax", "torch", "diffusers")
    versions = {name: importlib.metadata.version(name) for name in names}
    with open(OUT.value, "w") as file:
      json.dump({"threads": threads, "versions": versions, "rows": rows}, file, indent=2)


if __name__ == "__main__":
  if "--help" in sys.argv:
    sys.exit(__doc__ + "\n" + OWN.get_help())
  main(sys.argv)
