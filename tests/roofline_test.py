import jax
import jax.numpy as jnp
import pytest

from fbjax import flops, hardware, roofline

CHIP = hardware.Chip(flops=1e12, bandwidth=1e9, memory=2**30, links=1e8, clock=1e6)


def of(f, *shapes):
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return roofline.of(jax.jit(f).lower(*args).compile(), CHIP)


def test_elementwise_work_costs_what_it_reads_and_writes():
  found = of(lambda x: jnp.sin(x) + 1, (1000, 1000))
  assert found.bytes == 2 * 4e6
  assert found.roofline == pytest.approx(8e6 / CHIP.bandwidth)
  assert found.flops == 0 and found.cycles is None and found.messages == 0


def conv(x, w, **kwargs):
  return jax.lax.conv_general_dilated(
    x, w, padding=((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"), **kwargs
  )


@pytest.mark.parametrize(
  ("f", "shapes"),
  [
    (lambda x, y: x @ y, ((30, 40), (40, 50))),
    (lambda x, y: jnp.einsum("bik,bjk->bij", x, y), ((3, 30, 40), (3, 50, 40))),
    (lambda x, w: conv(x, w, window_strides=(1, 1)), ((2, 9, 9, 3), (3, 3, 3, 8))),
    (lambda x, w: conv(x, w, window_strides=(2, 2)), ((2, 9, 9, 3), (3, 3, 3, 8))),
    (lambda x, ws: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0], ((30, 40), (7, 40, 40))),
  ],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_products_are_those_that_the_mathematics_asks_for(f, shapes, precision):
  """As many of bfloat16 as a TPU makes of each."""
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  with jax.default_matmul_precision(precision):
    work = flops.of(jax.jit(f).trace(*args).jaxpr, CHIP.passes).model
    assert of(f, *shapes).flops == work


def test_a_turn_of_a_loop_reads_its_own_weights_and_no_other():
  turns, n = 50, 64
  f = lambda x, ws: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]  # noqa: E731
  found = of(f, (n, n), (turns, n, n))
  assert turns * n * n * 4 < found.bytes < 10 * turns * n * n * 4


FUSION = """HloModule a
ENTRY %main (x: bf16[1000]) -> f32[1000] {{
  %x = bf16[1000]{{0:T(1024)}} parameter(0)
  ROOT %y = f32[1000]{{0:T(1024){place}}} fusion(%x), calls=%f, backend_config={{"estimated_cycles":"2000"}}
}}
"""


def test_memory_on_the_chip_is_free_and_cycles_are_the_compilers_own():
  outside, inside = (roofline.of_text(FUSION.format(place=place), CHIP) for place in ("", "S(1)"))
  assert (outside.bytes, inside.bytes) == (6000, 2000)
  assert outside.cycles == 2000 / CHIP.clock


@pytest.mark.parametrize(
  ("message", "seconds"),
  [
    ("f32[800] all-gather(%x), replica_groups={{0,1,2,3}}", 3200 * 3 / 4),
    ("f32[800] all-reduce(%x), replica_groups=[1,4]<=[4]", 2 * 3200 * 3 / 4),
    ("f32[800] reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=2] {'a','b'}", 3 * 3200),
    ("f32[800] collective-permute(%x), source_target_pairs={{0,1},{1,0}}", 3200),
  ],
)
def test_a_message_costs_what_arrives(message, seconds):
  text = f"HloModule a\nENTRY %main (x: f32[200]) -> f32[800] {{\n  ROOT %y = {message}\n}}\n"
  assert roofline.of_text(text, CHIP).messages == pytest.approx(seconds / CHIP.links)
