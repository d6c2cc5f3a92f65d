"""Masks on images against the definition of torchvision's pasting, wherever the box lies."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torchvision_masks import pasted

from jaxcnn.tasks.pasting import paste, run_lengths

SIZE = (31, 43)
EDGE = st.floats(-9, 50, width=32)


@given(st.integers(0, 99), EDGE, EDGE, st.floats(0, 60, width=32), st.floats(0, 60, width=32))
@settings(max_examples=25, deadline=None)
def test_a_mask_is_pasted_as_torchvision_does(seed, x, y, width, height):
    mask = np.random.default_rng(seed).random((7, 7)).astype(np.float32)
    box = np.array([x, y, x + width, y + height], np.float32)
    expected = pasted(mask, box, SIZE)
    found, sure = paste(mask, box, SIZE), np.abs(expected - 0.5) > 1e-5
    np.testing.assert_array_equal(found[sure], expected[sure] > 0.5)


@pytest.mark.parametrize("box", [(-90, 3, -60, 20), (3, 90, 20, 99), (60, -50, 70, -40)])
def test_a_box_outside_of_the_image_has_no_pixels(box):
    assert not paste(np.ones((28, 28), np.float32), np.array(box, np.float32), SIZE).any()


def test_a_full_mask_fills_its_box_but_for_the_fading_border():
    found = paste(np.ones((28, 28), np.float32), np.array([5, 4, 35, 24], np.float32), SIZE)
    assert found[5:23, 6:34].all()
    assert found.sum() <= 31 * 21


def test_run_lengths_are_cocos():
    mask = paste(np.ones((28, 28), np.float32), np.array([5, 4, 35, 24], np.float32), SIZE)
    found: Any = run_lengths(mask)
    assert found["size"] == list(SIZE)
    assert isinstance(found["counts"], str)
    np.testing.assert_array_equal(coco.decode(found), mask)
