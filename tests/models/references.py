"""Writes references.npz: what the programs that published the metrics make of seeded weights.

    python tests/models/references.py

needs torch, torchvision, pytorch-fid, lpips and dreamsim, none of which the tests need. Weights and
images follow from seeds: the tests make them again.
"""

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".npz")


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
  """As large as keeps activations of one size through ReLUs."""
  import golden

  if key.startswith("lin"):
    return np.abs(golden.weight(key, shape))
  return golden.weight(key, shape) * np.float32(2**0.5 if len(shape) > 3 else 1)


def images(n: int, size: int, seed: int = 0) -> np.ndarray:
  """Smooth pictures with some grain, uint8 "n size size 3"."""
  rng = np.random.default_rng(seed)
  place = np.linspace(0, 1, size)
  waves = rng.uniform(1, 9, (n, 3, 2)) * np.pi
  phase = waves[..., :1, None] * place[:, None] + waves[..., 1:, None] * place
  grain = rng.normal(0, 0.1, (n, size, size, 3))
  x = 0.5 + 0.4 * np.sin(phase).transpose(0, 2, 3, 1) + grain
  return (255 * np.clip(x, 0, 1)).astype(np.uint8)


def load(module, prefix: str = ""):
  """Gives a module the weights of its names, and what comes before them."""
  import torch

  state = module.state_dict()
  for key, x in state.items():
    if x.is_floating_point() and not key.startswith(("scaling_layer", "lins")):
      x.copy_(torch.as_tensor(weight(prefix + key, tuple(x.shape))))
  module.load_state_dict(state)
  return module.eval()


def planes(frames: np.ndarray):
  """Images in [0, 1] as torch has them."""
  import torch

  return torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255


def inception() -> np.ndarray:
  import torch
  from pytorch_fid import inception as reference

  blank = reference._inception_v3(num_classes=1008, aux_logits=False, weights=None)
  reference.load_state_dict_from_url = lambda *args, **kwargs: blank.state_dict()
  network = reference.fid_inception_v3()
  load(network)
  reference.fid_inception_v3 = lambda: network
  small = reference.InceptionV3(resize_input=False).eval()
  with torch.no_grad():
    return small(planes(images(2, 111)))[0][:, :, 0, 0].numpy()


def lpips() -> np.ndarray:
  import lpips as reference
  import torch

  network = load(reference.LPIPS(net="alex", pnet_rand=True, pretrained=False, verbose=False))
  with torch.no_grad():
    a, b = planes(images(2, 64)), planes(images(2, 64, seed=1))
    return network(a, b, normalize=True).flatten().numpy()


def dreamsim(sizes: dict[str, int]) -> np.ndarray:
  """The parts of the ensemble at a small size; the projections have no names in its modules."""
  import torch
  from dreamsim import model as reference
  from dreamsim.feature_extraction import extractor, load_clip_as_dino, vision_transformer

  def small(**_):
    return vision_transformer.VisionTransformer(
      img_size=[sizes["size"]],
      patch_size=sizes["patch"],
      embed_dim=sizes["width"],
      depth=sizes["depth"],
      num_heads=sizes["heads"],
      qkv_bias=True,
      norm_layer=lambda c: torch.nn.LayerNorm(c, eps=1e-6),
    )

  def create(name: str, _):
    vit, i = small(), ("dino_vitb16", "clip_vitb16", "open_clip_vitb16").index(name)
    if i == 0:
      return load(vit, f"extractor_list.{i}.model.")
    vit.pos_drop = torch.nn.LayerNorm(sizes["width"])
    load(vit, f"extractor_list.{i}.model.")
    for module in vit.modules():
      if isinstance(module, torch.nn.LayerNorm):
        module.eps = 1e-5
    if i == 1:
      for block in vit.blocks:
        block.mlp.act = load_clip_as_dino.QuickGELU()
    projection = weight(f"extractor_list.{i}.proj", (sizes["width"], sizes["c_out"]))
    return vit, torch.as_tensor(projection)

  extractor.ViTExtractor.create_model = staticmethod(create)
  # Which block's tokens are taken is fixed for networks of twelve.
  network = reference.PerceptualModel(
    model_type="dino_vitb16,clip_vitb16,open_clip_vitb16",
    feat_type="cls,embedding,embedding",
    stride=",".join([str(sizes["patch"])] * 3),
    lora=True,
    normalize_embeds=True,
    device="cpu",
  ).eval()
  descriptors = extractor.ViTExtractor.extract_descriptors
  extractor.ViTExtractor.extract_descriptors = lambda self, batch, _: descriptors(
    self, batch, sizes["depth"] - 1
  )
  with torch.no_grad():
    return network.embed(planes(images(2, sizes["size"]))).numpy()


DREAMSIM = {"size": 16, "patch": 4, "width": 32, "depth": 2, "heads": 2, "c_out": 12}

if __name__ == "__main__":
  found = {"inception": inception(), "lpips": lpips(), "dreamsim": dreamsim(DREAMSIM)}
  np.savez_compressed(FILE, **found)
  for name, x in found.items():
    print(name, x.shape, x.std(), np.abs(x[0] - x[1]).mean())
