"""What each device does of a step or a sampler, read off the compiled program: its share, no more."""

import functools
import math

import jax
import pytest
import recipes_test

from fbjax import build, compiled, flops, hardware, programs, roofline, sharding, trees

DEVICES = 4
CLIPS = 16  # of a device in a step: what flows between blocks is then larger than any weight
SLACK = 1.1
CONFIGS = ("webvid_saf", "ucf101_bridge", "webvid_saf_cogvideox")


def recipe(name, samples=DEVICES):
  config = recipes_test.recipe(name, "")
  config["train"].update(batch_size=CLIPS * DEVICES, accumulate=1)
  config["sampling"].update(batch_size=samples, steps=2, guidance=1.0)
  return config


@functools.cache
def compile_step(name: str, *sizes: int) -> jax.stages.Compiled:
  """For a mesh of these sizes of data, fsdp, context and tensor."""
  mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
  config = recipe(name)
  return programs.trace_step(config, programs.make_system(config), mesh).lower().compile()


def largest_weight(name) -> int:
  """Bytes of the largest leaf of any block."""
  config = recipe(name)
  system = programs.make_system(config)
  shapes = jax.eval_shape(system.init, jax.random.key(0)) | programs.frozen_shapes(config, system)
  return max(4 * x.size for x in trees.flatten(shapes).values())


@pytest.mark.parametrize(("name", "data", "fsdp"), [
  pytest.param("webvid_saf", 1, DEVICES, marks=pytest.mark.thorough),
  ("ucf101_bridge", 2, 2),
  ("webvid_saf_cogvideox", 1, DEVICES),
  pytest.param("webvid_saf", 2, 2, marks=pytest.mark.thorough),
  pytest.param("ucf101_bridge", 1, DEVICES, marks=pytest.mark.thorough),
  pytest.param("webvid_saf_cogvideox", 2, 2, marks=pytest.mark.thorough),
])  # fmt: skip
def test_a_device_does_its_share_of_a_step_and_sends_weights_alone(name, data, fsdp):
  whole, split = compile_step(name, 1), compile_step(name, data, fsdp)
  assert compiled.flops(split) * DEVICES < SLACK * compiled.flops(whole)
  sent, limit = compiled.collectives(split), largest_weight(name)
  gathered = [message for message in sent if message.kind == "all-gather"]
  assert gathered, "no weight is gathered, so none is split"
  # Sums of gradients are sent together; all else is a weight, or smaller.
  assert max(m.size for m in sent if m.kind not in ("all-reduce", "reduce-scatter")) <= limit
  config = recipe(name)
  frames, size = build.clip_size(config)
  assert limit < CLIPS * DEVICES * frames * size[0] * size[1] * 3 * 4


@pytest.mark.parametrize(("name", "sizes"), [
  ("ucf101_bridge", (1, 1, 2, 2)),
  ("webvid_saf_cogvideox", (1, 2, 1, 2)),
  pytest.param("webvid_saf_cogvideox", (1, 2, 2, 1), marks=pytest.mark.thorough),
  pytest.param("webvid_saf", (1, 2, 1, 2), marks=pytest.mark.thorough),
  pytest.param("webvid_saf", (1, 2, 2, 1), marks=pytest.mark.thorough),
])  # fmt: skip
def test_frames_heads_and_channels_are_shared_as_clips_are(name, sizes):
  """Of products: norms between them are not shared over `tensor`."""
  whole, split = (
    roofline.of(program, hardware.CHIPS["TPU v4"]).flops
    for program in (compile_step(name, 1), compile_step(name, *sizes))
  )
  assert split * DEVICES < SLACK * whole


def test_what_a_device_holds_between_steps_is_known_without_compiling():
  config = recipe("webvid_saf_cogvideox")
  mesh = sharding.make_mesh(1, DEVICES, devices=jax.devices()[:DEVICES])
  held = programs.held_bytes(config, programs.make_system(config), mesh, training=True)
  frames, (height, width) = build.clip_size(config)
  clips = CLIPS * frames * height * width * 3
  arguments = compiled.memory(compile_step("webvid_saf_cogvideox", 1, DEVICES)).arguments
  assert held < arguments < 1.01 * (held + clips)


@pytest.mark.parametrize("name", CONFIGS[1:])
def test_a_device_samples_its_share_of_clips_also_where_these_must_be_filled_up(name):
  def compile_sampler(samples: int, devices: int) -> jax.stages.Compiled:
    config = recipe(name, samples)
    mesh = sharding.make_mesh(1, devices, devices=jax.devices()[:devices])
    return programs.trace_sampler(config, programs.make_system(config), mesh).lower().compile()

  whole, split = compile_sampler(DEVICES, 1), compile_sampler(DEVICES - 1, DEVICES)
  assert compiled.flops(split) * DEVICES < SLACK * compiled.flops(whole)


@pytest.mark.parametrize("name", [
  pytest.param("webvid_saf", marks=pytest.mark.thorough), "webvid_saf_cogvideox",
])  # fmt: skip
def test_a_training_from_a_cache_is_planned_without_its_encoders(name):
  config = recipe(name)
  mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  system = programs.make_system(config)
  online = programs.trace_step(config, system, mesh)
  config["cache"]["path"] = "not/made/yet"
  fed = programs.trace_step(config, system, mesh)
  names = lambda traced: set(traced.in_avals[0][1])  # noqa: E731
  assert names(online) - names(fed) == set(system.encoders) and system.encoders
  assert flops.of(fed.jaxpr).total < flops.of(online.jaxpr).total
