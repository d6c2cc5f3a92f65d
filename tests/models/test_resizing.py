"""Interpolation against its definitions, written out cell by cell, and against the conventions that it must not be."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nets import images, quick

from jaxcnn.models.resizing import Enlarge, bilinear_kernel, resize, transposed_convolution

PLAIN: dict[str, Any] = {"aligned_corners": False, "antialias": False}
sides = st.integers(1, 9)


def resized(x: jax.Array, size: tuple[int, int], **form: Any) -> np.ndarray:
    return np.asarray(quick(lambda x: resize(x, size, **form))(x))


def matrix(before: int, after: int, aligned_corners: bool, antialias: bool) -> np.ndarray:
    """Weights (after, before) by the definition: a triangle around the place of each output cell, normalised."""
    weights = np.zeros((after, before))
    for o in range(after):
        if aligned_corners:
            place, ratio = Fraction(o * (before - 1), max(after - 1, 1)), Fraction(before - 1, max(after - 1, 1))
        else:
            ratio = Fraction(before, after)
            place = (o + Fraction(1, 2)) * ratio - Fraction(1, 2)
        width = max(Fraction(1), ratio) if antialias else Fraction(1)
        for i in range(before):
            weights[o, i] = float(max(Fraction(0), 1 - abs(i - place) / width))
        weights[o] /= weights[o].sum()
    return weights


@settings(max_examples=8, deadline=None)
@given(before=st.tuples(sides, sides), after=st.tuples(sides, sides), aligned=st.booleans(), antialias=st.booleans())
@example(before=(9, 4), after=(2, 2), aligned=True, antialias=True)
@example(before=(9, 4), after=(2, 3), aligned=False, antialias=True)
@example(before=(5, 9), after=(9, 1), aligned=True, antialias=False)
@example(before=(5, 9), after=(9, 4), aligned=False, antialias=False)
def test_every_convention_is_its_definition(before, after, aligned, antialias):
    x = images(2, *before, 3)
    rows, columns = (matrix(a, b, aligned, antialias) for a, b in zip(before, after, strict=True))
    expected = np.einsum("oh,pw,nhwc->nopc", rows, columns, np.asarray(x, np.float64))
    found = resized(x, after, aligned_corners=aligned, antialias=antialias)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_conventions_differ_where_they_should_and_only_there():
    x = images(1, 8, 8, 1)
    larger, smaller = (16, 16), (3, 3)
    one, other = (resized(x, larger, aligned_corners=False, antialias=a) for a in (True, False))
    np.testing.assert_array_equal(one, other)  # smoothing is for shrinking
    forms = [resized(x, smaller, aligned_corners=c, antialias=a) for c in (True, False) for a in (True, False)]
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(forms) for b in forms[:i])
    np.testing.assert_allclose(forms[1][:, ::2, ::2], x[:, ::7, ::7], atol=1e-6)  # aligned: corners are corners
    np.testing.assert_array_equal(resized(x, (8, 8), **PLAIN), x)


@pytest.mark.parametrize("aligned", [False, True])
def test_parts_of_a_canvas_are_resized_as_if_they_were_alone(aligned):
    x, form = images(5, 12, 12, 3), {"aligned_corners": aligned, "antialias": False}
    parts, new = [(12, 12), (1, 7), (5, 3), (12, 1), (9, 9)], [(20, 20), (8, 7), (17, 1), (1, 20), (5, 12)]
    program = quick(lambda x, a, b: resize(x, (20, 20), sizes=a, to=b, **form))
    together = program(x, jnp.array(parts), jnp.array(new))
    for i, ((h, w), (rows, columns)) in enumerate(zip(parts, new, strict=True)):
        alone = resized(x[i : i + 1, :h, :w], (rows, columns), **form)
        np.testing.assert_allclose(together[i, :rows, :columns], alone[0], atol=1e-6)


def test_beyond_a_part_nothing_becomes_nan_nor_does_its_gradient():
    x, parts, new = images(1, 6, 6, 1), jnp.array([[2, 3]]), jnp.array([[4, 5]])

    def total(x: jax.Array) -> jax.Array:
        return resize(x, (40, 40), **PLAIN, sizes=parts, to=new).sum()

    assert np.isfinite(quick(jax.grad(total))(x)).all()


@pytest.mark.parametrize("form", [PLAIN, {"aligned_corners": True, "antialias": True}])
def test_the_gradient_is_that_of_the_weights(form):
    x, g = images(1, 5, 4, 2), images(1, 9, 3, 2, seed=1)
    found = quick(jax.grad(lambda x: jnp.sum(resize(x, (9, 3), **form) * g)))(x)
    rows, columns = matrix(5, 9, **form), matrix(4, 3, **form)
    np.testing.assert_allclose(found, np.einsum("oh,pw,nopc->nhwc", rows, columns, np.asarray(g)), atol=1e-5)


def test_scores_are_resized_in_float32_and_those_of_float64_in_float64():
    assert resize(jnp.zeros((1, 2, 2, 1), jnp.bfloat16), (4, 4), **PLAIN).dtype == jnp.float32
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 7, 1)))
        program = jax.make_jaxpr(lambda x: (resize(x, (8, 3), **PLAIN), Enlarge(2, 4).apply({}, x)))(x)
        assert "f32[" not in str(program)
        expected = np.einsum("oh,pw,nhwc->nopc", matrix(5, 8, **PLAIN), matrix(7, 3, **PLAIN), x)
        np.testing.assert_allclose(resized(x, (8, 3), **PLAIN), expected, atol=1e-14)


def test_the_bilinear_kernels_are_those_of_the_released_networks():
    np.testing.assert_allclose(bilinear_kernel(4)[:2, :2], [[0.0625, 0.1875], [0.1875, 0.5625]], atol=0)
    assert bilinear_kernel(63)[31, 31] == 1  # AlexNet's: a peak on a pixel
    for size in (3, 4, 16, 32, 63, 64):
        kernel, factor = bilinear_kernel(size), (size + 1) // 2
        np.testing.assert_array_equal(kernel, kernel[::-1, ::-1])
        np.testing.assert_array_equal(kernel, kernel.T)
        # What every pixel gets of the scores around it adds up to one.
        tiled = np.zeros((3 * factor + size, 3 * factor + size))
        for row in range(0, 4 * factor, factor):
            for column in range(0, 4 * factor, factor):
                tiled[row : row + size, column : column + size] += kernel
        inner = slice(size - factor, 4 * factor)
        np.testing.assert_allclose(tiled[inner, inner], 1, atol=1e-12)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(("stride", "height", "width"), [(1, 3, 2), (2, 1, 1), (3, 2, 4), (5, 1, 3)])
def test_a_transposed_convolution_adds_a_kernel_for_each_cell(stride, height, width, odd):
    size = 2 * stride - odd
    x, kernel = np.asarray(images(2, height, width, 3)), np.asarray(images(size, size, 3, seed=1))
    expected = np.zeros((2, (height - 1) * stride + size, (width - 1) * stride + size, 3))
    for i in range(height):
        for j in range(width):
            rows, columns = slice(i * stride, i * stride + size), slice(j * stride, j * stride + size)
            expected[:, rows, columns] += x[:, i, j, None, None] * kernel
    found = quick(lambda x, kernel: transposed_convolution(x, kernel, stride))(x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_bilinear_kernel_interpolates_by_half_pixel_centres_but_fades_at_the_edges():
    x = images(1, 5, 6, 2)
    found = np.asarray(quick(Enlarge(4, 8).apply)({}, x))[:, 2:-2, 2:-2]  # half a cell beyond the edges is cut off
    expected = resized(x, (20, 24), **PLAIN)
    np.testing.assert_allclose(found[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-6)
    np.testing.assert_allclose(found[:, 0, 2:-2], expected[:, 0, 2:-2] * 0.625, atol=1e-6)


def test_a_learnt_kernel_begins_bilinear_with_one_for_each_class_and_a_fixed_one_is_no_parameter():
    x = images(2, 3, 4, 5)
    variables = Enlarge(2, 4, learnt=True).init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (4, 4, 5)}}
    fixed = Enlarge(2, 4).apply({}, x)
    assert Enlarge(2, 4).init(jax.random.key(0), x) == {}
    np.testing.assert_array_equal(Enlarge(2, 4, learnt=True).apply(variables, x), fixed)
