"""DreamSim: perceptual similarity of images by three vision transformers (arXiv:2306.09344).

  image [0, 1] "b 224 224 3" -> unit vectors "b c", whose cosine is the similarity

DINO, CLIP and OpenCLIP side by side, each fine-tuned on human judgements. DINO gives its class
token before the last norm, the others theirs behind the projection into their joint space.
"""

from typing import Any

import einops
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fbjax.models import clip, layers

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of DINO


class Branch(nnx.Module):
  """A vision transformer: patches, a class token in front, positions, blocks.

  Args:
    c_out: channels of the projection, with LayerNorms before and behind the blocks, as in CLIP;
      None for no projection and neither of these norms, as in DINO.
    quick_gelu: OpenAI's approximation of the GELU.
    epsilon: of the norms.
  """

  def __init__(
    self,
    size: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    c_out: int | None = None,
    *,
    quick_gelu: bool = False,
    epsilon: float = 1e-5,
    dtype: Any = jnp.float32,
    rngs: layers.Keys,
  ):
    options = {"dtype": dtype, "rngs": rngs}
    normal, joint = nnx.initializers.normal(0.02), c_out is not None
    self.patches = layers.conv(3, width, patch, stride=patch, padding=0, **options)
    self.start = nnx.Param(normal(rngs.params(), (width,)))
    self.position = nnx.Param(normal(rngs.params(), ((size // patch) ** 2 + 1, width)))
    self.in_norm = layers.layer_norm(width, epsilon=epsilon, rngs=rngs) if joint else None
    self.transformer = clip.Transformer(
      width, layers=depth, heads=heads, quick_gelu=quick_gelu, epsilon=epsilon, **options
    )
    self.out_norm = layers.layer_norm(width, epsilon=epsilon, rngs=rngs) if joint else None
    self.projection = nnx.Param(normal(rngs.params(), (width, c_out))) if joint else None

  def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
    joint = self.projection is not None
    mean, std = (clip.MEAN, clip.STD) if joint else (MEAN, STD)
    image = (image - layers.per_channel(jnp.array(mean), image)) / layers.per_channel(
      jnp.array(std), image
    )
    x = einops.rearrange(self.patches(image), "b h w c -> b (h w) c")
    start = jnp.broadcast_to(self.start[...], (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([start, x], 1) + self.position[...][None]
    x = self.transformer(self.in_norm(x) if joint else x)[:, 0]
    return self.out_norm(x) @ self.projection[...] if joint else x


class DreamSim(nnx.Module):
  """The embedding network: three branches, concatenated, centred and normalized.

  Args:
    c_out: channels of CLIP's joint spaces.
    depth: blocks of each branch.
  """

  def __init__(
    self,
    size: int = 224,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    c_out: int = 512,
    *,
    dtype: Any = jnp.float32,
    rngs: layers.Keys,
  ):
    sizes = {"size": size, "patch": patch, "width": width, "depth": depth, "heads": heads}
    options = {"dtype": dtype, "rngs": rngs}
    self.dino = Branch(**sizes, epsilon=1e-6, **options)
    self.clip = Branch(**sizes, c_out=c_out, quick_gelu=True, **options)
    self.open_clip = Branch(**sizes, c_out=c_out, **options)

  def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
    x = jnp.concatenate([branch(image) for branch in (self.dino, self.clip, self.open_clip)], -1)
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
