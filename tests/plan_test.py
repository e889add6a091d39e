"""What each device does of a step or a sampler, read off the compiled program: its share, no more."""

import functools

import jax
import pytest
import recipes_test

from fbjax import compiled, plan, sharding, trees

DEVICES = 4
CONFIGS = ("webvid_saf", "ucf101_bridge", "webvid_saf_cogvideox")
LOWER = {"step": plan.lower_step, "sampler": plan.lower_sampler}


def recipe(name):
  config = recipes_test.recipe(name, "")
  config["train"].update(batch_size=2 * DEVICES, accumulate=1)
  config["sampling"].update(batch_size=DEVICES - 1)  # to be filled up
  return config


@functools.cache
def compile_for(program: str, name: str, data: int, fsdp: int) -> jax.stages.Compiled:
  mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
  return LOWER[program](recipe(name), mesh).compile()


def weights(name) -> dict[str, int]:
  """Numbers in each leaf of each block, or outside of blocks, of the networks of a recipe."""
  from fbjax import build

  config = recipe(name)
  system = build.make_system(config, build.make_tokenizer(config))
  shapes = jax.eval_shape(system.init, jax.random.key(0)), plan.frozen_shapes(config, system)
  return {path: x.size for tree in shapes for path, x in trees.flatten(tree).items()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("data", "fsdp"), [(1, DEVICES), (2, 2)])
def test_a_device_does_its_share_of_a_step(name, data, fsdp):
  whole = compiled.flops(compile_for("step", name, 1, 1))
  split = compile_for("step", name, data, fsdp)
  assert compiled.flops(split) * DEVICES < 1.1 * whole
  for found in compiled.collectives(split):
    print(found)
