"""Masks of objects: COCO's forms of them, and their way to training targets against torchvision's definition."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torchvision_masks import projected, resized

from jaxcnn.data.images.decode import Box, Crop
from jaxcnn.data.images.object_masks import in_box, run_lengths
from jaxcnn.models.mask_targets import CELLS, project

SIZE = (60, 90)


def mask_of(found: Any) -> np.ndarray:
    return coco.decode(found).astype(bool)


def ellipse(size: tuple[int, int], middle: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    y, x = (np.arange(side) + 0.5 for side in size)
    return ((y - middle[0]) / radii[0])[:, None] ** 2 + ((x - middle[1]) / radii[1])[None] ** 2 <= 1


def packed(mask: np.ndarray) -> Any:
    return coco.encode(np.asfortranarray(mask, np.uint8))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_run_lengths_are_one_mask_as_a_list_and_as_text(runs):
    counts = [*runs, SIZE[0] * SIZE[1] - sum(runs)]
    if counts[-1] < 0:
        return
    whole = np.repeat(np.arange(len(counts)) % 2, counts).reshape(SIZE, order="F").astype(bool)
    text = packed(whole)["counts"].decode()
    for form in (counts, text):
        np.testing.assert_array_equal(mask_of(run_lengths({"size": [*SIZE], "counts": form}, SIZE)), whole)


@given(st.text(st.characters(codec="latin-1"), max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_mask_of_the_image_or_refused(text):
    try:
        found = run_lengths({"size": [*SIZE], "counts": text}, SIZE)
    except ValueError:
        return
    assert mask_of(found).shape == SIZE


def test_a_text_of_one_endless_number_is_refused_at_once():
    with pytest.raises(ValueError, match="run lengths"):
        run_lengths({"size": [*SIZE], "counts": "o" * 300_000}, SIZE)


def test_polygons_of_one_object_are_united():
    one, other = [10, 10, 30, 10, 30, 40, 10, 40], [20, 20, 60, 20, 60, 50, 20, 50]
    found = mask_of(run_lengths([one, other], SIZE))
    expected = np.zeros(SIZE, bool)
    expected[10:40, 10:30] = expected[20:50, 20:60] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "neither polygons nor run lengths"), ([], "neither polygons"), ([[1, 2, 3, 4]], "three or more x, y"),
        ([[0, 0, 9, 9, 1e6, 3]], "far outside"), ({"size": [1, 1], "counts": [1]}, "of \\[1, 1\\] pixels"),
        ({"size": [*SIZE], "counts": [7]}, "add up to 7"), ({"size": [*SIZE], "counts": [-1, 5401]}, "no list of run"),
        ({"size": [*SIZE], "counts": "1"}, "add up to 1"), ({"size": [*SIZE], "counts": "\x00o"}, "run lengths"),
    ],
)  # fmt: skip
def test_what_pycocotools_would_not_check_is_refused(segmentation, words):
    with pytest.raises(ValueError, match=words):
        run_lengths(segmentation, SIZE)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("seen", [SIZE, (100, 150), (33, 50)])
def test_targets_are_torchvisions_of_the_resized_mask(mirrored, seen):
    mask = ellipse(SIZE, (28, 40), (20, 31)) & ~ellipse(SIZE, (28, 40), (8, 12))
    crop = Crop(Box(0, 0, *SIZE), seen, mirrored)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
    box, _ = crop.boxes(box)
    cells = in_box(packed(mask), crop, box[0], CELLS)
    whole = resized(mask[:, ::-1] if mirrored else mask, seen)
    sides = (box[0, 2:] - box[0, :2]).tolist() * 2
    for shift in ((0, 0, 0, 0), (-0.2, 0.1, 0.1, -0.15), (0.15, -0.1, 0, 0.2)):
        roi = (box + np.multiply(shift, sides)).clip(0, [seen[1], seen[0]] * 2).astype(np.float32)
        found = np.asarray(project(jnp.asarray(cells[None]), jnp.asarray(box), jnp.asarray(roi), 28))[0]
        error = np.abs(found - projected(whole, roi[0], 28))
        assert error.mean() < 0.004
        assert error.max() < 0.15


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mask_lies_where_its_pixels_lie_in_the_crop(mirrored):
    """The pixels of each column, and of each row, as masks of their own: cells say where the crop shows them."""
    crop = Crop(Box(10, 20, 40, 60), (80, 120), mirrored)  # twice as large
    box = np.array([0, 0, 120, 80], np.float32)
    for axis, place in ((1, 33), (1, 62), (0, 17), (0, 44)):
        mask = np.zeros(SIZE, bool)
        mask[(slice(None), place) if axis else place] = True
        found = in_box(packed(mask), crop, box, 112).astype(float)
        profile = found.sum(1 - axis)
        middle = (profile * (np.arange(112) + 0.5)).sum() / profile.sum()
        side = 120 if axis else 80
        pixels = middle * (side + 2) / 112 - 1  # cells cover a pixel more on each side
        expected = 2 * (place + 0.5 - (20 if axis else 10))
        expected = side - expected if mirrored and axis else expected
        # RoIAlign's corners are not aligned: half a pixel.
        assert pixels == pytest.approx(expected - 0.5, abs=0.3)


def test_what_the_crop_does_not_show_has_no_cells():
    mask = np.zeros(SIZE, bool)
    mask[:10] = True
    found = in_box(packed(mask), Crop(Box(30, 0, 30, 90), (30, 90)), np.array([5, 5, 25, 25], np.float32), 28)
    assert not found.any()
