"""From images to clips: what each argument changes, and what is refused."""

import shutil

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import toy
from configs import ucf101_bridge_prior, ucf101_prior
from fbjax import build, errors, loading, pipe, sampling, sharding
from fbjax import workdir as workdir_lib
from fbjax.modes import export, pack, sample, train


def frames(path) -> int:
  with av.open(str(path)) as container:
    return sum(1 for _ in container.decode(video=0))


def pixels(path) -> np.ndarray:
  with av.open(str(path)) as container:
    return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(int)


@pytest.fixture(scope="module")
def wild(tmp_path_factory, one_device):
  """A workdir whose network has large random weights: its clips show whatever it is told."""
  return toy.wild(str(tmp_path_factory.mktemp("wild")))


def animate(workdir, given, out, **changes):
  arguments = dict(image=str(given), prompt="up", seed=0, guidance=2.0) | changes
  sample.sample(None, workdir, out=str(out), **arguments)
  return pixels(out)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
  path = tmp_path_factory.mktemp("image") / "other.png"
  noise = np.random.default_rng(9).integers(0, 256, (24, 40, 3), np.uint8)
  Image.fromarray(noise).save(path)
  return path


@pytest.mark.parametrize(
  "change",
  [
    {"seed": 1},
    {"prompt": "a blue square spins"},
    {"stride": 5},
    {"guidance": 5.0},
    {"negative_prompt": "a blue square spins"},
    {"steps": 5},
    {"image": "other"},
  ],
  ids=lambda change: next(iter(change)),
)
def test_every_flag_changes_the_clip_and_the_same_flags_give_the_same(
  wild, image, other, tmp_path, change
):
  if "image" in change:
    change = {"image": str(other)}
  first = animate(wild, image, tmp_path / "a.mp4")
  changed = animate(wild, image, tmp_path / "b.mp4", **change)
  assert np.abs(first - changed).mean() > 0.5
  np.testing.assert_array_equal(first, animate(wild, image, tmp_path / "c.mp4"))


def test_a_clip_of_a_folder_is_the_same_whatever_is_already_there(wild, image, other, tmp_path):
  folder = tmp_path / "prompts"
  folder.mkdir()
  for i, name in enumerate("abc"):
    Image.open(other if i % 2 else image).save(folder / f"{name}.png")
  (folder / "prompts.txt").write_text("up\ndown\nleft\n")
  sample.sample(None, wild, image=str(folder), out=str(tmp_path / "all"))
  (tmp_path / "rest").mkdir()
  for name in "ab":
    (tmp_path / "rest" / f"{name}.mp4").write_bytes(b"made before")
  (written,) = sample.sample(None, wild, image=str(folder), out=str(tmp_path / "rest"))
  one, two = (pixels(tmp_path / where / "c.mp4") for where in ("all", "rest"))
  assert written.endswith("c.mp4") and np.abs(one - two).max() <= 4  # rounding, and the codec


def test_a_gif_is_a_gif(wild, image, tmp_path):
  clip = animate(wild, image, tmp_path / "cat.gif")
  assert (tmp_path / "cat.gif").read_bytes().startswith(b"GIF89a") and len(clip) == 3


@pytest.mark.parametrize("out", ["{tmp}", "{tmp}/new/", "{tmp}/step1.5"])
def test_a_folder_as_output_gets_a_clip_by_the_images_name(wild, image, tmp_path, out):
  out = out.format(tmp=tmp_path)
  (written,) = sample.sample(None, wild, image=str(image), out=out)
  assert written == f"{out.rstrip('/')}/cat.mp4" and frames(written) == 3


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ({"out": "{tmp}/x.avi"}, "clips are written as .mp4 or .gif, or into a folder"),
    ({"out": "/proc/x/cat.mp4"}, "cannot write to /proc/x"),
    ({"label": 3}, "is not told a label; it takes --prompt and --stride"),
    ({"size": (17, 17)}, "17x17 pixels do not fit .* multiple of 2, such as 16x16 or 18x18"),
    ({"negative_prompt": "up"}, "guidance is 1: give --guidance too"),
    ({"guidance": 3.0}, "and it is told nothing: give --prompt or --label"),
    ({"guidance": 1e30}, "config.sampling.guidance is 1e[+]30; expected a number"),
    ({"sampler": {"name": "foo"}}, "config.sampling.sampler.name is 'foo'"),
    ({"chunks": 0}, "--chunks is 0; expected a whole number from 1 up"),
    ({"chunks": 10**7}, "megapixels; a clip has at most"),
    ({"frames": 99_999_999}, "megapixels; a clip has at most"),
    ({"size": (100_000, 100_000)}, "megapixels; a clip has at most"),
    ({"fps": -1}, "config.sampling.fps is -1; expected a whole number from 1 to 1000"),
    ({"fps": 10**8}, "config.sampling.fps is 100000000; expected a whole number from 1 to 1000"),
    ({"stride": 3_000_000_000}, "config.sampling.stride is 3000000000; expected"),
    ({"guidance": float("nan")}, "config.sampling.guidance is nan; expected a number"),
    ({"steps": 0}, "config.sampling.steps is 0; expected a whole number from 1 to 10000"),
    ({"steps": 99_999_999}, "config.sampling.steps is 99999999; expected a whole number"),
    ({"steps": 1001}, "config.sampling.steps is 1001, but the network knows 1000 times"),
    ({"image": "http://x/y.png"}, "--image=http://x/y.png: images are not fetched"),
    ({"out": "{tmp}/o/.mp4"}, "--out=.*/o/.mp4: a clip needs a name before .mp4"),
    ({"out": "/dev/null"}, "cannot write to /dev/null: it is no folder"),
    ({"out": "/proc/x.mp4"}, "cannot write to /proc"),
    ({"out": "gs://x/y.gif"}, "gs://x.* needs another package: pip install gcsfs"),
    ({"image": "{tmp}/none.png"}, "none.png"),
  ],
  ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_sampled(
  wild, image, tmp_path, monkeypatch, arguments, sentence
):
  monkeypatch.setattr(sampling, "generate", lambda *args, **kwargs: pytest.fail("sampled"))
  tmp = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in arguments.items()}
  with pytest.raises(errors.UserError, match=sentence):
    sample.sample(None, wild, **({"image": str(image), "out": str(tmp_path / "x.mp4")} | tmp))


def test_without_a_workdir_only_weights_that_are_whole_are_sampled(image, tmp_path):
  with pytest.raises(
    errors.UserError, match="lacks .* weights to sample with.* Give the --workdir"
  ):
    sample.sample(toy.config(), None, image=str(image), out=str(tmp_path / "x.mp4"))
  with pytest.raises(errors.UserError, match="give --model=<packed model>, --workdir="):
    sample.sample(None, None, image=str(image), out=str(tmp_path / "x.mp4"))


def test_an_image_becomes_a_clip(trained, image, tmp_path):
  out = tmp_path / "new" / "cat.mp4"
  written = sample.sample(toy.config(), str(trained), image=str(image), prompt="up", out=str(out))
  assert written == [str(out)] and frames(out) == 3


def test_a_folder_for_a_network_that_is_told_no_text_needs_no_prompts(image, tmp_path):
  folder = tmp_path / "images"
  folder.mkdir()
  Image.open(image).save(folder / "a.png")
  (request,) = sample.plan(str(folder), None, str(tmp_path / "out"), told=False)
  assert (request.text, request.output) == ("", str(tmp_path / "out/a.mp4"))
  with pytest.raises(errors.UserError, match="no prompt file"):
    sample.plan(str(folder), None, str(tmp_path / "out"))
  (folder / "prompts.txt").write_text("up\n")
  with pytest.raises(
    errors.UserError, match="prompts.txt is a prompt file, but this system is not"
  ):
    sample.plan(str(folder), None, str(tmp_path / "out"), told=False)


def test_a_folder_becomes_clips_and_is_not_done_twice(trained, image, tmp_path):
  folder, out = tmp_path / "prompts", tmp_path / "out"
  folder.mkdir()
  for name in ("a.png", "b.jpeg"):
    Image.open(image).save(folder / name)
  (folder / "prompts.txt").write_text("one\n\ntwo\n")
  arguments = dict(image=str(folder), out=str(out))
  sample.sample(toy.config(), str(trained), **arguments)
  assert sorted(p.name for p in out.iterdir()) == ["a.mp4", "b.mp4"]
  with pytest.raises(ValueError, match="every clip is already in .*add --overwrite"):
    sample.sample(toy.config(), str(trained), **arguments)
  (out / "a.mp4").write_text("")
  sample.sample(toy.config(), str(trained), **arguments, overwrite=True)
  assert frames(out / "a.mp4") == 3
  with pytest.raises(errors.UserError, match="a.mp4 is already there: add --overwrite"):
    sample.sample(None, str(trained), image=str(folder / "a.png"), prompt="one", out=str(out))


def test_clips_of_a_folder_are_written_as_they_are_made_but_for_those_that_are_not_finite(
  trained, image, tmp_path, monkeypatch
):
  folder, out = tmp_path / "images", tmp_path / "out"
  folder.mkdir()
  names = ["a", "b", "c", "d", "e"]
  for name in names:
    shutil.copy(image, folder / f"{name}.png")
  (folder / "prompts.txt").write_text("\n".join(f"object {name}" for name in names))
  make, there = sampling.make_sample, []

  def breaking(*args, **options):
    program = make(*args, **options)

    def sample_batch(params, frozen, batch, keys):
      there.append(len(list(out.glob("*.mp4"))))
      video, finite = program(params, frozen, batch, keys)
      assert np.all(finite)
      return video, jnp.arange(len(finite)) != (1 if len(there) == 2 else -1)

    return sample_batch

  monkeypatch.setattr(sampling, "make_sample", breaking)
  with pytest.raises(errors.UserError, match=r"^no clip of .*/d.png: the numbers became infinite"):
    sample.sample(None, str(trained), image=str(folder), out=str(out))
  assert there == [0, 2, 3]  # two at a time
  assert sorted(path.stem for path in out.glob("*.mp4")) == ["a", "b", "c", "e"]


def test_numbers_that_become_infinite_make_no_clip(trained, image, tmp_path):
  pipes = pipe.Pipe(toy.config(), str(trained))
  params, frozen = pipes.weights
  pipes.weights = jax.tree.map(lambda x: x * np.nan, params), frozen
  with pytest.raises(errors.UserError, match="of 1 clips, 0: the numbers became infinite"):
    pipes(str(image), "up")


def test_a_clip_is_continued_from_its_last_frame(trained, image, tmp_path):
  out = tmp_path / "long.mp4"
  sample.sample(toy.config(), str(trained), image=str(image), out=str(out), chunks=3)
  assert frames(out) == 3 + 2 + 2


def test_clips_have_the_size_and_length_asked_for(trained, image, tmp_path):
  out = tmp_path / "wide.mp4"
  sample.sample(toy.config(), str(trained), image=str(image), out=str(out), size=(16, 24), frames=4)
  with av.open(str(out)) as container:
    shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
  assert shapes == [(16, 24, 3)] * 4


def test_a_last_frame_is_refused_where_nobody_was_trained_with_one(trained, image, tmp_path):
  arguments = dict(image=str(image), out=str(tmp_path / "x.mp4"))
  with pytest.raises(ValueError, match="trained with the first frame alone"):
    sample.sample(toy.config(), str(trained), last=str(image), **arguments)
  config = toy.config()
  config["system"]["given"] = "ends"
  for kind in (config, config | {"trainable": dict(whole=("new",), lora=("spatial.*/q/kernel",))}):
    system = build.make_system(kind, build.make_tokenizer(kind))
    with pytest.raises(ValueError, match="give --last=<image> too"):
      pipe.check_ends(system, False, 1)
    with pytest.raises(ValueError, match="cannot be continued"):
      pipe.check_ends(system, True, 2)


def test_guidance_needs_conditions_that_training_dropped(trained, image, tmp_path):
  arguments = dict(image=str(image), out=str(tmp_path / "x.mp4"))
  with pytest.raises(ValueError, match="has no image condition to guide by"):
    sample.sample(toy.config(), str(trained), image_guidance=2.0, **arguments)
  config = toy.config()
  config["objective"]["drop_text"] = 0.0
  system = build.make_system(config, build.make_tokenizer(config))
  form, mesh = build.make_formulation(config), build.make_mesh(config)
  with pytest.raises(ValueError, match="config.objective.drop_text is 0"):
    build.make_sample(config, system, form, mesh, build.sampling_options(config, guidance=2.0))


@pytest.fixture(scope="module")
def prior_run(tmp_path_factory, one_device):
  workdir = tmp_path_factory.mktemp("prior")
  train.train(ucf101_prior.get_config("smoke").to_dict(), str(workdir))
  return workdir


@pytest.mark.thorough
def test_a_bridge_starts_from_the_video_of_the_prior_that_another_run_has_trained(
  prior_run, image, tmp_path
):
  out = tmp_path / "coarse.mp4"
  sample.sample(
    ucf101_prior.get_config("smoke").to_dict(), str(prior_run), image=str(image), out=str(out)
  )
  assert frames(out) == 4  # what the prior makes, by itself
  for option in ({"steps": 3}, {"sampler": {"name": "heun"}}):
    with pytest.raises(errors.UserError, match="a neural prior makes its video in one evaluation"):
      sample.sample(None, str(prior_run), image=str(image), out=str(tmp_path / "n.mp4"), **option)
  config = ucf101_bridge_prior.get_config("smoke").to_dict() | {"prior_run": str(prior_run)}
  train.train(config, str(tmp_path / "bridge"))
  mesh = build.make_mesh(config)
  system = build.make_system(config, build.make_tokenizer(config))
  frozen = loading.starting_weights(config, system, mesh).frozen
  theirs = ucf101_prior.get_config("smoke").to_dict()
  prior = build.make_system(theirs, None)
  trained = loading.trained_weights(theirs, prior, mesh, str(prior_run))[0]["latte"]
  jax.tree.map(np.testing.assert_array_equal, frozen["prior_latte"], trained)
  sample.sample(config, str(tmp_path / "bridge"), image=str(image), out=str(tmp_path / "x.mp4"))
  assert frames(tmp_path / "x.mp4") == 4


@pytest.mark.thorough
def test_a_bridge_keeps_the_prior_that_it_began_with(prior_run, image, tmp_path):
  """The prior may learn on, or go; packed, the bridge needs neither run."""
  config = ucf101_bridge_prior.get_config("smoke").to_dict() | {"prior_run": str(prior_run)}
  mesh = build.make_mesh(config)
  system = build.make_system(config, build.make_tokenizer(config))
  trained = loading.starting_weights(config, system, mesh).frozen["prior_latte"]
  longer = ucf101_prior.get_config("smoke").to_dict()
  longer["train"]["steps"], longer["optim"]["lr"] = 3, 0.1
  learnt_on = tmp_path / "prior"
  shutil.copytree(prior_run, learnt_on)
  config["prior_run"] = str(learnt_on)
  bridge = str(tmp_path / "second")
  train.train(config, bridge)
  train.train(longer, str(learnt_on))
  learnt = loading.starting_weights(config, system, mesh).frozen["prior_latte"]
  same = jax.tree.map(np.array_equal, learnt, trained)
  assert not all(jax.tree.leaves(same))
  config["train"]["steps"] = 3
  config["prior_run"] += "/"
  train.train(config, bridge)
  kept = loading.starting_weights(config, system, mesh, bridge).frozen
  jax.tree.map(np.testing.assert_array_equal, kept["prior_latte"], trained)
  shutil.rmtree(learnt_on)
  sample.sample(None, bridge, image=str(image), out=str(tmp_path / "y.mp4"))

  pack.pack(None, bridge, str(tmp_path / "packed"))
  shutil.rmtree(bridge)
  sample.sample(
    None, None, model=str(tmp_path / "packed"), image=str(image), out=str(tmp_path / "z.mp4")
  )
  assert np.abs(pixels(tmp_path / "y.mp4") - pixels(tmp_path / "z.mp4")).mean() < 1


def test_a_run_that_trained_no_prior_is_no_prior(tmp_path):
  bridge = ucf101_bridge_prior.get_config("smoke").to_dict()
  with workdir_lib.claim(str(tmp_path), bridge, {}) as record:
    record(0)
  config = bridge | {"prior_run": str(tmp_path)}
  with pytest.raises(errors.UserError, match="trained 'latte' and no neural prior.*'latte_prior'"):
    loading.starting_weights(config, build.make_system(config, None), build.make_mesh(config))


def fail_when_networks_are_made(monkeypatch):
  for module in (build, build.systems):
    monkeypatch.setattr(module, "make_networks", lambda *args: pytest.fail("made"))


def test_a_workdir_without_a_checkpoint_is_told_before_anything_is_made(tmp_path, monkeypatch):
  with workdir_lib.claim(str(tmp_path / "run"), toy.config(), {}) as record:
    record(0)
  fail_when_networks_are_made(monkeypatch)
  for do in (
    lambda: sample.sample(None, str(tmp_path / "run"), image="a.png", out="a.mp4"),
    lambda: export.export(None, str(tmp_path / "run"), str(tmp_path / "x.ckpt")),
  ):
    with pytest.raises(errors.UserError, match="holds no checkpoint yet; train it first"):
      do()


def test_an_export_that_cannot_be_written_is_told_first(wild, monkeypatch, tmp_path):
  # A folder is for networks that are folders elsewhere: known before any weight is read.
  monkeypatch.setattr(loading, "merged_weights", lambda *args: pytest.fail("read"))
  with pytest.raises(errors.UserError, match="comes from one file: give --out a name in .ckpt"):
    export.export(None, wild, str(tmp_path / "folder"))
  assert not (tmp_path / "folder").exists()
  fail_when_networks_are_made(monkeypatch)
  for out, sentence in (
    ("/proc/x.ckpt", "cannot write to /proc"),
    ("gs://x/y.ckpt", "this machine"),
  ):
    with pytest.raises(errors.UserError, match=sentence):
      export.export(None, wild, out)


def test_a_prior_of_other_sizes_is_refused(prior_run):
  config = ucf101_bridge_prior.get_config("smoke").to_dict() | {"prior_run": str(prior_run)}
  config["prior"]["latte"] = dict(config["system"]["latte"], depth=4)
  with pytest.raises(ValueError, match="than config.prior asks for: latte.depth: 2 there, 4 here$"):
    loading.starting_weights(config, build.make_system(config, None), build.make_mesh(config))


@pytest.mark.parametrize("kind", ["tiny", "huge", "grey", "alpha", "CMYK", "palette"])
def test_any_image_that_a_person_may_have_becomes_a_frame(kind, tmp_path):
  rng = np.random.default_rng(0)
  shape = {"tiny": (1, 2), "huge": (3000, 4000)}.get(kind, (20, 30))
  image = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
  modes = {"grey": "L", "alpha": "RGBA", "CMYK": "CMYK", "palette": "P"}
  path = tmp_path / ("x.jpg" if kind == "CMYK" else "x.png")
  image.convert(modes.get(kind, "RGB")).save(path)
  frame = pipe.frame(path, (16, 24))
  assert frame.shape == (16, 24, 3) and frame.dtype == np.uint8


def test_sampling_with_another_config_names_the_keys(trained, image, tmp_path):
  config = toy.config()
  config["system"]["unet"]["width"] = 16
  with pytest.raises(ValueError, match="system.unet.width: 8 there, 16 now"):
    sample.sample(config, str(trained), image=str(image), out=str(tmp_path / "x.mp4"))


def test_an_unreadable_image_is_named(trained, tmp_path):
  (tmp_path / "broken.png").write_text("not an image")
  with pytest.raises(ValueError, match="broken.png"):
    sample.sample(
      toy.config(), str(trained), image=str(tmp_path / "broken.png"), out=str(tmp_path / "x.mp4")
    )


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_clip_is_the_same_in_any_batch(trained, guidance):
  config = toy.config()
  mesh = build.make_mesh(config)
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  form = build.make_formulation(config)
  options = build.sampling_options(config, guidance=guidance)
  program = build.make_sample(config, system, form, mesh, options)
  params, _ = loading.trained_weights(config, system, mesh, str(trained))
  rng = np.random.default_rng(0)
  inputs = {
    "image": rng.integers(0, 256, (5, 16, 16, 3), np.uint8),
    "tokens": tokenizer(["up", "down", "left", "right", "spin"]),
    "stride": np.ones(5, np.int32),
  }

  def made(seed, size):
    keys = sampling.clip_keys(seed, range(5))[None]
    found = sampling.generate(program, params, {}, inputs, keys=keys, batch_size=size)
    return np.stack(list(found)).astype(int)

  clips = [made(seed, size) for seed, size in [(0, 5), (0, 2), (1, 5)]]
  assert clips[0].shape == (5, 3, 16, 16, 3)
  assert np.abs(clips[0] - clips[1]).max() <= 1  # rounding to uint8
  assert np.abs(clips[0] - clips[2]).max() > 10
  assert len({clip.tobytes() for clip in clips[0]}) == 5


def test_a_clip_is_the_same_on_any_mesh(wild, image):
  config = workdir_lib.read_config(wild)
  form = build.make_formulation(config)
  tokenizer = build.make_tokenizer(config)
  system = build.make_system(config, tokenizer)
  inputs = {
    "image": np.repeat(pipe.frame(image, (16, 16))[None], 4, axis=0),
    "tokens": tokenizer(["up", "down", "left", "right"]),
    "stride": np.ones(4, np.int32),
    "label": np.zeros(4, np.int32),
  }
  clips = []
  for data, fsdp in ((1, 1), (4, 2)):
    mesh = sharding.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    program = build.make_sample(config, system, form, mesh)
    params, frozen = loading.trained_weights(config, system, mesh, wild)
    keys = sampling.clip_keys(0, range(4))[None]
    made = sampling.generate(program, params, frozen, inputs, keys=keys, batch_size=4)
    clips.append(np.stack(list(made)).astype(int))
  assert np.abs(clips[0] - clips[1]).max() <= 1
  assert np.abs(clips[0][0] - clips[0][1]).max() > 20
