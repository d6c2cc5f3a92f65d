"""The warp of R-CNN's windows against a loop over pixels, in NumPy and in JAX."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.warping import warp

HEIGHT, WIDTH = 30, 41
IMAGE = np.random.default_rng(0).uniform(0, 255, (HEIGHT, WIDTH, 3)).astype(np.float32)
FILL = np.array([1.0, 2.0, 3.0], np.float32)


def rounded(x: float) -> int:
    return math.floor(x + 0.5)


def axis(low: float, high: float, length: int, side: int, context: int) -> list[tuple[int, int, float] | None]:
    """What each pixel of a window reads: two pixels and the weight of the second, or None outside of the image.

    Written after the text of rcnn_im_crop.m: round the enlarged box, cut it, resize the cut to its part of the window.
    """
    half, centre = (high - low) * side / (2 * (side - 2 * context)), (low + high) / 2
    start, end = rounded(centre - half), rounded(centre + half) + bool(context)
    end = max(end, start + 1)
    first, last = max(start, 0), min(end, length)
    before, shown = rounded((first - start) * side / (end - start)), rounded((last - first) * side / (end - start))
    shown = min(shown, side - before)
    found: list[tuple[int, int, float] | None] = [None] * side
    for i in range(shown):
        source = min(max(first + (i + 0.5) * (last - first) / shown - 0.5, first), last - 1)
        pixel = math.floor(source)
        found[before + i] = pixel, min(pixel + 1, last - 1), source - pixel
    return found


def naive(box: np.ndarray, size: tuple[int, int], side: int, context: int) -> np.ndarray:
    """A window, pixel by pixel."""
    x1, y1, x2, y2 = map(float, box)
    rows, columns = axis(y1, y2, size[0], side, context), axis(x1, x2, size[1], side, context)
    window = np.tile(FILL, (side, side, 1))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if row and column:
                (top, bottom, down), (left, right, across) = row, column
                upper = IMAGE[top, left] * (1 - across) + IMAGE[top, right] * across
                lower = IMAGE[bottom, left] * (1 - across) + IMAGE[bottom, right] * across
                window[i, j] = upper * (1 - down) + lower * down
    return window


@settings(deadline=None, max_examples=60)
@given(
    corner=st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)),
    sides=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    window=st.sampled_from([(24, 0), (24, 2), (28, 4), (13, 6)]),
)
def test_a_window_is_that_of_a_loop_over_its_pixels(corner, sides, window):
    (x, y), (side, context) = corner, window
    box = np.array([x, y, min(x + sides[0], WIDTH), min(y + sides[1], HEIGHT)], np.float32)
    wanted = naive(box, (HEIGHT, WIDTH), side, context)
    np.testing.assert_allclose(warp(IMAGE, box, (HEIGHT, WIDTH), side, context, FILL), wanted, atol=1e-3)


def test_a_device_cuts_what_the_host_cuts():
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 20, (40, 2)) + rng.integers(0, 2, (40, 2)) / 2
    boxes = np.concatenate([corners, corners + rng.integers(1, 20, (40, 2))], 1).astype(np.float32)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0, None))
    def device(image: jax.Array, box: jax.Array, size: jax.Array) -> jax.Array:
        return warp(image, box, size, 28, 4, FILL)

    windows = device(jnp.asarray(IMAGE), jnp.asarray(boxes), jnp.array([24, 36]))
    host = np.stack([warp(IMAGE, box, (24, 36), 28, 4, FILL) for box in boxes])
    np.testing.assert_allclose(np.asarray(windows), host, atol=2e-3)


def test_the_box_lies_within_its_context_and_the_aspect_goes():
    image = np.zeros((60, 80, 1), np.float32)
    image[20:30, 30:50] = 1  # 10 × 20 pixels: half as high as wide
    window = warp(image, np.array([30, 20, 50, 30], np.float32), (60, 80), 28, 4)[..., 0]
    assert window[6:21, 6:21].min() == 1, "the box fills the middle 20 pixels, but for what rounding moves"
    assert window[:2].max() == window[:, :2].max() == window[-2:].max() == window[:, -2:].max() == 0


@pytest.mark.parametrize("corner", [(0, 0), (WIDTH - 8, 0), (0, HEIGHT - 8), (WIDTH - 8, HEIGHT - 8)])
def test_context_outside_of_the_image_is_the_fill(corner):
    x, y = corner
    window = warp(IMAGE, np.array([x, y, x + 8, y + 8], np.float32), (HEIGHT, WIDTH), 32, 8, FILL)
    rows, columns = (slice(0, 7) if at == 0 else slice(-7, None) for at in (y, x))
    assert (window[rows] == FILL).all()
    assert (window[:, columns] == FILL).all()
    middle = window[10:-10, 10:-10]
    assert (middle != FILL).any(-1).all()


def test_padding_of_a_canvas_is_not_seen():
    box = np.array([10, 12, 20, 24], np.float32)
    wide = np.pad(IMAGE[:24, :20], ((0, 9), (0, 9), (0, 0)), constant_values=1e6)
    inside = warp(IMAGE[:24, :20], box, (24, 20), 24, 4)
    np.testing.assert_array_equal(warp(wide, box, (24, 20), 24, 4), inside)


def test_a_box_without_area_gives_a_finite_window():
    assert np.isfinite(warp(IMAGE, np.zeros(4, np.float32), (HEIGHT, WIDTH), 24, 4)).all()
