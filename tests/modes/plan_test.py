import importlib.util
import os

import jax
import pytest

import toy
from fbjax import build, errors, flops, hardware, programs, sharding
from fbjax.modes import plan, plan_report


@pytest.fixture(scope="module")
def config():
  return toy.config()


def test_a_plan_for_this_machine_says_what_the_step_needs(config, monkeypatch):
  config["mesh"] = {"data": 1, "fsdp": 8}
  real = lambda config, devices: sharding.make_mesh(devices=devices, **config["mesh"])  # noqa: E731
  monkeypatch.setattr(build, "make_mesh", real)
  chip = hardware.Chip(1e12, 1e9, 2**30, 1e9)
  monkeypatch.setattr(hardware, "chip", lambda device: chip)
  row = plan.measure(config, None, "train step")
  assert row["mesh"] == {"data": 1, "fsdp": 8} and row["devices"] == 8
  assert row["fits"] and row["bytes"]["total"] < chip.memory
  assert row["parameters"]["trained"] > 0
  # Its numbers are float32 and its products asked for at the highest precision.
  assert row["least_seconds"] == pytest.approx(6 * row["model_flops"] / 8 / chip.flops)
  assert row["sent"]["all-gather"]["count"] > 0
  said = plan_report.report(row, config, price=3.6e18)
  assert "fits" in said and "8 x cpu, mesh data 1 x fsdp 8" in said
  # Steps x seconds x devices x price / 3600, of the 4 steps of a toy.
  took = row["seconds"]["roofline"]
  assert f"{4 * took * 8 * 1e15:,.0f} for 4 steps at the roofline" in said
  assert row["least_seconds"] < took and row["seconds"]["messages"] > 0
  # MFU is of the peak of bfloat16, whatever the precision.
  at_best = row["model_flops"] / (8 * chip.flops) / row["least_seconds"]
  assert f"MFU {at_best:.0%}: products alone" in said and at_best == pytest.approx(1 / 6)


def test_a_quick_plan_compiles_nothing_and_builds_the_networks_once(config, monkeypatch):
  made, make = [], build.make_system
  monkeypatch.setattr(build, "make_system", lambda *args: made.append(args) or make(*args))
  quick = plan.measure(config | {"mesh": {"data": 1, "fsdp": 8}}, None, "train step", True)
  assert "compile_seconds" not in quick and quick["held_bytes"] > 0 and quick["model_flops"] > 0
  assert "weights and state alone" in plan_report.report(quick, config)
  assert len(made) == 1
  # Of the products alone: the best estimate that it has.
  quick |= {"least_seconds": 2.0, "peak_flops": 1e12}
  said = plan_report.report(quick, config, price=450.0)
  assert "  price       8 for 4 steps at best" in said.splitlines()  # 4 x 2 s x 8 x 450 / 3600


def test_a_price_on_devices_of_unknown_speed_is_refused_before_anything_is_traced(config):
  with pytest.raises(errors.UserError, match="--price needs the speed of a chip, .* of cpu: name"):
    plan.plan(config, quick=True, price=1.0)


@pytest.mark.parametrize(
  ("limit", "topology", "fits"),
  [(10, None, True), (9, "v5e:4x4", False), (None, "v9:4x4", True), (None, None, None)],
)
def test_what_the_compiler_of_a_tpu_takes_fits_also_where_its_memory_is_not_known(
  limit, topology, fits
):
  assert plan.fits(10, limit, topology) is fits


def test_what_does_not_fit_is_told_with_how_much_is_missing(config):
  row = {
    "program": "sampler",
    "topology": "v5e:4x4",
    "devices": 16,
    "kind": "TPU v5 lite",
    "mesh": {"data": 1, "fsdp": 16},
    "clips": 16,
    "parameters": {"trained": 10, "frozen": 5},
    "model_flops": 2e15,
    "recomputed_flops": 5e14,
    "total_flops": 2.5e15,
    "peak_flops": 2.5e15,
    "seconds": {"roofline": 2.0, "cycles": 4.0, "messages": 0.25},
    "limit_bytes": 10 * 2**30,
    "least_seconds": 1.0,
    "compile_seconds": 3.0,
    "bytes": {"arguments": 8 * 2**30, "temporaries": 4 * 2**30, "total": 12 * 2**30},
    "sent": {},
  }
  said = plan_report.report(row, config)
  assert "does not fit by 2 GiB" in said and "2 PFLOP, and 25% of it once more" in said
  assert "2 s, 8 clips/s, MFU 40%: products or" in said
  assert "4 s, 4 clips/s, MFU 20%: by the compiler" in said
  refused = {k: x for k, x in row.items() if k not in ("bytes", "sent", "compile_seconds")}
  refused["refused"] = plan.refusal("RESOURCE_EXHAUSTED: x\n  Used 74.0G of 15.75G hbm.\n y")
  assert "does not fit: Used 74.0G of 15.75G hbm." in plan_report.report(refused, config, 1.0)


@pytest.mark.parametrize(
  ("x", "step", "text"),
  [
    (0, 1024, "0 "),
    (999, 1024, "999 "),
    (1020 * 2**10, 1024, "0.996 Mi"),
    (1.38 * 2**30, 1024, "1.38 Gi"),
    (999.6e9, 1000, "1 T"),
    (5e18, 1000, "5e+03 P"),
  ],
)
def test_a_number_has_three_digits_and_a_prefix(x, step, text):
  assert plan_report.scaled(x, step) == text


@pytest.mark.parametrize("topology", ["v5e", "v5litepod-16", "4x4", "v5e:4x", ""])
def test_what_is_no_topology_is_one_sentence(config, topology):
  with pytest.raises(errors.UserError, match="is not a kind of TPU and its shape, such as"):
    plan.plan(config, topology=topology)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_a_tpus_compiler_one_sentence_says_how_to_get_it(config):
  with pytest.raises(errors.UserError, match=r"pip install 'jax\[tpu\]=="):
    plan.devices_of("v5e:4x4")


def test_a_process_that_the_compiler_ends_is_told():
  with pytest.raises(errors.UserError, match="the compiler of TPUs ended with status 7"):
    plan.apart(os._exit, 7)


def test_the_work_of_scanned_blocks_is_counted_as_often_as_they_run():
  def work(depth):
    config = importlib.import_module("configs.ucf101_bridge").get_config("smoke").to_dict()
    config["system"]["latte"] |= {"depth": depth}
    mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
    return flops.of(programs.trace_step(config, programs.make_system(config), mesh).jaxpr).model

  two, four, six = map(work, (2, 4, 6))
  assert four - two == six - four > 0
