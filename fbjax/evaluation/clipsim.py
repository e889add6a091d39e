"""CLIPSIM: cosine similarity of CLIP embeddings of frames and caption (arXiv:2104.14806).

The network is OpenAI's ViT-B/32. Frames are resized to cover its square, and centre-cropped. All
frames count, also the given one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from fbjax.evaluation import frames, resizing
from fbjax.models import clip

SIZE = 224
NETWORK = {
  "embed_dim": 512,
  "quick_gelu": True,
  "vision_cfg": {"image_size": SIZE, "layers": 12, "width": 768, "patch_size": 32},
  "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def prepare(images: UInt8[Array, "b h w 3"], size: int = SIZE) -> Float[Array, "b s s 3"]:
  """CLIP's preprocessing: PIL's bicubic resize, centre crop, normalization of each channel."""
  h, w = images.shape[1:3]
  short = min(h, w)
  height, width = (int(size * x / short) for x in (h, w))
  x = images.astype(jnp.float32)
  x = x if (height, width) == (h, w) else resizing.bicubic(x, height, width)
  # torchvision rounds half of what is left over, to the even number.
  top, left = (round((x - size) / 2) for x in (height, width))
  x = x[:, top : top + size, left : left + size] / 255
  mean, std = (jnp.array(v).reshape(1, 1, 1, 3) for v in (clip.MEAN, clip.STD))
  return (x - mean) / std


def similarity(
  network: clip.Clip, clips: UInt8[Array, "n t h w 3"], tokens: Int[Array, "n l"]
) -> Float[Array, " n"]:
  """Cosine similarity to the caption, averaged over the frames of each clip."""
  texts = network.embed_text(tokens)

  def of(images: UInt8[Array, "n h w 3"]) -> Float[Array, " n"]:
    return (network.embed_image(prepare(images, network.image.size)) * texts).sum(-1)

  return frames.each(of, clips).mean(1)
