"""Every measure that looks through a network, at toy sizes, from weights on disk to numbers."""

import functools
import gzip
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import networks as build
from models import references

from fbjax import sharding, trees, weights
from fbjax.data import tokenizers
from fbjax.evaluation import (
  clipsim,
  fid,
  frechet,
  inception_score,
  measures,
  metrics,
  networks,
  pic,
)
from fbjax.models import clip, dreamsim
from fbjax.models import lpips as lpips_model
from fbjax.modes import port

FACTS = metrics.Facts(clips=20, frames=16, size=(32, 32), paired=True, captions="digest")
TOWER = {"width": 16, "layers": 1, "heads": 2}
SIZES = {
  "c3d": {"width": 2, "hidden": 8, "classes": 5},
  "clip_b32": {
    "c_out": 8,
    "image": TOWER | {"size": 16, "patch": 8},
    "text": TOWER | {"vocab": 515, "length": 77},
  },
  "dreamsim": references.DREAMSIM | {"size": 16, "patch": 8},
}


class Colours(nnx.Module):
  """In place of Inception and C3D: the mean colours."""

  def __init__(self, *, rngs):
    del rngs
    self.kernel = nnx.Param(jnp.eye(3))

  def __call__(self, image):
    return image.mean(range(1, image.ndim - 1)) @ self.kernel[...]


MODELS = {
  "inception": Colours,
  "c3d": Colours,
  "clip_b32": clip.Clip,
  "lpips": lpips_model.LPIPS,
  "dreamsim": dreamsim.DreamSim,
}


@pytest.fixture(scope="module")
def clips():
  clips = np.stack([references.images(3, 32, seed=s) for s in range(40)])
  return clips[:20], clips[20:]


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A folder of weights of all networks but I3D, all of them small."""
  monkeypatch.setenv("FBJAX_METRICS", str(tmp_path))
  monkeypatch.setattr(fid, "prepare", functools.partial(fid.prepare, size=20))
  monkeypatch.setattr(pic, "prepare", functools.partial(pic.prepare, size=16))
  for name, model in MODELS.items():
    sizes = {} if model is Colours else SIZES.get(name, {})
    spec = networks.SPECS[name]._replace(make=model, sizes=sizes)
    monkeypatch.setitem(networks.SPECS, name, spec)
    flat = trees.flatten(build.params(model, **sizes))
    flat = {p: np.abs(x) if p.endswith(("var", "norm/scale")) else x for p, x in flat.items()}
    leaves = {weights.network_path(name, path): x for path, x in flat.items()}
    weights.write(str(tmp_path / name), leaves, lambda path, x: None, {"files": [], "parts": {}})
  with gzip.open(tmp_path / metrics.VOCABULARY, "wt") as file:
    file.write("#version\na b</w>\n")
  return tmp_path


@pytest.mark.thorough
def test_each_is_what_its_network_says_of_the_frames_that_count(home, clips, caplog):
  """Twenty clips, which eight devices do not share evenly."""
  caplog.set_level("INFO", "fbjax")
  mesh = sharding.make_mesh()
  looks, under = metrics.opened(FACTS, "styleganv", mesh)
  assert set(looks) == set(under) == {"fid", "is", "clipsim", "lpips", "pic"}
  assert "No fvd: no weights of i3d in" in caplog.text
  assert all(len(own[name]) == 32 for own in under.values() for name in own if name in MODELS)
  made, truth = clips
  captions = [f"ab {i}" for i in range(20)]
  measured = measures.Measures(paired=True, metrics=looks)
  measured.add(made, truth, captions, captions)
  found = measured.numbers()
  values = np.array([found["made"][name] for name in [*under, "fid_infinite"]])
  assert np.isfinite(values).all() and (values[:, 1] > 0).all()
  assert set(found["truth"]) - set(measures.OF_CLIPS) == {"is", "clipsim", "pic"}
  assert found["still"]["pic"].value == pytest.approx(1, abs=1e-5)
  assert found["made"]["pic"].value < 0.999

  made, truth = (jnp.asarray(x) for x in clips)

  def look(name, f, *arrays):
    graph, params = networks.SPECS[name].graph(), networks.read(name, mesh)[0]
    return jax.jit(lambda params, *xs: f(nnx.merge(graph, params), *xs))(params, *arrays)

  def compare(name, values):
    assert found["made"][name].value == pytest.approx(float(np.mean(values)), rel=1e-4), name

  frames = made.reshape(-1, 32, 32, 3)
  a, b = (x[:, 1:].reshape(-1, 32, 32, 3) / 127.5 - 1 for x in (made, truth))
  compare("lpips", look("lpips", lambda network, a, b: network(a, b), a, b))
  images = pic.prepare(jnp.concatenate([frames, truth[:, 0]]))
  embedded = look("dreamsim", lambda network, x: network(x), images)
  compare("pic", (embedded[:60].reshape(20, 3, -1) * embedded[60:][:, None]).sum(-1))
  tokens = jnp.asarray(tokenizers.CLIP(metrics.vocabulary())(captions))
  images = clipsim.prepare(frames, 16)
  seen = look("clip_b32", lambda network, x: network.embed_image(x), images).reshape(20, 3, -1)
  texts = look("clip_b32", lambda network, x: network.embed_text(x), tokens)
  compare("clipsim", (seen * texts[:, None]).sum(-1))
  assert looks["clipsim"].of(measures.Batch(clips[0])) is None
  logits = look("c3d", lambda network, x: network(x), made / 127.5 - 1)
  score = inception_score.score(np.asarray(logits)).value
  assert found["made"]["is"].value == pytest.approx(score, rel=1e-4)
  squares = (fid.prepare(x.reshape(-1, 32, 32, 3)) for x in (truth, made))
  features = [look("inception", lambda network, x: network(x), x) for x in squares]
  apart = frechet.distance(*(frechet.statistics(np.asarray(x)) for x in features))
  assert found["made"]["fid"].value == pytest.approx(apart, rel=1e-3)


@pytest.mark.parametrize(
  ("facts", "name", "why"),
  [
    ({"frames": 8}, "fvd", "clips of 9 frames or more"),
    ({"clips": 1}, "fvd", "2 clips or more"),
    ({"frames": 17}, "is", "clips of 16 frames"),
    ({"clips": 19}, "is", "20 clips or more"),
    ({"captions": None}, "clipsim", "a caption for each clip"),
    ({}, "clipsim", "bpe_simple_vocab_16e6.txt.gz, which github.com/openai/CLIP has"),
    ({"paired": False}, "lpips", "clips with their truth"),
    ({"size": (64, 30)}, "lpips", "frames of 31 pixels or more"),
    ({"frames": 1}, "lpips", "clips of 2 frames or more"),
    ({"paired": False}, "pic", "clips with their truth"),
  ],
)
def test_what_cannot_be_measured_is_told_and_left_out(
  tmp_path, monkeypatch, caplog, facts, name, why
):
  monkeypatch.setenv("FBJAX_METRICS", str(tmp_path))
  caplog.set_level(logging.INFO, "fbjax")
  assert metrics.opened(FACTS._replace(**facts), "styleganv", sharding.make_mesh()) == ({}, {})
  lines = [record.getMessage() for record in caplog.records]
  (line,) = [line for line in lines if line.startswith(f"No {name}: ")]
  assert why in line
  (line,) = [line for line in lines if line.startswith("No fid: ")]
  assert "pytorch-fid" in line and "--network=inception" in line


def test_weights_in_two_files_are_ported_together(tmp_path, monkeypatch, clips):
  """C3D of Chainer, and the mean of its clips."""
  monkeypatch.setenv("FBJAX_METRICS", str(tmp_path))
  monkeypatch.setitem(networks.SPECS, "c3d", networks.SPECS["c3d"]._replace(sizes=SIZES["c3d"]))
  layout = port.table.layout("c3d", {})
  tensors = {x.key: references.weight(x.key, x.shape) for x in layout.leaves(SIZES["c3d"])}
  mean = {"mean": tensors.pop("mean")}
  chainer = {k.replace(".weight", "/W").replace(".bias", "/b"): x for k, x in tensors.items()}
  for file, arrays in (
    ("a.npz", chainer),
    ("b.npz", mean),
    ("c.npz", mean | {"fc8/b": mean["mean"]}),
  ):
    np.savez_compressed(tmp_path / file, **arrays)
  files = [str(tmp_path / file) for file in ("a.npz", "b.npz")]
  with pytest.raises(ValueError, match="missing    mean"):
    port.port_network("c3d", files[:1], None)
  with pytest.raises(ValueError, match="c.npz holds fc8/b, as another of --weights does"):
    port.port_network("c3d", [files[0], str(tmp_path / "c.npz")], None)
  with pytest.raises(ValueError, match="needs --weights=.*mean2.npz of github.com/rezoo/tgan2"):
    port.port_network("c3d", [], None)
  port.port_network("c3d", files, None)
  params, _ = networks.read("c3d", sharding.make_mesh())
  np.testing.assert_array_equal(params["mean"], mean["mean"].transpose(1, 2, 3, 0))
  np.savez(tmp_path / "text.npz", a=np.array(["x"]))
  with pytest.raises(ValueError, match="text.npz holds 'a', which is no array of numbers"):
    port.port_network("c3d", [str(tmp_path / "text.npz")], None)
