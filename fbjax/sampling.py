"""Image and prompt -> video: one compiled program from uint8 image to uint8 video."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8, UInt32

from fbjax import partition, sharding
from fbjax.bridge import denoiser, samplers
from fbjax.bridge import guidance as guiding
from fbjax.systems import base, formulation

# (params, frozen, batch, keys) -> video uint8 "b t h w 3", and whether each was finite, bool "b"
Sample = Callable[
  [base.Params, base.Params, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, jax.Array]
]


def make_sample(
  system: base.System,
  form: formulation.Formulation,
  sampler: Callable[..., jax.Array],
  times: np.ndarray,
  *,
  guidance: float = 1.0,
  image_guidance: float | None = None,
  rescale: float = 0.0,
  mesh: jax.sharding.Mesh | None = None,
  gathered: bool = True,
) -> Sample:
  """Returns sample(params, frozen, batch, keys) -> uint8 video, whether it was finite; jitted.

  Args:
    system: who encodes, denoises and decodes.
    form: the bridge, and what the network sees of it and predicts.
    sampler: one of `bridge.samplers`, with its options bound.
    times: decreasing grid, see `bridge.grids`.
    guidance: scale of classifier-free guidance on the text; 1 runs the conditional branch alone.
    image_guidance: scale of that on the image condition, which makes it guidance in two scales
      (§3.4): from neither to the image, and from there to the text.
    rescale: guidance rescale, 0 to 1: how far the standard deviation of the guided prediction is
      pulled back to that of the conditional one.
    mesh: over which clips are split, after padding to a multiple of its `data` and `fsdp` devices.
    gathered: whether every device gets all videos; otherwise each has those of its rows, and the
      batch must divide evenly over the mesh.

  The batch holds `image` uint8 "b h w 3" (or `video`, whose first frame is taken, and whose last),
  `tokens` and `stride`; also `last` where the system is given both ends, and `null_tokens` where
  guidance leads away from another text than the empty one. For a system that is fed features, it holds
  these. A clip's draw depends on its key alone, not on the batch it is sampled in.
  """

  branches, combine = guide(guidance, image_guidance, rescale)

  def sample(
    params: base.Params, frozen: base.Params, batch: Mapping[str, jax.Array], keys: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    n = len(keys)
    rows = partition.full_rows(n)
    batch, keys = jax.tree.map(lambda x: partition.clips(x[rows]), (dict(batch), keys))
    weights = system.weights(params, frozen)
    z1, conds, draws = encoded(system, weights, frozen, batch, keys, branches)
    denoise = denoiser_of(system, form, weights, z1, conds, combine)
    z0 = sampler(form.process, denoise, z1, times, draws)
    video = system.decode(frozen, z0)[:n]
    return to_uint8(video), jnp.isfinite(video).all(axis=range(1, video.ndim))

  place = sharding.replicated if gathered else sharding.batch
  placed = None if mesh is None else place(mesh)
  return jax.jit(partition.over(mesh, sample), out_shardings=placed)


def encoded(
  system: base.System,
  weights: base.Params,
  frozen: base.Params,
  batch: Mapping[str, jax.Array],
  keys: jax.Array,
  branches: Sequence[tuple[bool, bool]],
) -> tuple[jax.Array, list[base.Cond], jax.Array]:
  """What a sampler begins with: z1, the embedded conditions of each branch, and the keys of its noise."""
  purposes = jax.vmap(jax.random.split)(keys)
  _, z1, cond = system.encode(frozen, given(batch), purposes[:, 0])
  yes, no = jnp.ones(len(z1), bool), jnp.zeros(len(z1), bool)
  # Conditions do not change along the bridge: they are embedded once.
  conds = [
    system.embed(weights, system.drop(cond, yes if text else no, yes if image else no))
    for text, image in branches
  ]
  return z1, conds, purposes[:, 1]


def denoiser_of(
  system: base.System,
  form: formulation.Formulation,
  weights: base.Params,
  z1: jax.Array,
  conds: Sequence[base.Cond],
  combine: guiding.Combine,
) -> samplers.Denoise:
  """The denoise(zt, time) -> z0_hat of a system with these weights, told the conditions of each branch."""
  return denoiser.denoiser(
    form.process,
    functools.partial(system.denoise, weights),
    form.predict,
    z1,
    conds,
    combine,
    diffusion=form.diffusion,
    rule=form.rule,
    pretrained=form.pretrained,
    steps=form.steps,
  )


def given(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Replaces `video` in a batch by its first frame, `image`, and its last, `last`."""
  rest = {name: x for name, x in batch.items() if name != "video"}
  if "video" in batch:
    rest |= {"image": batch["video"][:, 0], "last": batch["video"][:, -1]}
  return rest


def guide(
  text: float, image: float | None, rescale: float
) -> tuple[list[tuple[bool, bool]], guiding.Combine]:
  """The branches of guidance, each (text dropped, image dropped), and how to combine them."""
  if image is not None:
    branches = [(False, False), (True, False), (True, True)]
    return branches, guiding.two_scale(text, image, rescale)
  if text != 1:
    return [(False, False), (True, False)], guiding.text(text, rescale)
  return [(False, False)], guiding.none()


def to_uint8(video: jax.Array) -> jax.Array:
  """[-1, 1] to 0..255, rounded."""
  return jnp.round(jnp.clip((video + 1) * 127.5, 0, 255)).astype(jnp.uint8)


def clip_keys(
  seed: int | UInt32[Array, ""], numbers: Sequence[int] | UInt32[Array, " n"], chunk: int = 0
) -> Key[Array, " n"]:
  """One PRNG key per clip: a function of the seed, the clip's own number, and the chunk.

  It does not depend on the other clips of the list or the batch.
  """
  key = jax.random.fold_in(jax.random.key(seed), chunk)
  return base.clip_keys(key, jnp.asarray(numbers))


def generate(
  sample: Sample,
  params: base.Params,
  frozen: base.Params,
  batch: Mapping[str, np.ndarray],
  *,
  keys: Key[Array, "chunks n"],
  batch_size: int,
) -> Iterator[UInt8[np.ndarray, "t h w 3"] | None]:
  """Samples n clips, `batch_size` at a time; the last batch is padded, so nothing recompiles.

  Args:
    sample: from `make_sample`.
    params, frozen: the weights.
    batch: inputs with leading axis n.
    keys: from `clip_keys`, for each of the chunks of a clip: every chunk but the first begins with
      the last frame of the one before, which is not repeated in the clip.
    batch_size: clips at a time.

  Yields:
    The clips in their order, each batch as soon as it is made; None for one that is not finite.
  """
  n = len(next(iter(batch.values())))
  batch_size = min(batch_size, n)
  for first in range(0, n, batch_size):
    rows = np.minimum(np.arange(first, first + batch_size), n - 1)
    part = {name: x[rows] for name, x in batch.items()}
    videos: list[np.ndarray] = []
    finite = np.ones(batch_size, bool)
    for chunk in keys:
      if videos:
        part["image"] = videos[-1][:, -1]
      video, is_finite = sample(params, frozen, part, chunk[rows])
      video = np.asarray(video)
      videos.append(video[:, 1:] if videos else video)
      finite &= np.asarray(is_finite)
    clips = np.concatenate(videos, axis=1)
    for clip, good in zip(clips[: n - first], finite, strict=False):
      yield clip if good else None
