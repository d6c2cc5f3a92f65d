"""The forms of a convolution that a CPU is fast at compute what `lax.conv_general_dilated` does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxcnn.models import convolution
from jaxcnn.models.convolution import _by_phase, _by_tap, _plain, convolve, onednn_is_right
from jaxcnn.models.sharding import platform
from jaxcnn.training import program

RANDOM = np.random.default_rng(0)
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def plain(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=15, deadline=None)
@given(pairs, pairs, st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(st.integers(4, 9), st.integers(4, 9)))
def test_the_gradients_by_phase_and_by_tap_are_those_of_xla(kernel: Any, strides: Any, pads: Any, size: Any) -> None:
    """Every kernel, stride, padding and size; integers, so that every sum is exact."""
    rng = np.random.default_rng(0)
    padding = tuple((pad, 3 - pad) for pad in pads)
    x, weights = (jnp.asarray(rng.integers(-4, 5, shape), jnp.float32) for shape in ((2, *size, 3), (*kernel, 3, 5)))
    shape = jax.eval_shape(lambda: plain(x, weights, strides, padding)).shape
    grad = rng.integers(-4, 5, shape).astype(np.float32)

    @jax.jit
    def gradients(x: jax.Array, weights: jax.Array, grad: jax.Array) -> Any:
        expected = jax.vjp(lambda x, weights: plain(x, weights, strides, padding), x, weights)[1](grad)
        of_x = _by_phase(grad, weights, strides=strides, padding=padding, shape=x.shape)
        return expected, (of_x, _by_tap(x, grad, weights.shape, strides, padding))

    for expected, found in zip(*gradients(x, weights, grad), strict=True):
        np.testing.assert_array_equal(found, expected)


ONEDNN: dict[str, Any] = {program._ONEDNN: True} if program._is_known(program._ONEDNN) else {}


def compiled(f: Any, *arguments: jax.Array, **options: bool) -> Any:
    return jax.jit(f).lower(*arguments).compile(compiler_options=ONEDNN | options)


@pytest.mark.parametrize("channels", [3, 8, 12, 16])
@pytest.mark.parametrize("taps", [3, 4, 8])
def test_onednn_computes_rightly_what_we_give_it(taps, channels):
    """Whatever the processor: where it has no AMX, or jaxlib does not give convolutions to oneDNN, all forms agree."""
    x, weights = (
        jnp.asarray(RANDOM.normal(size=shape), jnp.bfloat16)
        for shape in ((2, 16, 16, channels), (taps, taps, channels, 24))
    )
    args = (1, 1), ((1, 1), (1, 1))
    wide = plain(x.astype(jnp.float32), weights.astype(jnp.float32), *args)
    found = compiled(lambda x, weights: _plain(x, weights, *args), x, weights)(x, weights)
    np.testing.assert_allclose(found.astype(jnp.float32), wide, atol=0.02 * float(jnp.abs(wide).max()))


@pytest.mark.parametrize(("images", "side", "right"), [(8, 16, False), (8, 14, True), (2, 16, True), (16, 16, True)])
def test_a_kernel_gradient_goes_to_onednn_only_where_it_is_right(images, side, right, monkeypatch):
    assert onednn_is_right(side, images) == right
    monkeypatch.setattr(convolution, "platform", lambda: "cpu")
    shapes = (images, side, side, 8), (3, 3, 8, 24), (images, side, side, 24)
    x, weights, grad = (jnp.asarray(RANDOM.normal(size=shape), jnp.bfloat16) for shape in shapes)

    def gradient(x: jax.Array, weights: jax.Array, grad: jax.Array) -> Any:
        rest: Any = {"dimension_numbers": DIMENSIONS}
        return jax.vjp(lambda weights: convolve(x, weights, (1, 1), ((1, 1), (1, 1)), **rest), weights)[1](grad)[0]

    # Nine products where a convolution would be wrong.
    assert jax.jit(gradient).lower(x, weights, grad).as_text().count("dot_general") == (0 if right else 9)
    found = compiled(gradient, x, weights, grad)(x, weights, grad)
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "platform", lambda: "")
        wide = jax.jit(gradient)(*(a.astype(jnp.float32) for a in (x, weights, grad)))
    np.testing.assert_allclose(found.astype(jnp.float32), wide, atol=0.02 * float(jnp.abs(wide).max()))


def test_a_program_with_a_convolution_that_onednn_computes_wrongly_is_seen():
    line = (
        'custom-call(%x), custom_call_target="__onednn$convolution", backend_config={"kernel":{"filter":'
        '{"input_feature_dim":"2","shape":["8","8","C","24"]}}}\n'
    )
    assert program._onednn_is_right(line.replace("C", "16") + line.replace("C", "4"))
    assert not program._onednn_is_right(line.replace("C", "16") + line.replace("C", "12") + line.replace("C", "4"))
    x, weights = jnp.ones((4, 32, 32, 8), jnp.bfloat16), jnp.ones((8, 8, 8, 24), jnp.bfloat16)
    text = compiled(lambda x, weights: plain(x, weights, (1, 1), ((3, 3), (3, 3))), x, weights).as_text()
    assert program._onednn_is_right(text) == ("__onednn$convolution" not in text)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", ""])
def test_16_bits_take_the_fast_form_in_a_step_for_a_cpu_and_xlas_own_elsewhere(platform, stride, monkeypatch):
    monkeypatch.setattr(convolution, "platform", lambda: platform)
    x, weights = (jnp.asarray(RANDOM.integers(-4, 5, shape), jnp.bfloat16) for shape in ((2, 8, 8, 4), (3, 3, 4, 6)))

    def gradient(x: jax.Array, weights: jax.Array) -> Any:
        def loss(x: jax.Array, weights: jax.Array) -> jax.Array:
            rest: Any = {"dimension_numbers": DIMENSIONS, "lhs_dilation": (1, 1), "precision": None}
            return convolve(x, weights, (stride, stride), ((1, 1), (1, 1)), **rest).astype(jnp.float32).sum()

        return jax.grad(loss, (0, 1))(x, weights)

    text = jax.jit(gradient).lower(x, weights).as_text()
    # A dilated operand is XLA's own strided gradient; a barrier holds the flipped kernel of ours.
    assert ("optimization_barrier" in text) == (platform == "cpu")
    assert ("lhs_dilate = [2, 2]" in text) == (platform != "cpu" and stride == 2)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (x, weights))
    for found, expected in zip(gradient(x, weights), gradient(*wide), strict=True):
        np.testing.assert_array_equal(found.astype(jnp.float32), expected)


def test_the_platform_is_that_of_the_mesh_inside_a_shard_too():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    assert platform() == ""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert platform() == "cpu"
    found = []
    rows = PartitionSpec("data")
    shard = jax.shard_map(lambda x: found.append(platform()) or x, mesh=mesh, in_specs=rows, out_specs=rows)
    jax.eval_shape(shard, jnp.ones(mesh.size))
    assert set(found) == {"cpu"}
