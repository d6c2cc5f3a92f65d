"""Reading the text of compiled programs: how often what runs, and who meets whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.training.hlo import Module, arrays, collectives, collectives_of


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
    products = [
        module.runs.get(name, 0)
        for name, body in module.computations.items()
        for instruction in body
        if "dot_general" in instruction.rest
    ]
    assert 15 in products, products


def test_a_tpu_says_in_its_condition_how_often_a_loop_runs():
    module = Module("""HloModule m

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %sum = f32[4]{0} all-reduce(%x), channel_id=1, replica_groups=[1,8]<=[8]
}

%condition (q: (s32[], f32[4])) -> pred[] {
  %q = (s32[], f32[4]) parameter(0)
  %most = s32[]{:T(128)} constant(6)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %most), direction=LT
}

ENTRY %main (a: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = (s32[], f32[4]) parameter(0)
  ROOT %loop = (s32[], f32[4]) while(%a), condition=%condition, body=%body
}
""")
    assert module.runs["body"] == 6
    assert [(c.number, c.bytes) for c in collectives_of(module, 8)] == [(6, 16)]


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
    assert (found.kind, found.number, found.bytes, len(found.members), found.groups) == (
        "all-reduce",
        1,
        40,
        group,
        groups,
    )


def test_an_asynchronous_collective_counts_once_by_its_result():
    module = one_line("%g = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}")
    assert collectives_of(module, 8) == [("all-gather", 1, 128, tuple(range(8)), 1)]
    assert not collectives_of(one_line("%g = f32[32]{0} all-gather-done(%p)"), 8)


def test_members_of_a_group():
    def members(notation):
        return collectives_of(one_line(f"%s = f32[4]{{0}} all-reduce(%p), {notation}, to_apply=%r"), 8)[0].members

    assert members("replica_groups={{0,4},{1,5},{2,6},{3,7}}") == (0, 4)
    assert members("replica_groups=[4,2]<=[2,4]T(1,0)") == (0, 4)
    assert members("replica_groups=mesh['a'=2,'b'=4] {'a'}") == (0, 4)
    assert members("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}") == (0, 1)
    assert members("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}") == (0, 2)
    assert members("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}") == (0, 1, 2, 3)


def test_a_permute_counts_its_result_and_not_its_counters():
    start = "(bf16[3,4]{1,0}, bf16[3,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), channel_id=1"
    module = one_line(f"%c = {start}, source_target_pairs={{{{0,7}},{{1,0}},{{2,1}}}}")
    assert collectives_of(module, 8) == [("collective-permute", 1, 24, (0, 7), 3)]


@pytest.mark.parametrize("of_start", ["f32[8]{0}", "((f32[8]{0}), f32[8]{0})"])  # as XLA writes it, and newer ones
def test_an_all_reduce_has_the_size_of_what_ends_it(of_start):
    start = f"%s = {of_start} all-reduce-start(%p), replica_groups=[1,8]<=[8], to_apply=%r"
    module = one_line(f"{start}\n  %d = f32[8]{{0}} all-reduce-done(%s)")
    assert [(c.number, c.bytes) for c in collectives_of(module, 8)] == [(1, 32)]


def test_tiles_of_a_tpu_are_stored_whole():
    (found,) = arrays("f32[2,3,130]{2,1,0:T(8,128)}")
    assert (found.bytes, found.padded) == (2 * 3 * 130 * 4, 2 * 8 * 256 * 4)
    (found,) = arrays("bf16[64,56,56,3]{0,3,2,1:T(8,128)(2,1)}")  # 64 images are the minor dimension, then 3 channels
    assert found.padded == 128 * 8 * 56 * 56 * 2
    assert arrays("f32[]{:T(128)}")[0].padded == arrays("f32[]")[0].padded == 4


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
    assert (found.members, found.groups) == ((0, 1, 2, 3), 2)
