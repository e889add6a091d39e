import importlib

import pytest

import toy
from fbjax import build, errors, sharding
from fbjax.modes import plan, plan_report, plan_search

CONFIG = {
  "system": {"remat": "full"},
  "train": {"batch_size": 32, "accumulate": 1},
  "mesh": {"fsdp": 1, "data": 1},
}
DEVICES = 8


def stand_in(memory):
  """Devices of so much memory, on which keeping less and cutting finer take less of it and more time."""
  kept = {"none": (16, 1.0), "products": (8, 1.2), "full": (2, 1.5)}

  def measure(config):
    held, slower = kept[config["system"]["remat"]]
    parts, fsdp = config["train"]["accumulate"], config["mesh"]["fsdp"]
    needs = 16 / fsdp + held / parts
    took = {"roofline": slower * (1 + 0.1 * parts), "messages": 0.004 * fsdp}
    return {"fits": needs <= memory, "seconds": took}

  return measure


def by_hand(memory):
  """The best of all there is."""
  found = []
  for remat in ("none", "products", "full"):
    for parts in (1, 2, 4):
      for fsdp in (1, 2, 4, 8):
        changes = {
          "mesh.data": -1,
          "mesh.fsdp": fsdp,
          "train.accumulate": parts,
          "system.remat": remat,
        }
        row = stand_in(memory)(plan_search.changed(CONFIG, changes))
        if row["fits"]:
          found.append((plan_search.time_of(row), changes))
  return min(found, key=lambda pair: pair[0])[1] if found else {}


@pytest.mark.parametrize("memory", [1, 4, 5, 7, 12, 18, 40])
def test_the_fastest_that_fits_is_found_among_few_tries(memory):
  best, rows = plan_search.search(CONFIG, DEVICES, stand_in(memory))
  assert best == by_hand(memory)
  assert len(rows) <= 12
  assert CONFIG["system"]["remat"] == "full"  # the config itself stays


def test_a_batch_is_cut_into_no_more_parts_than_leave_every_device_a_clip():
  _, rows = plan_search.search(CONFIG, DEVICES, stand_in(0))
  assert max(row["changes"]["train.accumulate"] for row in rows) == 32 // DEVICES


@pytest.mark.parametrize("batch_size", [2, 12])
def test_a_batch_that_the_devices_do_not_share_evenly_is_named(batch_size, monkeypatch):
  config = toy.config()
  config["train"]["batch_size"] = batch_size
  monkeypatch.setattr(
    build, "make_mesh", lambda config, devices: sharding.make_mesh(**config["mesh"])
  )
  with pytest.raises(errors.UserError, match=f"batch_size={batch_size} must be .* the 8 parts"):
    plan.searched(config, 8, lambda tried: plan.measure(tried, None, "train step"))


def test_devices_that_share_a_clip_go_on_sharing_it():
  config = plan_search.changed(CONFIG, {"mesh.context": 2, "mesh.tensor": 2})
  _, rows = plan_search.search(config, DEVICES, stand_in(12))
  assert {row["changes"]["mesh.fsdp"] for row in rows} == {2, 1}
  assert "mesh.context" not in rows[0]["changes"]
  _, rows = plan_search.search(config, DEVICES, stand_in(0))
  assert max(row["changes"]["train.accumulate"] for row in rows) == plan_search.DEEPEST


def test_where_the_speed_of_a_chip_is_not_known_the_least_work_that_fits_is_found():
  work = {"none": 3.0, "products": 3.5, "full": 4.0}
  held = {"none": 16, "products": 8, "full": 2}

  def measure(config):
    kept = config["system"]["remat"]
    return {
      "fits": held[kept] / config["train"]["accumulate"] <= 3,
      "total_flops": work[kept],
    }

  best, _ = plan_search.search(CONFIG, DEVICES, measure)
  assert (best["system.remat"], best["train.accumulate"]) == ("products", 4)


def test_a_search_on_devices_of_unknown_memory_compiles_nothing_and_says_what_to_name():
  with pytest.raises(
    errors.UserError, match="--search needs the memory of a chip, .* of cpu: name"
  ):
    plan.plan(CONFIG, search=True)


def test_a_search_of_a_real_config_prints_what_to_set(capsys, monkeypatch):
  config = importlib.import_module("configs.ucf101_bridge").get_config("smoke").to_dict()
  config["train"]["batch_size"] = 8
  row = lambda config: {"fits": config["system"]["remat"] == "full", "total_flops": 1.0}  # noqa: E731
  monkeypatch.setattr(
    plan_report, "report", lambda row, config, price: f"{row['total_flops']} at {price}"
  )
  plan.searched(config, 8, row, 2.5)
  assert "--config.mesh.data=-1 --config.mesh.fsdp=" in (said := capsys.readouterr().out)
  assert "--config.system.remat=full" in said and said.startswith("1.0 at 2.5\n")
  build.check(plan_search.changed(config, {"system.remat": "full", "train.accumulate": 1}))
  with pytest.raises(errors.UserError, match="nothing that was tried fits 8 devices"):
    plan.searched(config, 8, lambda config: {"fits": False})
