"""COCO's polygons as label maps of VOC's classes."""

import json

import numpy as np
import pytest
from label_files import write_coco

from jaxcnn import UserError
from jaxcnn.config import VOID
from jaxcnn.data.sources import BadExample, eval_split, labelled_splits, make_source, split_sizes
from jaxcnn.data.sources.voc_segmentation import CLASSES

BUS, PERSON = CLASSES.index("bus"), CLASSES.index("person")


def test_objects_are_drawn_as_their_classes_and_void_where_two_overlap(tmp_path):
    source = make_source(write_coco(tmp_path), "val")
    assert source.class_names == CLASSES
    expected = np.zeros((12, 16), np.uint8)  # the kite is background
    expected[0:6, 0:8] = BUS
    expected[4:10, 6:14] = PERSON
    expected[4:6, 6:8] = VOID
    np.testing.assert_array_equal(source.read(0)["label_map"], expected)
    assert source[0]["image"].shape == (12, 16, 3)
    assert source.sizes().tolist() == [[12, 16]] * 2


def test_a_crowd_has_the_class_of_its_objects(tmp_path):
    labels = make_source(write_coco(tmp_path), "val").read(1)["label_map"]
    expected = np.zeros((12, 16), np.uint8)
    expected[:, :2] = PERSON
    np.testing.assert_array_equal(labels, expected)


def test_training_leaves_out_images_with_few_pixels_of_these_classes(tmp_path):
    name = write_coco(tmp_path)
    assert labelled_splits(name) == ["train", "val"]
    assert split_sizes(name) == {"train": 1, "val": 2}  # the crowd covers 24 pixels
    assert eval_split(name) == "val"
    assert make_source(name, "train").file(0) == "000000000001.jpg"


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [16, 12], "counts": [192]}, r"run lengths are of \[16, 12\] pixels, the image of \[12, 16\]"),
        ({"size": [12, 16], "counts": [0, 10**9]}, "add up to 1000000000, not 12 × 16"),
        ({"size": [12, 16], "counts": [-24, 216]}, "no list of run lengths"),
        ({"size": [12, 16], "counts": "text"}, "no list of run lengths"),
        ([[0, 0, 1, 1]], "no list of three or more"),
        ([[0, 0, 1e9, 0, 1, 1]], "far outside of the image"),
        ([], "neither polygons nor run lengths"),
    ],
)
def test_what_would_break_pycocotools_is_one_line_with_the_file(tmp_path, segmentation, words):
    source = make_source(write_coco(tmp_path, segmentation=segmentation), "val")
    with pytest.raises(BadExample, match=rf"example 1 \(.*000000000002\.jpg\): its annotations are damaged .*{words}"):
        source.read(1)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no annotations/instances_SPLIT\.json"):
        make_source(f"coco_segmentation:{tmp_path}")
    name = write_coco(tmp_path)
    with pytest.raises(UserError, match="no split 'test': its splits are train, val"):
        make_source(name, "test")
    file = tmp_path / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "../other.jpg"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"names '\.\./other\.jpg'"):
        make_source(name, "val")
    del content["annotations"][0]["segmentation"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"instances_val2017\.json \(it lacks 'segmentation'\)"):
        make_source(name, "val")
