"""TFDS data sets with boxes: the same as the makers' own files."""

import pickle
from typing import Any

import numpy as np
import pytest
from box_files import Thing, coordinates, write_voc_boxes
from encode import png

from jaxcnn import UserError
from jaxcnn.data.sources import describe_sources, eval_split, make_source
from jaxcnn.data.sources.voc_segmentation import CLASSES

HEIGHT, WIDTH = 37, 53  # by which no share of theirs is a short number
IMAGE = png(coordinates(HEIGHT, WIDTH))
BOXES = [(7, 11, 30, 31), (0, 0, 53, 37), (9, 3, 14, 8)]


def features(names: Any, flag: str, **more: Any) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    inner = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(**names), flag: np.bool_}
    found = {"image": tfds.features.Image(), "image/filename": tfds.features.Text()}
    return found | {"objects": tfds.features.Sequence(inner | more)}


def example(corners: Any, labels: Any, **more: Any) -> tuple[dict[str, Any], int]:
    """An image with boxes x1, y1, x2, y2 in the numbers of TFDS's maker."""
    shares = np.reshape(corners, (-1, 4)).astype(np.float64) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    boxes = {"objects/bbox": shares[:, [1, 0, 3, 2]].astype(np.float32), "objects/label": np.array(labels, int)}
    return {"image": IMAGE, "image/filename": b"a.jpg", **boxes, **more}, 0


def test_voc_is_what_its_own_files_say(write_tfds, tmp_path):
    dog, person = CLASSES.index("dog"), CLASSES.index("person")
    one_based = [(x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in BOXES]
    flat = (5, 5, 5, 20)  # its corners lie in one column
    labels, difficult = [dog - 1, person - 1, dog - 1, 0], {"objects/is_difficult": np.array([0, 1, 0, 0])}
    bare = example([], [], **{"objects/is_difficult": np.zeros(0, int)})
    data_dir = write_tfds(
        {"test": [example([*one_based, flat], labels, **difficult), bare]},
        features({"names": list(CLASSES[1:])}, "is_difficult"), folder="voc/2007/5.0.0",
    )  # fmt: skip
    found: Any = make_source("tfds_detection:voc/2007", "test", data_dir=data_dir)
    things = [Thing(name, box, name == "person") for name, box in zip(("dog", "person", "dog"), BOXES, strict=True)]
    name = write_voc_boxes(tmp_path / "VOC", {"test": [((HEIGHT, WIDTH), things), ((HEIGHT, WIDTH), [])]}, CLASSES[1:])
    own: Any = make_source(name, "test")
    assert (found.class_names, found.dropped, found.most) == (own.class_names, 1, 3)
    assert list(found.category_ids) == list(own.category_ids)
    for i in range(2):
        for key, value in own[i].items():
            np.testing.assert_array_equal(found[i][key], value, err_msg=key)
            assert found[i][key].dtype == value.dtype
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).truth(0)["boxes"], np.array(BOXES, np.float32))


def coco(write_tfds, splits):
    import tensorflow_datasets as tfds

    more = {"area": np.int64, "id": np.int64}
    found = features({"num_classes": 80}, "is_crowd", **more) | {"image/id": tfds.features.Scalar(np.int64)}
    return write_tfds(splits, found, folder="coco/2017/1.1.0")


def test_coco_has_its_own_numbers_of_images_and_categories_and_tests_without_objects(write_tfds):
    more = {
        "objects/is_crowd": np.array([0, 1]), "objects/area": np.array([300, 90]), "objects/id": np.array([1, 2]),
        "image/id": np.array([480023]),
    }  # fmt: skip
    bare = {key: value[:0] for key, value in more.items()} | {"image/id": np.array([7])}
    splits = {"train": [example(BOXES[:2], [0, 79], **more)], "test": [example([], [], **bare)]}
    data_dir = coco(write_tfds, splits | {"validation": splits["train"]})
    source: Any = make_source("tfds_detection:coco", "train[:1]", data_dir=data_dir)
    assert list(source.numbers) == [480023]
    assert source.truth(0)["boxes"].tolist() == [list(box) for box in BOXES[:2]]
    assert source.truth(0)["crowd"].tolist() == [False, True]
    assert source.truth(0)["area"].tolist() == [300, 90]
    assert source.truth(0)["labels"].tolist() == [1, 80]
    assert [source.category_ids[n] for n in (0, 1, 12, 80)] == [0, 1, 13, 90]
    assert source.sizes().tolist() == [[HEIGHT, WIDTH]]
    assert eval_split("tfds_detection:coco", data_dir) == "validation", "nobody knows the objects of the test"


def test_a_set_of_boxes_is_listed_as_one_and_is_no_set_of_labelled_images(write_tfds):
    more = {"objects/is_difficult": np.array([0])}
    data_dir = write_tfds({"train": [example(BOXES[:1], [1], **more)]}, features({"names": ["a", "b"]}, "is_difficult"))
    (row,) = (row for row in describe_sources(data_dir) if "mini" in row["name"])
    assert (row["name"], row["num_classes"], row["status"]) == ("tfds_detection:mini:1.0.0", 3, "ready")
    with pytest.raises(UserError, match=r"not 'image' and 'label': write tfds_detection:mini$"):
        make_source("tfds:mini", data_dir=data_dir)


def test_what_is_no_set_of_boxes_is_refused(write_tfds):
    data_dir = write_tfds({"train": [(IMAGE, 0)]})
    with pytest.raises(UserError, match="features image, label, not 'image' and 'objects' with 'bbox' and 'label'"):
        make_source("tfds_detection:mini", data_dir=data_dir)


def test_a_damaged_image_or_box_is_named(write_tfds):
    more, names = {"objects/is_difficult": np.array([0])}, features({"names": ["a", "b"]}, "is_difficult")
    broken = example(BOXES[:1], [1], **more | {"image": b"no image"})
    outside, unknown = example([(60, 1, 90, 9)], [1], **more), example(BOXES[:1], [2], **more)
    data_dir = write_tfds({"train": [broken], "test": [outside], "val": [unknown]}, names)
    with pytest.raises(UserError, match=r"split 'val', example 0 cannot be read \(an object has label 2, not 0 … 1\)"):
        make_source("tfds_detection:mini", "val", data_dir=data_dir)
    with pytest.raises(UserError, match=r"tfds_detection:mini, split 'train', example 0 cannot be read"):
        make_source("tfds_detection:mini", "train", data_dir=data_dir)
    with pytest.raises(UserError, match=r"split 'test', example 0 has a box 60, 1, 90, 9 outside of its image"):
        make_source("tfds_detection:mini", "test", data_dir=data_dir)
