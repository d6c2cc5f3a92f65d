"""Where the cells of a map lie: counts against the layers', centres against what a cell sees, cuts against slices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import images

from jaxcnn.models.grid import CANVAS, Grid, Map, windows
from jaxcnn.models.layers import conv
from jaxcnn.models.pooling import max_pool


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(st.integers(7, 40), st.integers(7, 40)), window=st.sampled_from([1, 2, 3, 7]),
    stride=st.integers(1, 4), pad=st.integers(0, 1), ceil=st.booleans(),
)  # fmt: skip
def test_a_window_leaves_as_many_cells_as_the_layer_does(sides, window, stride, pad, ceil):
    pad = min(pad, window // 2)
    x = jax.ShapeDtypeStruct((1, *sides, 3), jnp.float32)
    if ceil:
        made: Any = jax.eval_shape(lambda x: max_pool(x, window, stride, pad, ceil=True), x)
    else:
        layer = conv(3, window, stride, pad=pad, dtype=jnp.float32)
        made = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x)[0], x)
    grid = Grid(jnp.array([sides, sides[::-1]])).window(window, stride, pad, ceil=ceil)
    assert [tuple(size) for size in np.asarray(grid.sizes)] == [made.shape[1:3], made.shape[2:0:-1]]
    assert windows(sides[0], window, stride, pad, ceil) == made.shape[1]


def test_an_image_that_no_window_fits_leaves_no_cells():
    assert np.asarray(Grid(jnp.array([[2, 9]])).window(7).sizes).tolist() == [[0, 3]]
    assert np.asarray(Grid(jnp.array([[0, 3]])).enlarged(2, 4).sizes).tolist() == [[0, 8]]


# Kernel, stride and padding of each layer.
CHAINS = [((3, 1, 1), (2, 2, 0)), ((7, 2, 3), (3, 2, 1), (3, 2, 1)), ((11, 4, 2), (3, 2, 0), (5, 1, 2), (6, 1, 0))]


@pytest.mark.parametrize("chain", CHAINS)
def test_the_centre_of_a_cell_is_in_the_middle_of_what_it_sees(chain):
    grid = Grid().padded(20)
    for layer in chain:
        grid = grid.window(*layer)

    def cell(x: jax.Array, place: int) -> jax.Array:  # sums in place of kernels; padding counts as pixels do
        x = jnp.pad(x, 20)
        for window, stride, pad in chain:
            x = jnp.convolve(jnp.pad(x, pad), jnp.ones(window), "valid")[::stride]
        return x[place]

    place = 120 // grid.stride
    seen = jax.grad(cell)(jnp.zeros(200), place)
    assert seen.sum() > 0
    assert grid.centre + place * grid.stride == pytest.approx(float(seen @ jnp.arange(200) / seen.sum()))


def test_a_transposed_convolution_takes_the_grid_back():
    grid = Grid(jnp.array([[40, 32]]))
    coarse = grid.window(4, 4)
    finer = coarse.enlarged(4, 4)
    assert (finer.stride, finer.centre) == (grid.stride, grid.centre)
    np.testing.assert_array_equal(finer.sizes, grid.sizes)


def test_cropping_leaves_what_is_inside_and_makes_the_rest_zero_whatever_it_was():
    x = images(3, 4, 5, 2).at[0, 3].set(jnp.nan)
    sizes = jnp.array([[3, 5], [4, 2], [0, 5]])
    inside, cropped = np.asarray(Grid(sizes).inside(x)), np.asarray(Grid(sizes).crop(x))
    assert inside[..., 0].sum((1, 2)).tolist() == [15, 8, 0]
    np.testing.assert_array_equal(cropped, np.where(inside, x, 0))
    assert CANVAS.inside(x) is None
    assert CANVAS.crop(x) is x


@pytest.mark.parametrize("start", [-3, 0, 2, 9])
def test_a_cut_is_a_slice_with_zeros_beyond_the_map(start):
    x = np.asarray(images(1, 8, 6, 2))
    fine = Grid(None, 4, 1.5)
    found = Map(jnp.asarray(x), fine).cut(Grid(None, 4, 1.5 + 4 * start), (5, 7))
    padded = np.pad(x, ((0, 0), (9, 20), (9, 20), (0, 0)))
    np.testing.assert_array_equal(found, padded[:, 9 + start :][:, :5, 9 + start :][:, :, :7])
