"""Reading the text of compiled programs: how often what runs, and who meets whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.training.collectives import collectives, collectives_of
from jaxcnn.training.hlo import Module, arrays


def text_of(function, *args):
    return jax.jit(function).lower(*args).compile().as_text() or "" or ""


def one_line(text):
    """A program of one instruction, `text`."""
    return Module(f"HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {{\n  %p = f32[] parameter(0)\n  {text}\n}}\n")


def test_arrays_of_a_type():
    first, second, third = arrays("(f32[8,4]{1,0:T(8,128)}, bf16[3]{0:T(512)S(1)}, pred[])")
    assert (first.dtype, first.shape, first.bytes, first.on_chip) == ("f32", (8, 4), 128, False)
    assert (second.bytes, second.on_chip) == (6, True)  # in VMEM
    assert (third.shape, third.bytes) == ((), 1)
    assert arrays("s4[7]")[0].bytes == 7  # XLA keeps them packed or not: a byte each is the most


def test_a_loop_in_a_loop_runs_as_often_as_its_trips():
    def step(x, _):
        return jax.lax.scan(lambda y, _: (jnp.sin(y @ y), None), x, length=3)[0], None

    module = Module(text_of(lambda x: jax.lax.scan(step, x, length=5)[0], jnp.ones((64, 64))))
    products = [times for instruction, times in module.instructions() if "dot_general" in instruction.rest]
    assert module.loops
    assert 15 in products, products
    assert not Module(text_of(lambda x: x @ x, jnp.ones((64, 64)))).loops


@pytest.mark.parametrize(
    ("notation", "group", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%r", 2, 4),
        ("replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%r", 8, 1),
        ("replica_groups={}, to_apply=%r", 8, 1),
        ("replica_groups=[2,4]<=[8], to_apply=%r", 4, 2),
        ("replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%r", 2, 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%r", 4, 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%r", 8, 1),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, to_apply=%r", 2, 4),
    ],
)
def test_replica_groups_in_every_notation(notation, group, groups):
    module = one_line(f"ROOT %sum = f32[10]{{0}} all-reduce(%p), channel_id=1, {notation}")
    (found,) = collectives_of(module, 8)
    assert found == ("all-reduce", 1, 40, group, groups)


def test_an_asynchronous_collective_counts_once_by_its_result():
    module = one_line("%g = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}")
    assert collectives_of(module, 8) == [("all-gather", 1, 128, 8, 1)]
    assert not collectives_of(one_line("%g = f32[32]{0} all-gather-done(%p)"), 8)


def test_groups_of_a_real_mesh():
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    mesh = Mesh(devices, ("data", "model"))
    cut = NamedSharding(mesh, PartitionSpec(None, "model"))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=cut)
    y = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("model")))
    whole = NamedSharding(mesh, PartitionSpec())
    program = jax.jit(lambda x, y: x @ y, out_shardings=whole).lower(x, y).compile()
    assert collectives(program) == {"all-reduce": (1, 16 * 16 * 4)}
    (found,) = collectives_of(Module(program.as_text() or ""), 8)
    assert (found.group, found.groups) == (4, 2)
