"""What a training is watched by, against networks of which the answer is known."""

import json
import logging

import jax
import numpy as np
from etils import epath

import toy
from fbjax import build, places
from fbjax.modes import watch


def loss_of(config, params):
  tokenizer, mesh = build.make_tokenizer(config), build.make_mesh(config)
  system = build.make_system(config, tokenizer)
  source = build.make_source(config, "val")
  form = build.make_formulation(config)
  return watch.held_out_loss(config, system, form, source, tokenizer, mesh)(params, {})


def test_the_held_out_loss_is_the_networks_alone(one_device):
  """The same for the same weights, whatever the batch; another for others; nothing is dropped."""
  config = toy.config()
  system = build.make_system(config, build.make_tokenizer(config))
  new = system.init(jax.random.key(0))  # of which the last layer is zero
  one, two = (jax.tree.map(lambda x, by=by: x + by, new) for by in (0.05, -0.05))
  found = loss_of(config, one)
  assert found == loss_of(config, one)
  assert found != loss_of(config, two)
  smaller = config | {"train": config["train"] | {"batch_size": config["train"]["batch_size"] // 2}}
  np.testing.assert_allclose(loss_of(smaller, one), found, rtol=1e-4)
  dropping = config | {"objective": config["objective"] | {"drop_text": 0.9}}
  assert found == loss_of(dropping, one)


def test_a_network_that_goes_static_is_told(tmp_path, caplog):
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 256, (2, 1, 32, 32, 3), np.uint8)
  truth = np.concatenate([np.roll(truth, 2 * t, axis=2) for t in range(4)], axis=1)
  still = np.repeat(truth[:, :1], 4, axis=1)
  watched = watch.Watch(str(tmp_path), lambda ema, frozen: 0.5)
  with caplog.at_level(logging.WARNING, "fbjax"):
    assert watched(truth, truth, {}, {})["motion_ratio"] == 1
    assert not caplog.text
    found = watched(still, truth, {}, {})
  assert found["motion_ratio"] == 0 and found["static_share"] == 1 and found["loss"] == 0.5
  assert "the network is going static" in caplog.text

  # A resumed run knows of the previews before.
  caplog.clear()
  (tmp_path / "metrics.jsonl").write_text('{"step": 4, "preview/motion_ratio": 1.0}\n')
  with caplog.at_level(logging.WARNING, "fbjax"):
    watch.Watch(str(tmp_path), lambda ema, frozen: 0.5)(still, truth, {}, {})
  assert "going static" in caplog.text


def test_a_resumed_run_knows_of_previews_in_a_bucket_and_of_those_that_are_none(
  tmp_path, monkeypatch
):
  rows = [{"step": i, "preview/motion_ratio": x} for i, x in enumerate((None, 0.75, "high"))]
  (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  monkeypatch.setattr(places, "remote", lambda workdir: epath.Path(tmp_path))
  for workdir in (str(tmp_path), "gs://bucket/of-previews"):
    assert watch.Watch(workdir, lambda ema, frozen: 0.5)._most == 0.75
