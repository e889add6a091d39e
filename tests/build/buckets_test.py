"""Networks at the lengths and sizes of `config.data.buckets`."""

import re

import jax
import jax.numpy as jnp
import pytest

import toy
from configs import ucf101_bridge, webvid_saf_cogvideox
from fbjax import build, errors
from fbjax.modes import cache, train


def with_buckets(config, *buckets):
  return config | {"data": config["data"] | {"buckets": buckets}}


def traced(config, shape) -> str:
  """The loss of clips of a shape, as a program."""
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  loss = build.make_loss(config, system, build.make_formulation(config))
  like = {"video": ((*shape, 3), jnp.uint8), "tokens": ((tokenizer.length,), jnp.int32)}
  like |= dict.fromkeys(("stride", "label"), ((), jnp.int32))
  batch = {name: jax.ShapeDtypeStruct((2, *own), dtype) for name, (own, dtype) in like.items()}
  key = jax.random.key(0)
  params, frozen = (jax.eval_shape(f, key) for f in (system.init, system.init_frozen))
  keys = jax.eval_shape(lambda: jax.random.split(key, 2))
  return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(loss)(params, frozen, batch, keys)))


@pytest.mark.parametrize(
  ("config", "own", "other"),
  [
    (toy.config(), (3, 16, 16), (5, 16, 28)),
    # Its table of frames is of the config's length.
    (ucf101_bridge.get_config("smoke").to_dict(), (4, 32, 32), (4, 24, 40)),
    (webvid_saf_cogvideox.get_config("smoke").to_dict(), None, (17, 32, 48)),
  ],
  ids=["videocrafter", "latte", "cogvideox"],
)
def test_a_batch_has_the_loss_of_a_training_at_its_size(config, own, other):
  frames, size = build.clip_size(config)
  own = own or (frames, *size)
  assert own == (frames, *size) != other
  mixed = with_buckets(config, own, other)
  alone = config | {"data": config["data"] | {"frames": other[0], "size": other[1:]}}
  assert traced(mixed, other) == traced(alone, other)


def test_a_latte_goes_on_beyond_its_tables_of_frames_and_places():
  config = with_buckets(ucf101_bridge.get_config("smoke").to_dict(), (4, 32, 32), (6, 32, 64))
  assert "6,8,16" in traced(config, (6, 32, 64))


@pytest.mark.parametrize(
  ("buckets", "words"),
  [
    (((3, 16, 17),), r"has \(3, 16, 17\): clips of 16x17 pixels .* such as 16x16 or 16x18$"),
    (((3, 16, 16), (3, 16)), "expected a list of"),
    ((), "expected a list of"),
  ],
)
def test_a_bucket_that_a_system_cannot_take_is_named(buckets, words):
  config = with_buckets(toy.config(), *buckets)
  with pytest.raises(errors.UserError, match=rf"^config\.data\.buckets .*{words}"):
    build.check(config)
    build.make_system(config, build.make_tokenizer(config))


def test_a_bucket_of_frames_that_a_codec_cannot_take_is_named():
  config = with_buckets(webvid_saf_cogvideox.get_config("smoke").to_dict(), (16, 32, 32))
  with pytest.raises(
    errors.UserError,
    match=r"^config\.data\.buckets has \(16, 32, 32\): .* nearest that do have 9 or 17 frames$",
  ):
    build.make_system(config, build.make_tokenizer(config))


def test_none_is_no_buckets():
  config = toy.config()
  config["data"]["buckets"] = None
  build.check(config)
  batches = build.make_batches(
    config, build.make_source(config, "train"), build.make_tokenizer(config), 0, 1
  )
  assert {next(batches)["video"].shape for _ in range(3)} == {(8, 3, 16, 16, 3)}
  batches.close()


def test_batches_of_a_config_are_of_its_buckets():
  config = with_buckets(toy.config(), (3, 16, 16), (2, 8, 24))
  source = build.make_source(config, "train")
  batches = build.make_batches(config, source, build.make_tokenizer(config), 0, 1)
  shapes = {next(batches)["video"].shape for _ in range(8)}
  batches.close()
  assert shapes == {(8, 3, 16, 16, 3), (8, 2, 8, 24, 3)}
  held_out = build.make_source(config, "val")
  assert held_out[0].video.shape == (3, 16, 16, 3)


def test_a_cache_is_of_one_size(tmp_path):
  config = with_buckets(toy.config(), (3, 16, 16), (2, 8, 24))
  words = r"config\.data\.buckets has clips of several sizes, and a cache holds those of one"
  with pytest.raises(errors.UserError, match=words):
    cache.cache(config, str(tmp_path / "cache"))
  config["cache"] = {"path": str(tmp_path / "cache")}
  tokenizer = build.make_tokenizer(config)
  with pytest.raises(errors.UserError, match=words):
    train.clips_of(config, build.make_system(config, tokenizer), tokenizer)


def test_previews_of_a_size_that_is_not_trained_are_told(caplog):
  train.tell_size(toy.config())
  train.tell_size(with_buckets(toy.config(), (2, 8, 24), (3, 16, 16)))
  assert not caplog.text
  train.tell_size(with_buckets(toy.config(), (2, 8, 24)))
  assert "config.data.frames=3 and config.data.size=(16, 16), which none of" in caplog.text
