from unittest import mock

import jax
import pytest

from fbjax import hardware


@pytest.mark.parametrize(
  ("kind", "stats", "memory"),
  [
    ("NVIDIA H100 80GB HBM3", {"bytes_limit": 1}, 79 * 2**30),
    ("NVIDIA L4", {"bytes_limit": 17 * 2**30}, 17 * 2**30),
    ("NVIDIA L4", {}, None),
    ("TPU v5 lite", None, 15.75 * 2**30),
    ("cpu", None, None),
  ],
)
def test_the_memory_of_a_device_is_its_chips_or_else_what_it_says(kind, stats, memory):
  device = mock.Mock(spec=jax.Device, device_kind=kind)
  device.memory_stats.return_value = stats
  assert hardware.memory(device) == memory


def test_a_cpu_does_not_say_how_much_memory_a_program_may_take():
  assert hardware.memory(jax.devices()[0]) is None
