"""COCO's masks: read where a network needs them, in every form of the files, in the order of the boxes."""

import pickle
from typing import Any

import numpy as np
import pytest
from box_files import write_voc_boxes
from pycocotools import mask as coco
from tiny_masks import disc, rectangle, text_of, write_coco

from jaxcnn import UserError
from jaxcnn.data.sources import BadExample, make_source

SIZE = (40, 50)
ROUND = disc(SIZE, (20, 30), 9)


def runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's crowds have it."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"size": [*mask.shape], "counts": counts[counts > 0].tolist() if counts[0] else counts.tolist()}


@pytest.fixture
def files(tmp_path):
    picture = np.full((*SIZE, 3), 90, np.uint8)
    whole = (21.0, 11.0, 18.0, 18.0)
    things = [
        (2, (5.0, 4.0, 10.0, 20.0), rectangle(5, 4, 10, 20)), (1, (9.0, 9.0, 0.0, 4.0), []), (1, whole, text_of(ROUND)),
        (1, whole, runs(ROUND)),
    ]  # fmt: skip
    damaged = [(1, whole, {"size": [1, 2], "counts": [2]})]
    return write_coco(tmp_path, {"val": [(picture, things), (picture, []), (picture, damaged)]}, ("ball", "book"))


def test_masks_are_those_of_the_boxes_that_are_kept(files):
    source: Any = make_source(files, "val")
    assert "masks" in source.targets
    assert "masks" not in source.read(0), "a detector of boxes reads none"
    masked = pickle.loads(pickle.dumps(source.with_masks()))
    example = masked.read(0)
    found = [coco.decode(mask).astype(bool) for mask in example["masks"]]
    assert (masked.dropped, len(found), len(example["boxes"])) == (1, 3, 3)
    expected = np.zeros(SIZE, bool)
    expected[4:24, 5:15] = True
    for mask, whole in zip(found, (expected, ROUND, ROUND), strict=True):
        np.testing.assert_array_equal(mask, whole)
    assert example["crowd"].tolist() == [False, False, True]
    assert masked.read(1)["masks"] == []


def test_a_damaged_mask_is_a_bad_example_of_its_image(files):
    source: Any = make_source(files, "val")
    source.read(2)
    with pytest.raises(
        BadExample, match=r"3\.png\): a mask in .*instances_val2017\.json is damaged \(run lengths are of"
    ):
        source.with_masks().read(2)


def test_a_source_of_boxes_alone_says_so(tmp_path):
    name = write_voc_boxes(tmp_path / "voc", {"train": [((20, 30), [])]}, ("a",))
    source: Any = make_source(name, "train")
    with pytest.raises(UserError, match=r"has no masks of its objects: take coco:DIR, or a network of boxes alone"):
        source.with_masks()


def test_synthetic_blocks_fill_their_boxes():
    source: Any = make_source("synthetic_boxes:3:9")
    assert "masks" not in source.read(0)
    example = source.with_masks().read(0)
    assert [int(coco.area(mask)) for mask in example["masks"]] == example["area"].tolist()
    for mask, (x1, y1, x2, y2) in zip(example["masks"], example["boxes"].astype(int), strict=True):
        assert coco.decode(mask)[y1:y2, x1:x2].all()
