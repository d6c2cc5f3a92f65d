"""Anchors against torchvision's and py-faster-rcnn's."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden

from jaxcnn.models.anchors import cell_anchors, paper_anchors, spread
from jaxcnn.models.grid import Grid, Map
from jaxcnn.models.rpn import make_anchors

DATA = golden("detection_ops.npz")


@pytest.mark.parametrize("case", ["fpn_128x192", "single_level_3x3", "indivisible"])
def test_the_anchors_of_a_pyramid_are_torchvisions(case):
    data = {
        key: DATA[f"anchors/{case}/{key}"] for key in ("sizes", "ratios", "image_hw", "grids", "cell", "every_17th")
    }
    for size, ratio, cell in zip(data["sizes"], data["ratios"], data["cell"], strict=True):
        np.testing.assert_array_equal(cell_anchors(size, ratio), cell)
    grids = [(int(rows), int(columns)) for rows, columns in data["grids"]]
    height, width = (int(side) for side in data["image_hw"])
    cells = [cell_anchors(size, ratio) for size, ratio in zip(data["sizes"], data["ratios"], strict=True)]
    levels = [Map(jnp.zeros((1, *grid, 1)), Grid()) for grid in grids]
    anchors = np.asarray(make_anchors(levels, cells, (height, width), exact=False).boxes)
    assert len(anchors) == DATA[f"anchors/{case}/count"]
    np.testing.assert_array_equal(anchors[::17], data["every_17th"])
    np.testing.assert_array_equal(anchors.sum(0, np.float64), DATA[f"anchors/{case}/sum"])


def test_the_papers_anchors_are_its_authors():
    np.testing.assert_array_equal(paper_anchors(), DATA["inclusive/anchors_9"])
    np.testing.assert_array_equal(paper_anchors((4, 8, 16, 32)), DATA["inclusive/anchors_12"])


def test_anchors_lie_row_by_row_and_a_cell_keeps_its_own_together():
    anchors = np.asarray(spread(paper_anchors(), (2, 3), (16, 8))).reshape(2, 3, 9, 4)
    np.testing.assert_array_equal(anchors[1, 2], paper_anchors() + np.array([16, 16, 16, 16], np.float32))
    np.testing.assert_array_equal(anchors[1, 0], paper_anchors() + np.array([0, 16, 0, 16], np.float32))
