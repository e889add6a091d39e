"""A trained network as a function of images and prompts."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import PIL.Image
import pytest

import fbjax
import toy
from fbjax import errors, sampling, sharding
from fbjax import pipe as pipes
from fbjax.data import tokenizers
from fbjax.modes import sample
from fbjax.systems import codecs, neural_prior


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return toy.wild(str(tmp_path_factory.mktemp("wild")))


@pytest.fixture(scope="module")
def pipe(workdir):
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipes.build, "make_mesh", lambda config: one)
    yield fbjax.load(workdir)


def picture(seed=0, size=(24, 40)):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_an_image_may_be_a_file_a_picture_or_an_array(pipe, tmp_path):
  array = picture()
  PIL.Image.fromarray(array).save(tmp_path / "cat.png")
  clip = pipe(array, "up")
  assert clip.shape == (3, 16, 16, 3) and clip.dtype == np.uint8
  for image in (
    tmp_path / "cat.png",
    str(tmp_path / "cat.png"),
    PIL.Image.fromarray(array),
    array / np.float32(255),
  ):
    np.testing.assert_array_equal(pipe(image, "up"), clip)


def test_several_images_are_several_clips_each_the_same_alone(pipe):
  images = [picture(i) for i in range(3)]
  clips = pipe(images, ["up", "down", "up"])
  assert clips.shape == (3, 3, 16, 16, 3)
  np.testing.assert_array_equal(pipe(np.stack(images), ["up", "down", "up"]), clips)
  # Alone, and in another order.
  alone, turned = pipe(images[1], "down").astype(int), pipe(images[::-1], ["up", "down", "up"])
  assert np.abs(alone - clips[1]).max() <= 1 and np.abs(clips[::-1] - turned.astype(int)).max() <= 1
  assert np.abs(clips[0].astype(int) - clips[2]).max() > 10


def test_two_images_have_noise_of_their_own_and_the_same_image_the_same(pipe):
  """So that two prompts, or two settings, of one image can be compared."""
  keys = []

  def sample(params, frozen, batch, key):
    keys.extend(np.asarray(jax.random.key_data(key)))
    videos = np.zeros((len(key), 3, 16, 16, 3), np.uint8)
    return videos, np.ones(len(key), bool)

  settings = pipe.settings()._replace(sample=sample)
  images = [picture(0), picture(1), picture(0)]
  list(pipe.animate(images, ["up", "down", "left"], settings))
  one, two, again = keys[:3]
  assert (one == again).all() and (one != two).any()


def test_what_is_asked_for_is_heard(pipe):
  still = pipe(picture(), "up").astype(int)
  for options in (
    *({"seed": 1}, {"steps": 3}, {"guidance": 3.0}, {"stride": 4}),
    *({"sampler": "heun"}, {"sampler": {"name": "dbim", "order": 1}}, {"grid": "uniform"}),
  ):
    assert np.abs(pipe(picture(), "up", **options) - still).max() > 5, options
  assert np.abs(pipe(picture(), "down") - still).max() > 5
  assert pipe(picture(), "up", size=(8, 16), frames=2).shape == (2, 8, 16, 3)


def test_what_cannot_be_is_one_sentence(pipe):
  for arguments, options, sentence in (
    (([],), {}, "there is no image to animate"),
    ((picture(), ["up", "down"]), {}, "1 images have 2 prompts; give one for each"),
    ((picture(), "up"), {"frames": 0}, "--frames is 0; expected a whole number from 1 up"),
    ((picture(), "up"), {"size": 0}, "--size is 0; expected a whole number"),
    ((picture(),), {"guidance": 3.0}, "it is told nothing: give --prompt or --label"),
    ((np.zeros((3, 4, 2)),), {}, r"an array of \(3, 4, 2\); expected \[h, w, 3\]"),
  ):
    with pytest.raises(errors.UserError, match=sentence):
      pipe(*arguments, **options)
  assert pipe(picture(), "up", size=8).shape == (3, 8, 8, 3)


def test_another_step_or_the_weights_themselves_give_another_clip(pipe, workdir, monkeypatch):
  one = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  monkeypatch.setattr(pipes.build, "make_mesh", lambda config: one)
  newest = pipe(picture(), "up").astype(int)
  np.testing.assert_array_equal(fbjax.load(workdir, step=4)(picture(), "up"), newest)
  for options in ({"step": 2}, {"ema": False}):
    assert np.abs(fbjax.load(workdir, **options)(picture(), "up") - newest).max() > 5, options
  with pytest.raises(errors.UserError, match="no checkpoint of step 3; it has 2, 4"):
    fbjax.load(workdir, step=3)(picture(), "up")


def test_a_program_is_compiled_once_for_what_is_asked_for(workdir, monkeypatch):
  made = []
  make = sampling.make_sample

  def counting(*args, **kwargs):
    made.append(make(*args, **kwargs))
    return made[-1]

  monkeypatch.setattr(sampling, "make_sample", counting)
  pipe = fbjax.load(workdir)
  for seed in range(3):
    pipe(picture(seed), "up", seed=seed)
  assert len(made) == 1 and made[0]._cache_size() == 1
  pipe(picture(), "up", steps=3)
  assert len(made) == 2


def test_the_command_line_gives_the_same_clip(pipe, workdir, tmp_path):
  PIL.Image.fromarray(picture()).save(tmp_path / "cat.png")
  seen = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sample, "write", lambda file, clip, fps: seen.append(clip))
    sample.sample(
      None, workdir, image=str(tmp_path / "cat.png"), prompt="up", out="cat.mp4", seed=5
    )
  np.testing.assert_array_equal(seen[0], pipe(picture(), "up", seed=5))


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda pipe: pipe([picture()] * 2, ["up"]), "2 images have 1 prompts; give one for each"),
    (lambda pipe: pipe(picture()[..., :2]), r"expected \[h, w, 3\]"),
    (lambda pipe: pipe("nowhere.png"), "no image at nowhere.png"),
    (
      lambda pipe: pipe(picture(), guidence=2.0),
      "no option guidence; there are negative_prompt,|prompt",
    ),
    (lambda pipe: pipe(picture(), "up", prompt="up"), "leave prompt out"),
    (lambda pipe: fbjax.load("no/where"), "there is no folder no/where"),
    (lambda pipe: pipe(picture(), label=1), "not told a label"),
    (lambda pipe: pipe(picture(), size=(17, 17)), "17"),
    (lambda pipe: pipe(picture().astype(np.float32)), "values from 0 to 255 in float32; expected"),
    (lambda pipe: pipe(picture().astype(int) + 200), "values from 200 to 455 in int64"),
    (lambda pipe: pipe(picture() > 9), "an array of bool; expected uint8, or floats"),
    (lambda pipe: pipe(np.full((4, 4, 3), np.nan)), "values from nan to nan"),
    (lambda pipe: pipe(np.zeros((0, 0, 3), np.uint8)), r"an array of \(0, 0, 3\)"),
    (
      lambda pipe: pipe(picture(), sampler=3),
      "config.sampling.sampler is 3; expected a group of keys",
    ),
    (
      lambda pipe: pipe(picture(), grid={"name": "karras", "rho": "a"}),
      "rho is 'a'; expected a number",
    ),
    (lambda pipe: pipe(picture(), draw="sample"), "the codec 'pixels' has no posterior"),
    (lambda pipe: pipe(picture(), fps=3), "fps is of files and previews"),
    (lambda pipe: fbjax.load("zoo", "configs/quickstart.py"), "expected a ConfigDict or a dict"),
  ],
)
def test_what_does_not_fit_is_one_sentence(pipe, call, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    call(pipe)


def test_a_negative_prompt_is_one_text(pipe, monkeypatch):
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run
  with pytest.raises(errors.UserError, match="negative_prompt is .'up'.; expected one text"):
    pipe(picture(), "up", negative_prompt=["up"], guidance=2.0)


def test_a_neural_prior_takes_a_seed_where_its_codec_draws():
  prior = neural_prior.NeuralPrior()
  sizes = {"width": 8, "mult": (1,), "blocks": 1, "groups": 4}
  for own, asked, draws in (
    ("sample", None, True),
    ("mode", None, False),
    ("mode", "sample", True),
  ):
    prior.codec = codecs.Autoencoder(draw=own, **sizes)
    with contextlib.nullcontext() if draws else pytest.raises(errors.UserError, match="--seed=5"):
      pipes.check_seed(prior, 5, asked)


def test_arrays_of_all_kinds_are_the_pictures_that_they_hold(pipe):
  size = (8, 8)
  whole = pipes.frame(picture(), size)
  grey = picture()[..., 0]
  np.testing.assert_array_equal(pipes.frame(jnp.asarray(picture()), size), whole)
  half = pipes.frame(jnp.asarray(picture() / 255, jnp.bfloat16), size)
  assert np.abs(half.astype(int) - whole).max() <= 1
  for x in (grey, grey[..., None], PIL.Image.fromarray(grey)):
    np.testing.assert_array_equal(
      pipes.frame(x, size), pipes.frame(np.stack([grey] * 3, axis=-1), size)
    )
  thin = picture()[:1]
  for x in (np.concatenate([thin, np.full_like(thin[..., :1], 255)], axis=-1), thin[..., :1]):
    like = thin if x.shape[2] == 4 else np.repeat(x, 3, axis=-1)
    np.testing.assert_array_equal(pipes.frame(x, size), pipes.frame(like, size))
  clear = np.concatenate([picture(), np.zeros_like(picture()[..., :1])], axis=-1)
  assert pipes.frame(clear, size).min() == 255  # alpha is over white


def test_words_that_the_network_cannot_have_learnt_are_told(caplog):
  config = {"data": {"name": "synthetic"}}
  told = functools.partial(pipes.tell_words, config, tokenizers.Bytes())
  told(["a small red circle moves quickly to the left."])
  assert not caplog.text
  told(["a small red ball goes left", ""])
  assert "and none of: ball, goes." in caplog.text and "There is no prompt" in caplog.text


def test_a_model_in_the_box_is_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert "16 frames of 64x64" in repr(fbjax.load("zoo/shapes"))
  with pytest.raises(errors.UserError, match="there is no folder zoo/nothing"):
    fbjax.load("zoo/nothing")


def test_nothing_trained_is_nothing_to_load(tmp_path):
  with pytest.raises(errors.UserError, match="nothing was trained there"):
    fbjax.load(tmp_path)
