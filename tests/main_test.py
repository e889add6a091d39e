"""What a user meets at the command line, mistakes above all."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import toy
from fbjax import build, errors, main
from settings import ROOT

CONFIG = "configs/quickstart.py"

# Command line -> the sentence it ends with. {tmp} is an empty folder.
MISTAKES = {
  (): "give both --config=configs/<experiment>.py and --workdir=<folder>",
  ("--config=configs/quickstart.py",): "give both --config",
  ("--config.train.steps=3", "--workdir={tmp}/x"): "changes a config, but --config names none",
  (
    "--config=configs/nothing.py",
    "--workdir={tmp}/x",
  ): "there is no config configs/nothing.py; name a file, or one of folder, quickstart",
  (f"--config={CONFIG}:fast", "--workdir={tmp}/x"): "'fast'; expected nothing or smoke",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train.step=3"): (
    "config.train has no key 'step'; it takes"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train.steps=many"): "many",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.step=3"): (
    "config.sampling has no key 'step'; it takes sampler, grid, steps"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.optim.betas=3"): (
    "config.optim has no key 'betas'"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.optimizer.lr=3"): (
    "config has no group 'optimizer'"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.speed=3"): "config has no key 'speed'",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.steps=0"): (
    "config.sampling.steps is 0; expected a whole number from 1 to 10000"
  ),
  ("--config=configs/ucf101_bridge.py:smoke", "--workdir={tmp}/x", "--config.prior_run=runs/x"): (
    "config.prior_run names a neural prior, but this config puts none in front"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.trainable.whole=()"): (
    "config.trainable names nothing"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.trainable.rank=4"): (
    "config.trainable.rank and .scale are of low-rank additions"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.rescale=0.7"): (
    "config.sampling.rescale is 0.7, how far what guidance did is pulled back, and guidance is 1"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.optim.lr=[1]"): (
    "config.optim.lr is (1,); expected a number"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.mesh.data=(1,1)"): (
    "config.mesh.data is (1, 1); expected a whole number"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.grid.first=abc"): (
    "config.sampling.grid.first is 'abc'; expected a number"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system.latte=7"): "is a group",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.=3"): "--config.=3: a key is missing",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.tokenizer.words=3"): (
    "config.tokenizer.words is 3; expected a list of strings"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.grid.name=karras"): (
    "That is of the name 'karras': for another one set the whole group, the name with its keys, as "
    "--config.sampling.grid={'name': ..., ...}"
  ),
  ("--config=configs/webvid_saf.py:smoke", "--workdir={tmp}/x", "--config.data.path=/nowhere"): (
    "buckets. That is of the name 'synthetic': for another one set the whole group"
  ),
  ("--config=configs/webvid_saf.py:smoke", "--workdir={tmp}/x", "--config.port.ignore=x.*"): (
    "--config.port.ignore=x.*: config.port is for --mode=port alone; this is --mode=train"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.loader.workers=-1"): (
    "config.loader.workers is -1; expected a whole number from 0 to 1024"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.loader.workers=100000"): (
    "config.loader.workers is 100000; expected a whole number from 0 to 1024"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.loader.threads=0"): (
    "config.loader.threads is 0; expected a whole number from 1 to 1024"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.loader.prefetch=0"): (
    "config.loader.prefetch is 0; expected a whole number from 1 to 1024"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.loader.tries=0"): (
    "config.loader.tries is 0; expected a whole number from 1 to 1024"
  ),
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.sampling.grid={{'name':'uniform','last':0.0}}",
  ): (
    "config.sampling.grid goes from 0.999 to 0; a bridge is sampled at times above 0 and below 1"
  ),
  ("--config=configs/webvid_saf.py:smoke", "--workdir={tmp}/x", "--config.start.unet.new=zzz"): (
    "config.start.unet.new has 'zzz', which no weight of this network is called"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.data=x"): (
    "--config.data=x: config.data is a group; set one of its keys: backgrounds"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train.steps=1e3"): (
    "train.steps is 1000.0; expected a whole number"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train.batch_size=(1,2)"): "(1, 2)",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system.text.vocab=10"): (
    "config.system.text.vocab is 10, but the tokenizer's is"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system.text.length=8"): (
    "config.system.text.length is 8, but the tokenizer's is 16"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.grid.shift=-3.0"): (
    "config.sampling.grid: shift is -3.0; expected a number above 0"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.diffusion.rule=published"): (
    "but config.diffusion.name is 'none'"
  ),
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.optim.clip=0.0",
    "--config.optim.clip_from=9",
  ): ("optim.clip_from=9 is when clipping begins, but config.optim.clip is 0"),
  (
    "--config=configs/ucf101_diffusion.py:smoke",
    "--workdir={tmp}/x",
    "--config.sampling.sampler={{'name':'ddbm'}}",
  ): "'ddbm', which samples bridges; this config is a diffusion",
  (
    "--config=configs/ucf101_prior.py:smoke",
    "--workdir={tmp}/x",
    "--config.objective.predict=noise",
  ): ("config.objective.predict is 'noise', but a neural prior makes its video in one evaluation"),
  (
    "--config=configs/ucf101_prior.py:smoke",
    "--workdir={tmp}/x",
    "--config.sampling.steps=8",
  ): ("config.sampling.steps is 8, but a neural prior makes its video in one evaluation"),
  (
    "--config=configs/webvid_saf.py:prior+smoke",
    "--workdir={tmp}/x",
    "--config.bridge.beta_max=9.0",
  ): (
    "config.bridge.beta_max is 9.0, but a neural prior makes its video in one evaluation, told neither "
    "state nor time: set it to 50.0"
  ),
  (
    "--config=configs/ucf101_bridge_prior.py:smoke",
    "--workdir={tmp}/x",
    "--config.prior={{'latte':{{'width':16}}}}",
  ): ("config.system.latte lacks 'size', 'depth', 'heads'"),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system.latte.c_in=12"): (
    "config.system.latte sets 'c_in', which follows from other groups"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system.latte.timed=False"): (
    "config.system.latte has no key 'timed'; it takes size"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system.text.skip=7"): (
    "config.system.text: the text network's skip is 7, but it has only"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train.batch_size=True"): (
    "config.train.batch_size is True; expected a whole number"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train.keep=None"): (
    "config.train.keep is None; expected a whole number"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.data.size=64x64"): (
    "config.data.size is '64x64'; expected a whole number"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train.accumulate=3"): (
    "must be a multiple of config.train.accumulate=3"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.trainable.lora=.*"): (
    "config.trainable.lora names only kernels that config.trainable.whole trains"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.start.unet.new=.*"): (
    "config.start has 'unet', which is no network of this system"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.objective={{'name':'bridge'}}"): (
    "config.objective lacks 'predict'"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system={{'name':'latte'}}"): (
    "config.system lacks 'codec', 'latte'"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system.codec=pixels"): (
    "config.system.codec is a group"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train={{}}"): (
    "config.train lacks 'steps', 'batch_size'"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.weights=['a']"): (
    "config.weights is ('a',); expected a folder"
  ),
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.sampling.grid={{'name':'karras','rho':0}}",
  ): ("config.sampling.grid: rho is 0; expected a number above 0"),
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.sampling.grid={{'name':'trailing_indices'}}",
  ): ("which are steps of a diffusion; this config is a bridge"),
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.sampling.sampler={{'name':'ddim','eta':-5.0}}",
  ): ("config.sampling.sampler: eta is -5.0; expected a number from 0 to 1"),
  (
    "--config=configs/webvid_saf.py:from_prior+smoke",
    "--workdir={tmp}/x",
    "--config.prior.codec=pixels",
  ): ("config.prior sets 'codec', in which a neural prior is as config.system"),
  (
    "--config=configs/webvid_saf.py:from_prior+smoke",
    "--workdir={tmp}/x",
    "--config.prior.image=3",
  ): (
    "the neural prior that config.prior makes of config.system: config.system.image is 3; expected"
  ),
  (
    "--config=configs/webvid_saf.py:smoke",
    "--workdir={tmp}/x",
    "--config.system.unet.attention_levels=[7]",
  ): ("config.system.unet: attention_levels names level 7, and mult has"),
  ("--config=configs/webvid_saf.py:smoke", "--workdir={tmp}/x", "--config.system.image.patch=13"): (
    "config.system.image: an image of size 28 does not divide into patches of 13"
  ),
  ("--config=configs/webvid_saf.py:smoke", "--workdir={tmp}/x", "--config.bridge.beta_min=99.0"): (
    "config.bridge.beta_min is 99.0, above beta_max"
  ),
  ("--config=configs/common.py", "--workdir={tmp}/x"): "must define get_config(arg)",
  (f"--config={CONFIG}", "--workdir=gs://x/y"): "pip install gcsfs",
  (f"--config={CONFIG}", "--workdir=http://x/y"): "an address of a kind that is not",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.seed=-1"): "config.seed is -1; expected",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.optim.lr=-1"): "optim.lr is -1",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.optim.lr=nan"): "config.optim.lr is nan",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.optim.warmup=-3"): "optim.warmup is -3",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.train.ema_decay=2.0"): (
    "train.ema_decay is 2.0; expected a number from 0 up, below 1"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.stride=-4"): (
    "config.sampling.stride is -4"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.draw=sample"): (
    "config.sampling.draw is 'sample', but the codec 'pixels' has no posterior"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.sampling.sampler.start=foo"): (
    "config.sampling.sampler.start is 'foo'; expected one of noise, published"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.data.motions=fly"): (
    "data.motions has no 'fly'; there are right"
  ),
  (
    "--config=configs/webvid_saf.py:smoke",
    "--workdir={tmp}/x",
    "--config.start.unet={{'new':'('}}",
  ): ("config.start.unet.new has '(', which is no regular expression"),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.trainable.whole=('(',)"): (
    "config.trainable.whole has '(', which is no regular expression"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.objective.weight_like=foo"): (
    "config.objective.weight_like is 'foo'; expected one of"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.objective.drop_image=0.5"): (
    "objective.drop_image=0.5 drops a condition that this system has not"
  ),
  ("--config=configs/webvid_saf.py:smoke", "--workdir={tmp}/x", "--config.system.unet.width=0"): (
    "config.system.unet.width is 0; expected a whole number from 1 up"
  ),
  (
    "--config=configs/webvid_saf.py:smoke",
    "--workdir={tmp}/x",
    "--config.system.unet.head_dim=-8",
  ): ("config.system.unet.head_dim is -8"),
  ("--config=configs/webvid_saf.py:smoke", "--workdir={tmp}/x", "--config.system.unet.mult=()"): (
    "config.system.unet.mult is (); expected a list of whole numbers from 1 up"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.system.codec.patch=0"): (
    "config.system.codec.patch is 0"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.bridge.variance=-1.0"): (
    "config.bridge.variance is -1.0"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.data.size=100000"): "megapixels",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.precision=exact"): (
    "config.precision is 'exact'; expected one of default, high, highest"
  ),
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--steps=4"): "--steps is a flag of --mode=sample",
  ("--mode=sample", "--workdir={tmp}/x", "--steps=0"): "steps",
  ("--mode=sample", "--workdir={tmp}/x", "--chunks=0"): "chunks",
  ("--mode=sample", "--workdir={tmp}/x", "--fps=-1"): "fps",
  ("--mode=sample", "--workdir={tmp}/x", "--size=17"): "--size=17 is not height x width",
  ("--mode=sample",): "--mode=sample needs --workdir",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--mode=dream"): "dream",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "train"): "'train' is not a flag",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.bridge.name=max"): (
    "config.bridge.name is 'max'; expected one of"
  ),
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.sampling.sampler.name=ddpm",
  ): "config.sampling.sampler.name is 'ddpm', whose noise is a diffusion's",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.trainable.whole={{'a':1}}",
  ): "by default, and no group",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.data.motions={{'left':2}}",
  ): "config.data.motions is",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.bridge.steps=99999999999999999999",
  ): "config.bridge.steps is 99999999999999999999; expected a whole number from 2 to 1000000",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.optim.warmup=99999999999999999999",
  ): "config.optim.warmup is 99999999999999999999",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.train.batch_size=99999999999999999999",
  ): "expected a whole number from 1 to 65536",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.train.keep=99999999999999999999",
  ): "config.train.keep is 99999999999999999999",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.system.latte.mult=99999999999999999999",
  ): "config.system.latte.mult is 99999999999999999999",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--config.system.latte.width=1000000",
  ): "config.system.latte makes a network of",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--config.tokenizer.length=99999999999"): (
    "config.tokenizer.length is 99999999999; expected a whole number from 2 to 65536"
  ),
  ("--config=configs/ucf101_prior.py:smoke", "--workdir={tmp}/x", "--config.prior.use=prior"): (
    "config.system.name is 'latte_prior', a neural prior itself"
  ),
  (f"--config={CONFIG}", "--workdir=/dev/null/x"): "cannot write to workdir /dev/null/x",
  ("--config=configs/folder.py", "--workdir={tmp}/x", "--config.data.path=/no/where"): "/no/where",
  (f"--config={CONFIG}", "--workdir={tmp}/x", "--mode=sample"): "--image=<image or folder>",
  (
    f"--config={CONFIG}",
    "--workdir={tmp}/x",
    "--mode=sample",
    "--image=a.png",
    "--out=a.mp4",
  ): "nothing was trained there",
}

# One process makes all the mistakes: importing everything costs seconds.
DRIVER = """
import contextlib, io, json, sys
from absl import flags
from fbjax import main
for args in json.loads(sys.argv[1]):
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  sys.argv = ["main", *args]
  try:
    main.cli()
    end = "no error"
  except SystemExit as error:
    end = error.code
  except BaseException as error:
    end = f"a traceback: {error!r}"
  print(json.dumps(end))
"""


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
  tmp = tmp_path_factory.mktemp("mistakes")
  args = [[arg.format(tmp=tmp) for arg in args] for args in MISTAKES]
  done = subprocess.run(
    [sys.executable, "-c", DRIVER, json.dumps(args)], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert not (tmp / "x").exists()
  return dict(zip(MISTAKES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("args", MISTAKES, ids=lambda args: " ".join(args[1:])[-50:] or "nothing")
def test_a_mistake_ends_with_one_sentence(args, endings):
  end = endings[args]
  assert isinstance(end, str) and end.startswith("error: ")
  assert MISTAKES[args] in end and "\n" not in end


@pytest.mark.parametrize(
  ("group", "value", "sentence"),
  [
    ("data", {"name": "synthetic", "colour": 3}, "config.data has no key 'colour'; it takes"),
    ("data", {"frames": 3}, "config.data lacks 'name'"),
    (
      "objective",
      {"name": "bridge", "predict": "epsilon"},
      "config.objective.predict is 'epsilon'",
    ),
    (
      "objective",
      {"name": "bridge", "predict": "psi", "drop": 1},
      "config.objective has no key 'drop'",
    ),
    ("tokenizer", {"name": "words"}, "expected one of bytes"),
    ("optim", {"name": "lion"}, "optim.name is 'lion'"),
    ("mesh", {"data": 3, "fsdp": 1}, "does not make 8 devices"),
  ],
)
def test_a_wrong_key_or_name_is_told_in_the_configs_words(group, value, sentence):
  config = toy.config() | {group: value}
  with pytest.raises(ValueError) as error:
    build.make_mesh(config)
    tokenizer = build.make_tokenizer(config)
    build.make_source(config, "train")
    system = build.make_system(config, tokenizer)
    build.make_loss(config, system, build.make_formulation(config))
    build.make_optimizer(config, system)
  assert sentence in str(error.value)


@pytest.mark.parametrize("group", [*build.TABLES, *build.GROUPS])
def test_the_keys_that_a_group_is_said_to_take_can_be_set(group):
  config = toy.config()
  with pytest.raises(errors.UserError, match=f"config.{group} has no key 'hats'") as error:
    build.check(config | {group: config[group] | {"hats": 1}})
  takes = str(error.value).split("it takes ")[1].split(". That is of")[0].split(", ")
  assert set(config[group]) <= {"name", "dtype", "predict", *takes}
  for key in takes:
    others = {name: x for name, x in config[group].items() if name != key}
    try:
      build.check(config | {group: others | {key: config[group].get(key)}})
    except (errors.UserError, TypeError) as told:  # None is no value of it, but it is a key
      assert "has no key" not in str(told)


FULL = """
import sys
import jax
from fbjax import main, processes
from fbjax.modes import {mode}
processes.join = lambda: None
def full(*args, **options):
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
{mode}.{mode} = full
sys.argv = ["main", *sys.argv[1:]]
main.cli()
"""


@pytest.mark.parametrize(
  ("mode", "remedy"),
  [
    ("train", "lower config.train.batch_size or config.sampling.batch_size"),
    ("sample", "lower --frames, --size"),
  ],
)
def test_out_of_memory_is_told_with_the_keys_that_help_there(mode, remedy, tmp_path):
  args = ["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}/x", f"--mode={mode}"]
  program = [sys.executable, "-c", FULL.format(mode=mode), *args]
  done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  last = done.stderr.splitlines()[-1]
  assert last.startswith("error: the device is out of memory") and remedy in last


BUG = """
import sys
from fbjax import main, processes
from fbjax.modes import train
processes.join = lambda: None
def broken(config, workdir, **options):
  return {}["prior"]
train.train = broken
sys.argv = ["main", "--config=configs/quickstart.py:smoke", "--workdir=" + sys.argv[1]]
main.cli()
"""


def test_a_bug_keeps_its_traceback_and_says_where_to_report_it(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", BUG, str(tmp_path / "x")],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert "KeyError: 'prior'" in done.stderr and "Traceback" in done.stderr
  assert "Please report it" in done.stderr and "error: 'prior'" not in done.stderr


@pytest.mark.parametrize(
  ("argument", "group", "key", "value"),
  [
    ("--config.optim.b1=0.7", "optim", "b1", 0.7),  # a default that the config left out
    ("--config.trainable.lora=('attn',)", "trainable", "lora", ("attn",)),
    (
      "--config.sampling.image_guidance=2.0",
      "sampling",
      "image_guidance",
      2.0,
    ),  # None in the config
    ("--config.train.steps=7", "train", "steps", 7),
    ("--config.data.path=None", "data", "path", None),
    ("--config.start.unet={'new':('x',)}", "start", "unet", {"new": ("x",)}),
    ("--config.start.unet.new=('x',)", "start", "unet", {"new": ("x",)}),
    ("--config.data.path=a b", "data", "path", "a b"),
    ("--config.data.size=(32,48)", "data", "size", (32, 48)),  # two numbers in place of one
    ("--config.data.strides=(2,3)", "data", "strides", (2, 3)),
  ],
)
def test_every_key_of_a_group_can_be_set(argument, group, key, value):
  config, _ = main.parse_flags(["main", "--config=configs/folder.py", "--workdir=x", argument])
  assert config[group][key] == value


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    (["report", "runs/a"], "'report' is not a flag; .* and a mode as --mode=report"),
    (["--mode=sample", "--workdir=x", "--seed=1a"], "--seed=1a: '1a' is no whole number"),
    (["--mode=sample", "--workdir=x", "--guidance=two"], "--guidance=two: 'two' is no number"),
  ],
)
def test_what_is_no_flag_or_no_value_of_it_is_told_in_plain_words(args, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    main.parse_flags(["main", *args])


@pytest.mark.parametrize(("precision", "told"), [("highest", "HIGHEST"), ("default", "DEFAULT")])
def test_float32_products_are_as_precise_as_the_config_says(precision, told):
  """As the TPU is told: by itself it would multiply in bfloat16."""
  try:
    build.set_precision({"precision": precision})
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).as_text()
  finally:
    jax.config.update("jax_default_matmul_precision", None)
  assert (f"precision = [{told}, {told}]" in text) or (told == "DEFAULT" and "precision" in text)
