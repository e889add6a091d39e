import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fbjax import compiled, sharding


def split(*shape):
  mesh = sharding.make_mesh(1, 4, devices=jax.devices()[:4])
  return mesh, jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))
  )


def test_a_message_in_a_loop_counts_as_often_as_it_is_sent():
  mesh, w = split(5, 64, 64)
  x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharding.batch(mesh))

  def f(x, w):
    def turn(x, w):
      return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))), None

    return jax.lax.scan(turn, x, w)[0]

  w = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=NamedSharding(mesh, P(None, None, "fsdp")))
  program = jax.jit(f, out_shardings=sharding.batch(mesh)).lower(x, w).compile()
  sent = [m for m in compiled.collectives(program) if m.kind == "all-gather"]
  assert sum(m.size * m.times for m in sent) == 5 * 64 * 64 * 4
  assert {m.times for m in sent} <= {1, 5}


def test_memory_and_work_are_those_of_one_device():
  mesh, x = split(32, 64)
  program = jax.jit(lambda x: x @ x.T, out_shardings=sharding.replicated(mesh)).lower(x).compile()
  assert compiled.memory(program).arguments == 32 * 64 * 4 // 4
  assert compiled.memory(program).results == 32 * 32 * 4
  assert 2 * 32 * 32 * 16 <= compiled.flops(program) < 1.2 * 2 * 32 * 32 * 16
  assert [m.kind for m in compiled.collectives(program)] == ["all-reduce"]


@pytest.mark.parametrize(
  ("result", "size"),
  [
    ("(f32[8,2]{1,0}, f32[8,2]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x)", 64),
    ("(bf16[4]{0}, bf16[16]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}", 32),
    ("((f32[4]{0}, f32[2]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%x, %y)", 96),
    ("(f32[8]{0}, f32[2]{0}) all-reduce-start(%x, %y)", 40),
    ("(f32[8]{0}, f32[2]{0}) all-reduce(%x, %y)", 40),
  ],
)
def test_what_arrives_is_told_apart_from_what_is_sent(result, size):
  text = f"HloModule a\nENTRY %main (x: f32[2]) -> f32[8] {{\n  ROOT %y = {result}\n}}\n"
  assert [message.size for message in compiled.collectives_of(text)] == [size]
