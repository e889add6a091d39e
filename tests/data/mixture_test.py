import collections

import numpy as np
import pytest

import toy
from fbjax import build, errors
from fbjax.data import mixture, synthetic
from fbjax.data import video as video_lib


class Numbered:
  """A source whose clips are their own numbers."""

  def __init__(self, name, clips):
    self._name, self._clips = name, clips

  def __len__(self):
    return self._clips

  def read(self, index, rng):
    video = np.zeros((1, 2, 2, 3), np.uint8)
    return video_lib.Clip(video, f"{self._name}/{index} {rng.random()}")

  def name(self, index):
    return f"{index}"

  def caption(self, index):
    return f"{self._name} {index}"

  def digest(self):
    return f"{self._name}{self._clips}"


def mixed(counts, weights):
  names = "abc"[: len(counts)]
  parts = {name: Numbered(name, n) for name, n in zip(names, counts, strict=True)}
  return mixture.Mixture(parts, dict(zip(names, weights, strict=True)))


@pytest.mark.parametrize(
  ("counts", "weights"),
  [
    ((100, 100), (1, 1)),
    ((1000, 10), (1, 1)),
    ((30, 500, 7), (5, 3, 2)),
    ((1, 1), (9, 1)),
    ((5,), (2,)),
  ],
)
def test_every_clip_is_read_and_each_source_has_its_share(counts, weights):
  source = mixed(counts, weights)
  found = collections.Counter(source.name(i) for i in range(len(source)))
  assert {name: n for name, n in found.items()}.keys() == {
    f"{name}/{i}" for name, n in zip("abc", counts, strict=False) for i in range(n)
  }
  for name, weight in zip("abc", weights, strict=False):
    share = sum(n for clip, n in found.items() if clip.startswith(name)) / len(source)
    assert share == pytest.approx(weight / sum(weights), abs=0.02 + 1 / len(source))
  # No clip of a source is read twice as often as another one.
  for name, n in zip("abc", counts, strict=False):
    times = [found[f"{name}/{i}"] for i in range(n)]
    assert max(times) - min(times) <= 1


def test_any_stretch_has_all_sources():
  source = mixed((1000, 200, 50), (5, 3, 2))
  for start in (0, 100, len(source) - 20):
    names = collections.Counter(source.name(i)[0] for i in range(start, start + 20))
    assert 8 <= names["a"] <= 12 and 4 <= names["b"] <= 8 and 2 <= names["c"] <= 6


def test_clips_are_those_of_their_source_drawn_as_there():
  source = mixed((10, 3), (1, 2))
  for i in range(len(source)):
    clip = source.read(i, np.random.default_rng(i))
    assert clip.caption == f"{source.name(i)} {np.random.default_rng(i).random()}"
    assert source.caption(i) == source.name(i).replace("/", " ")


def test_the_digest_tells_sources_and_shares():
  one = mixed((10, 3), (1, 2)).digest()
  assert one == mixed((10, 3), (2, 4)).digest()
  assert len({one, mixed((10, 3), (1, 1)).digest(), mixed((10, 4), (1, 2)).digest()}) == 3


def test_what_cannot_be_mixed_is_told():
  with pytest.raises(errors.UserError, match="names no source to mix"):
    mixture.Mixture({}, {})
  with pytest.raises(
    errors.UserError, match=r"config.data.parts.a.weight is 0; expected .* above 0"
  ):
    mixture.Mixture({"a": synthetic.Shapes()}, {"a": 0})


def test_a_config_mixes_sources_and_its_mistakes_are_told_by_their_part(tmp_path):
  for i in range(3):
    video_lib.write_mp4(tmp_path / f"cat {i}.mp4", np.full((6, 16, 16, 3), 90, np.uint8))
  mine = {"name": "folder", "path": str(tmp_path), "strides": 2, "weight": 3, "size": (16, 16)}
  parts = {"mine": mine, "shapes": {"name": "synthetic", "clips": 1}}
  config = toy.config() | {"data": {"name": "mixture", "parts": parts, "frames": 3, "size": 16}}
  build.check(config)
  source = build.make_source(config, "train")
  assert {source.name(i).split("/")[0] for i in range(len(source))} == {"mine", "shapes"}
  for i in range(len(source)):
    clip = source.read(i, np.random.default_rng(0))
    assert clip.video.shape == (3, 16, 16, 3)
    assert clip.stride == (2 if source.name(i).startswith("mine") else 1)
  for change, told in (
    ({"mine": 3}, "config.data.parts.mine is 3; expected a group"),
    ({"mine": mine | {"name": "x"}}, "config.data.parts.mine.name is 'x'; expected one of"),
    ({"mine": mine | {"fold": 1}}, "config.data.parts.mine has no key 'fold'"),
    ({"mine": mine | {"weight": -1}}, "config.data.parts.mine.weight is -1"),
    ({"mine": mine | {"size": 24}}, "config.data.parts.mine has clips of another .*leave frames"),
    ({"mine": mine | {"frames": 2}}, "config.data.parts.mine has clips of another length"),
    ({"mine": mine | {"path": "nowhere"}}, "nowhere; set config.data.parts.mine.path to"),
  ):
    broken = config | {"data": config["data"] | {"parts": parts | change}}
    with pytest.raises(errors.UserError, match=told):
      build.make_source(broken, "train")
