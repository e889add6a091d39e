"""The interface of a system: a video model with its encoders, as training and sampling see it.

A system encodes clips into latents z0, a prior z1 and conditions, denoises, and decodes. Objectives
and samplers know this protocol only: whether z1 is the given frame repeated, a way between two frames
or the coarse video of a neural prior is the system's own business.

Encoding has two halves. What frozen encoders make of a clip, its features, is the same at every
epoch, and can be kept (`fbjax.caches`); what is drawn of them is not.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Key

from fbjax.systems import networks

Params = Any
Cond = Any
Batch = Any
# Named arrays, or trees of them, with leading axis b.
Features = dict[str, Any]


class Example(NamedTuple):
  """Clips as the bridge sees them."""

  z0: Float[Array, "b t h w c"] | None  # clean latent; None when there is only an image
  z1: Float[Array, "b t h w c"]  # prior
  cond: Cond  # what else the network is told; a tree with leading axis b


@runtime_checkable
class System(Protocol):
  """One architecture: pure functions over trees of arrays.

  `params` are trained (network, text network trained along, image projector); `frozen` are not
  (VAE, CLIP, T5), and may be kept in half precision. `weights` makes of both what the networks run
  with. Keys come one a clip, so that a clip's draw does not depend on its batch.
  """

  @property
  def networks(self) -> Mapping[str, networks.NetworkSpec]:
    """The networks by name: what the port reads and writes."""
    ...

  @property
  def fixed(self) -> tuple[str, ...]:
    """Regexes of leaves, as `network/leaf`, that hold constants: they never train or decay."""
    ...

  @property
  def conditions(self) -> frozenset[str]:
    """Conditions beside the given frame: a subset of text, label, stride, image, last (frame)."""
    ...

  def check_clip(self, frames: int, size: tuple[int, int]) -> None:
    """Raises a UserError where it cannot take clips of this length and (height, width) in pixels."""
    ...

  def for_clips(self, frames: int, size: tuple[int, int]) -> "System":
    """This system for clips of another length and size, with the same networks and weights.

    Raises:
      UserError: as `check_clip`.
    """
    ...

  @property
  def encoders(self) -> tuple[str, ...]:
    """The frozen networks that only `features` and `nulls` run, and perhaps `decode`."""
    ...

  @property
  def decoders(self) -> tuple[str, ...]:
    """The networks that `decode` runs."""
    ...

  @property
  def whole(self) -> "networks.NetworkSet":
    """The system without low-rank additions; itself, unless it has some."""
    ...

  def init(self, key: jax.Array) -> Params:
    """New trainable weights."""
    ...

  def init_frozen(self, key: jax.Array) -> Params:
    """New weights of the networks that are not trained, where no ported ones are at hand."""
    ...

  def weights(self, params: Params, frozen: Params) -> Params:
    """The weights that `embed` and `denoise` take: `params`, or with LoRA the merged weights."""
    ...

  def encode(self, frozen: Params, batch: Batch, keys: jax.Array) -> Example:
    """Latents and conditions of clips (`batch["video"]`) or of images (`batch["image"]`).

    The same as `draw` of `features` and `nulls`.
    """
    ...

  def features(self, frozen: Params, batch: Batch, keys: Key[Array, "b n"]) -> Features:
    """Outputs of the frozen encoders for clips or images, before latents are sampled.

    Where noise is added to pixels before encoding, n noisy versions are along a second axis.
    """
    ...

  def nulls(self, frozen: Params, batch: Batch) -> Features:
    """Features of the null text and the null image, for classifier-free guidance.

    The leading axis is 1, or b where the batch has texts of its own for it, `batch["null_tokens"]`.
    """
    ...

  def draw(self, frozen: Params, features: Features, keys: jax.Array) -> Example:
    """Samples latents from `features`, which hold the nulls too; runs none of the `encoders`."""
    ...

  def drop(self, cond: Cond, text: Bool[Array, "b"], image: Bool[Array, "b"]) -> Cond:
    """Replaces the text or image condition of the marked clips by the null one.

    Training and guidance both call this, so that sampling meets the null it was trained with.
    """
    ...

  def embed(self, weights: Params, cond: Cond) -> Cond:
    """Runs the trainable encoders of conditions: once a clip, however many steps follow."""
    ...

  def denoise(
    self,
    weights: Params,
    x: Float[Array, "b t h w c"],
    t_net: Float[Array, "b"],
    cond: Cond,
    keys: jax.Array | None = None,
  ) -> Float[Array, "b t h w c"]:
    """The network's output; keys, one a clip, turn dropout on."""
    ...

  def decode(
    self, frozen: Params, z: Float[Array, "b t h w c"]
  ) -> Float[Array, "b frames height width 3"]:
    """Video in [-1, 1] of latents."""
    ...


def clip_keys(key: jax.Array, places: jax.Array) -> jax.Array:
  """One key a clip, a function of the key and the clip's place alone."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, places)
