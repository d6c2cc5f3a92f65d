"""What is counted in the text of compiled programs, against XLA's own count where it has one."""

import jax
import jax.numpy as jnp
import pytest
from scaling_rows import product_types
from tiny import build, tiny_config

from jaxcnn.scaling.chips import parse_topology
from jaxcnn.scaling.program_costs import activations, bytes_accessed, compiled_part, flops_of, product_flops
from jaxcnn.training.hlo import Module


def compile_(function, *shapes, dtype=jnp.float32):
    return jax.jit(function).lower(*[jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]).compile()


def convolution(stride, padding, groups=1, dilation=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x, k: jax.lax.conv_general_dilated(
        x, k, (stride,) * 2, padding, None, (dilation,) * 2, numbers, groups
    )


@pytest.mark.parametrize("form", ["forward", "gradient"])
@pytest.mark.parametrize(
    ("stride", "padding", "groups", "dilation"),
    [(1, "SAME", 1, 1), (2, [(3, 3), (2, 1)], 1, 1), (2, "VALID", 2, 1), (1, "SAME", 1, 2)],
)
def test_flops_of_convolutions_are_those_of_xla(form, stride, padding, groups, dilation):
    f = convolution(stride, padding, groups, dilation)
    shapes = (4, 15, 16, 8), (3, 3, 8 // groups, 12)
    gradient = lambda x, k: jax.vjp(lambda x: f(x, k), x)[1](f(x, k))[0]  # noqa: E731 to the image: a dilated one
    program = compile_(gradient if form == "gradient" else f, *shapes)
    cost = program.cost_analysis() or {}
    assert product_flops(Module(program.as_text() or "")) == pytest.approx(cost["flops"], rel=0.03)


@pytest.mark.parametrize(
    "call",
    [
        "dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
        'custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]}}}',
    ],
)
def test_flops_of_batched_products(call):
    text = f"""HloModule m

ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{
  %a = f32[8,3,5]{{2,1,0}} parameter(0)
  %b = f32[8,5,7]{{2,1,0}} parameter(1)
  ROOT %c = f32[8,3,7]{{2,1,0}} {call}
}}
"""
    assert product_flops(Module(text)) == 2 * 8 * 3 * 5 * 7


def test_flops_of_matrix_products_are_those_of_xla():
    program = compile_(lambda x, y: x @ y, (512, 256), (256, 1024))
    assert product_flops(Module(program.as_text() or "")) == 2 * 512 * 256 * 1024


@pytest.mark.parametrize("which", ["Forward", "BackwardInput", "BackwardFilter"])
def test_calls_of_cudnn_have_the_flops_of_their_convolution(which):
    image, kernel, result = "f32[4,16,16,8]{3,2,1,0}", "f32[12,3,3,8]{3,2,1,0}", "f32[4,16,16,12]{3,2,1,0}"
    left, right, out = {
        "Forward": (image, kernel, result),
        "BackwardInput": (result, kernel, image),
        "BackwardFilter": (image, result, kernel),
    }[which]
    rest = f'window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{which}"'
    text = f"""HloModule m

ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = ({out}, u8[0]{{0}}) custom-call(%a, %b), {rest}
}}
"""
    met = (14 * 3 + 2 * 2) ** 2  # window positions over a pixel of the image, of 16 × 16 outputs
    assert product_flops(Module(text)) == 2 * 4 * 12 * 8 * met
    assert product_types(Module(text)) == {("f32", "f32", "f32"): 1}


def test_loops_count_as_often_as_they_run():
    def many(x, y):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ y), None), x, length=7)[0]

    shapes = (64, 64), (64, 64)
    once, looped = (Module(compile_(f, *shapes).as_text() or "") for f in (lambda x, y: x @ y, many))
    assert product_flops(looped) == 7 * product_flops(once)
    assert product_flops(looped, once=True) == product_flops(once)
    assert flops_of(looped, None) == product_flops(looped)
    assert flops_of(looped, 100.0) == 100 + 6 * product_flops(once)  # XLA reports a loop body once
    assert bytes_accessed(looped) > 7 * bytes_accessed(once)
    assert bytes_accessed(looped, once=True) < bytes_accessed(looped) / 3


def test_what_lies_on_the_chip_is_no_traffic():
    text = """HloModule m

ENTRY %main (a: f32[1]) -> f32[1] {
  %a = f32[1000]{0:T(8,128)} parameter(0)
  %there = (f32[1000]{0:T(8,128)}, f32[1000]{0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%a)
  %near = f32[1000]{0:T(8,128)S(1)} copy-done(%there)
  ROOT %b = f32[1000]{0:T(8,128)} negate(%near)
}
"""
    # Read once to the chip, written once by the kernel, in whole tiles.
    assert bytes_accessed(Module(text), hbm=True) == 4096 + 4096
    assert bytes_accessed(Module(text)) == 2 * (4096 + 4096)


def test_activations_are_what_the_backward_pass_reads():
    def loss(w, x):
        hidden = jnp.tanh(jnp.dot(x, w))
        return jnp.sum(jnp.sin(jnp.dot(hidden, w)))

    gradient = compile_(jax.value_and_grad(loss), (64, 64), (128, 64))
    kept = activations(Module(gradient.as_text() or ""))
    one = 128 * 64 * 4
    assert one <= kept <= 3 * one  # tanh's result, and of sin its argument or its derivative
    assert activations(Module(compile_(loss, (64, 64), (128, 64)).as_text() or "")) == 0


def test_what_memory_a_program_takes_and_whether_that_is_there():
    program, sizes = build(tiny_config()), {"argument": 10**6, "alias": 900, "generated_code": 0}
    step = compile_(lambda x, y: x @ y, (8, 8), (8, 8))
    limit = round(parse_topology("gpu:h100:1").chip.memory.value * 0.75)

    def row(output: int, temp: int) -> dict:
        memory = sizes | {"output": output, "temp": temp}
        found = {"seconds": 1.0, "cached": False, "text": step.as_text(), "cost": {}, "memory": memory}
        return compiled_part(found, program, parse_topology("gpu:h100:1"))

    # The part of the output that is no alias of an argument takes memory of its own.
    assert row(1000, 50)["hbm_bytes"] == sum(row(1000, 50)["memory"].values()) == 10**6 + 100 + 50
    assert row(800, 50)["hbm_bytes"] == 10**6 + 50
    assert row(900, limit - 10**6)["fits"]
    assert not row(900, limit - 10**6 + 1)["fits"]
