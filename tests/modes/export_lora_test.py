"""Low-rank additions of CogVideoX by themselves: diffusers loads them, and the outputs are ours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fake_checkpoint
from configs import webvid_saf_cogvideox
from fbjax import build, checkpoint, errors, loading, trees
from fbjax import workdir as workdir_lib
from fbjax.modes import export, export_lora, port
from fbjax.port import files, table
from fbjax.systems import adapters
from fbjax.train import step

RANK = 3


def config() -> dict:
  """At toy size, from a checkpoint whose input kernel is wide already: nothing but additions trains."""
  c = webvid_saf_cogvideox.get_config("smoke+lora")
  c.system.text.update(vocab=303)
  c.system.transformer.update(patch=2)
  c.trainable.update(rank=RANK, scale=6.0)
  c.start = dict()
  return c.to_dict()


def published(folder) -> str:
  """The networks' folders as diffusers has them, and the weights that were ported from these."""
  spec = config()
  system = build.make_networks(spec, None)
  for name, part in system.networks.items():
    layout = table.layout_name(part.network, part.sizes)
    # Large, so that what is added shows behind all gates.
    tensors = {
      k: 6 * np.asarray(x, np.float32) for k, x in fake_checkpoint.tensors(part, "").items()
    }
    export.write_folder(name, part, layout, tensors, folder)
  homes = [str(folder / name) for name in ("transformer", "vae", "text_encoder")]
  port.port_files(spec, homes, str(folder / "weights"))
  return str(folder / "weights")


def trained(workdir: str, spec: dict) -> str:
  """A workdir whose additions are large."""
  system = build.make_system(spec, build.make_tokenizer(spec))
  origin = loading.starting_weights(spec, system, build.make_mesh(spec)).origin
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32),
    jax.eval_shape(system.init, jax.random.key(0)),
  )
  state = step.init_state(params, build.make_optimizer(spec, system))
  with workdir_lib.claim(workdir, spec, origin) as record:
    record(0)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(1, state._replace(ema=params), 1)
    checkpoints.close()
  return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
  home = tmp_path_factory.mktemp("home")
  spec = config() | {"weights": published(home)}
  return home, trained(str(home / "run"), spec)


def test_diffusers_loads_them_and_its_outputs_are_ours(run, tmp_path):
  torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
  pytest.importorskip("peft")
  home, workdir = run
  export.export(None, workdir, str(tmp_path / "lora.safetensors"), format="lora")
  theirs = diffusers.CogVideoXTransformer3DModel.from_pretrained(
    home / "transformer", sample_height=4, sample_width=4, max_text_seq_length=16
  ).eval()
  pipeline = diffusers.CogVideoXImageToVideoPipeline(
    tokenizer=None,
    text_encoder=None,
    vae=diffusers.AutoencoderKLCogVideoX.from_pretrained(home / "vae"),
    transformer=theirs,
    scheduler=diffusers.CogVideoXDDIMScheduler(),
  )
  rng = np.random.default_rng(0)
  x, text = (rng.standard_normal(s, np.float32) for s in ((1, 2, 4, 4, 8), (1, 16, 16)))
  arrays = [torch.from_numpy(a) for a in (x.transpose(0, 1, 4, 2, 3), text, np.float32([500]))]

  def outputs(*arrays) -> np.ndarray:
    with torch.no_grad():
      return theirs(*arrays).sample.numpy().transpose(0, 1, 3, 4, 2)

  before = outputs(*arrays)
  pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
  after = outputs(*arrays)
  spec = loading.trained_config(workdir)
  system = build.make_system(spec, build.make_tokenizer(spec))
  merged, _ = loading.merged_weights(spec, workdir)
  ours = np.asarray(jax.jit(system.whole.run("transformer", merged))(x, np.float32([500]), text))
  np.testing.assert_allclose(after, ours, atol=1e-4)
  assert np.abs(after - before).max() > 0.05


def test_comfyui_finds_them_by_its_names_and_adds_what_we_add(run, tmp_path):
  home, workdir = run
  export.export(None, workdir, str(tmp_path / "lora.safetensors"), format="comfyui_lora")
  found = files.read(tmp_path / "lora.safetensors").tensors
  sizes = build.make_networks(config(), None).networks["transformer"].sizes
  width = sizes["heads"] * sizes["head_dim"]
  names = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "attn_out"}
  assert len(found) == 3 * sizes["depth"] * len(names)
  merged, _ = loading.merged_weights(loading.trained_config(workdir), workdir)
  whole = table.layout("cogvideox", sizes)
  back = {leaf.key: leaf.path for leaf in whole.leaves(sizes)}
  base = files.read(home / "transformer").tensors
  flat = trees.flatten(merged["transformer"])
  for i in range(sizes["depth"]):
    for theirs, name in names.items():
      key = f"transformer_blocks.{i}.attn1.{theirs}.weight"
      module = f"diffusion_model.blocks.{i}.{name}"
      up, down = found[f"{module}.lora_up.weight"], found[f"{module}.lora_down.weight"]
      assert up.shape == (width, RANK) and down.shape == (RANK, width)
      scale = found[f"{module}.alpha"].item() / len(down)  # as ComfyUI scales
      kernel = np.asarray(flat[back[key].replace(f"[{i}]", "")])[i]
      np.testing.assert_allclose(base[key] + scale * up @ down, kernel.T, atol=1e-5)
      assert np.abs(scale * up @ down).max() > 0.1


def test_what_more_than_additions_to_one_network_was_trained_is_told(monkeypatch):
  system = build.make_networks(config(), None)
  lora = functools.partial(adapters.LoRA, system, rank=RANK)
  q, patches = "transformer/blocks/attn/q/kernel", "transformer/patches/kernel"
  assert export_lora.check(lora(added=[q], whole=[]), "runs/x") == "transformer"
  for made, sentence in (
    (system, "has no low-rank additions: export its weights, without --format"),
    # As where the kernel was widened for the image.
    (lora(added=[q], whole=[patches]), f"trained 1 weights whole, {patches} among them.*it merged"),
  ):
    with pytest.raises(errors.UserError, match=sentence):
      export_lora.check(made, "runs/x")
  monkeypatch.setattr(adapters.LoRA, "added", [q, f"prior_{q}"])
  with pytest.raises(errors.UserError, match="additions to prior_transformer and transformer"):
    export_lora.check(lora(added=[q], whole=[]), "runs/x")
