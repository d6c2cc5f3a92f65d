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
from jaxcnn.models.convolution import _by_phase, convolve
from jaxcnn.models.sharding import platform

RANDOM = np.random.default_rng(0)
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def plain(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=25, deadline=None)
@given(pairs, pairs, st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(st.integers(4, 9), st.integers(4, 9)))
def test_the_gradient_by_phases_is_that_of_xla(kernel: Any, strides: Any, pads: Any, size: Any) -> None:
    """Every kernel, stride, padding and size; integers, so that every sum is exact."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-4, 5, (2, *size, 3)), jnp.float32)
    weights = jnp.asarray(rng.integers(-4, 5, (*kernel, 3, 5)), jnp.float32)
    padding = tuple((pad, 3 - pad) for pad in pads)
    y, transpose = jax.vjp(lambda x: plain(x, weights, strides, padding), x)
    grad = jnp.asarray(rng.integers(-4, 5, y.shape), jnp.float32)
    found = _by_phase(grad, weights, strides=strides, padding=padding, shape=x.shape)
    np.testing.assert_array_equal(found, transpose(grad)[0])


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
