"""VOC's and COCO's annotations, and what is wrong with them in one line."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode import png

from jaxcnn import UserError
from jaxcnn.data.sources import BadExample, labelled_splits, make_source, split_sizes
from jaxcnn.data.sources.voc import read_xml

HEIGHT, WIDTH = 20, 30


def image() -> bytes:
    return png(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def thing(name: str, *corners: object, difficult: int = 0) -> str:
    edges = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"  # as VOC's people have
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{edges}</bndbox>{part}</object>"


def xml(*things: str, height: object = HEIGHT) -> str:
    size = f"<size><width>{WIDTH}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>elsewhere.jpg</filename>{size}{''.join(things)}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b", "c"):
        (root / f"JPEGImages/{name}.jpg").write_bytes(image())
    dog, cat = thing("dog", 1, 1, 30, 20), thing("cat", "5.5", 4, 9, 8, difficult=1)
    (root / "Annotations/a.xml").write_text(xml(dog, cat, thing("dog", 7, 7, 7, 7), thing("dog", 0, 3, 31, 21)))
    (root / "Annotations/b.xml").write_text(xml())
    lists = {"train": "a\nb\n", "test": "c\n", "dog_train": "a  1\nb -1\n"}
    for name, text in lists.items():
        (root / f"ImageSets/Main/{name}.txt").write_text(text)
    return root


def test_voc_counts_pixels_from_one_and_the_source_corners_from_zero(voc):
    source: Any = make_source(f"voc:{voc.parents[1]}", "train")
    example = source.read(0)
    assert example["boxes"].tolist() == [[0, 0, 30, 20], [4.5, 3, 9, 8], [0, 2, 30, 20]]
    assert example["boxes"].dtype == np.float32
    assert [source.class_names[label] for label in example["labels"]] == ["dog", "cat", "dog"]
    assert example["difficult"].tolist() == [False, True, False]
    assert example["area"].tolist() == [600, 22.5, 540]
    assert (source.dropped, source.most, source.num_classes) == (1, 3, 21)
    assert source[0]["image"].shape == (HEIGHT, WIDTH, 3)
    assert source.sizes().tolist() == [[HEIGHT, WIDTH]] * 2


def test_an_image_without_objects_is_an_example(voc):
    example = pickle.loads(pickle.dumps(make_source(f"voc:{voc}", "train"))).read(1)
    assert example["boxes"].shape == (0, 4)
    assert example["labels"].shape == (0,)


def test_splits_are_the_lists_but_those_of_one_class(voc):
    assert split_sizes(f"voc:{voc}") == {"test": 1, "train": 2}
    assert labelled_splits(f"voc:{voc}") == ["train"]


def test_a_data_set_may_list_classes_of_its_own(voc):
    (voc / "classes.txt").write_text("cat\ndog\n")
    source = make_source(f"voc:{voc}", "train")
    assert source.class_names == ("background", "cat", "dog")
    assert source.read(0)["labels"].tolist() == [2, 1, 2]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml(thing("unicorn", 1, 1, 9, 9)), r"a\.xml has an object of class 'unicorn'.*classes\.txt"),
        (xml(thing("dog", 40, 1, 50, 9)), r"a\.xml has a box 39, 0, 50, 9 outside of its image of 20×30 pixels: "),
        (xml(thing("dog", 20, 1, 10, 9)), r"a\.xml has a box 19, 0, 10, 9 with its corners in the wrong order: "),
        (xml(thing("dog", "nan", 1, 50, 9)), r"a\.xml has a box that is not four finite numbers: "),
        (xml(thing("dog", "one", 1, 50, 9)), r"a\.xml \(its bndbox/xmin is 'one', which is no number\)"),
        (xml("<object><name>dog</name></object>"), r"a\.xml \(<object> has no bndbox/xmin\)"),
        (xml(height="inf"), r"a\.xml says that its image has inf×30 pixels"),
        (xml(height=1e12), r"a\.xml says that its image has 1e\+12×30 pixels"),
        (BOMB, r"a\.xml \(it declares a document type.*\): replace the file"),
        ("<annotation>", r"a\.xml \(it is no XML: .*\): replace the file"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', r"a\.xml \(it is no XML: .*\): replace the file"),
    ],
)
def test_what_is_wrong_with_an_annotation_is_said_with_its_file(voc, text, message):
    (voc / "Annotations/a.xml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        make_source(f"voc:{voc}", "train")
    assert "\n" not in str(error.value)


def test_what_is_missing_in_a_voc_folder_is_named(voc):
    with pytest.raises(UserError, match=r"there is no .*c\.xml, which a list names"):
        make_source(f"voc:{voc}", "test")
    with pytest.raises(UserError, match="has no split 'val': its lists are test, train"):
        make_source(f"voc:{voc}", "val")
    with pytest.raises(UserError, match=r"has no ImageSets/Main.*write voc:DIR"):
        make_source(f"voc:{voc}/JPEGImages", "train")
    (voc / "ImageSets/Main/train.txt").write_text("../a\n")
    with pytest.raises(UserError, match=r"names '\.\./a', which is no name of an image"):
        make_source(f"voc:{voc}", "train")


def test_an_image_of_another_size_than_annotated_is_a_bad_example(voc):
    (voc / "Annotations/a.xml").write_text(xml(height=25))
    with pytest.raises(BadExample, match=r"a\.jpg\): it has 20×30 pixels, its annotation says 25×30"):
        make_source(f"voc:{voc}", "train").read(0)


def test_utf_16_hides_no_document_type():
    with pytest.raises(ValueError, match="document type"):
        read_xml(('<?xml version="1.0" encoding="utf-16"?>' + BOMB).encode("utf-16"))


def annotations() -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (7, 3)]
    rows = [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1.5, 2, 10, 5], "iscrowd": 0, "area": 33.5},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 30, 20], "iscrowd": 1, "area": 100},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [4, 4, 0, 3], "iscrowd": 0, "area": 0},
    ]
    return {"images": images, "annotations": rows, "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "bike"}]}


def coco(root: Path, data: Any) -> str:
    for folder in ("annotations", "val2017"):
        (root / folder).mkdir(exist_ok=True)
    for number in (7, 3):
        (root / f"val2017/{number}.jpg").write_bytes(image())
    (root / "annotations/instances_val2017.json").write_text(json.dumps(data))
    return f"coco:{root}"


def test_cocos_labels_have_no_gaps_and_its_boxes_have_corners(tmp_path):
    name = coco(tmp_path, annotations())
    source: Any = make_source(name, "val")
    assert split_sizes(name) == {"val": 2}
    assert source.class_names == ("background", "bike", "dog")
    assert list(source.category_ids) == [0, 2, 18]
    assert list(source.numbers) == [7, 3]
    example = source.read(0)
    assert example["boxes"].tolist() == [[1.5, 2, 11.5, 7], [0, 0, 30, 20]]
    assert example["labels"].tolist() == [2, 1]
    assert example["crowd"].tolist() == [False, True]
    assert example["area"].tolist() == [33.5, 100]
    assert (source.dropped, source.most, len(source.read(1)["boxes"])) == (1, 2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["annotations"][0].update(category_id=5),
            "annotation 1 has category_id 5, which the file does not",
        ),
        (lambda d: d["annotations"][0].update(image_id=5), "annotation 1 has image_id 5, which the file does not list"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), r"entry 0 of annotations has bbox \[1, 2, 3\]"),
        (
            lambda d: d["annotations"][0].update(bbox=[40, 2, 3, 4]),
            "annotation 1 has a box 40, 2, 43, 6 outside of its",
        ),
        (lambda d: d["annotations"][0].update(area="large"), "entry 0 of annotations has area 'large'"),
        (lambda d: d["annotations"][0].update(area=-1), "entry 0 of annotations has area -1"),
        (lambda d: d["annotations"][0].update(iscrowd="no"), "entry 0 of annotations has iscrowd 'no'"),
        (lambda d: d["annotations"][0].update(bbox=[9, 2, -3, 4]), "annotation 1 has a box .* in the wrong order"),
        (lambda d: d["categories"][0].update(id=-1), "entry 0 of categories has id -1"),
        (lambda d: d["images"][0].update(file_name="8.jpg"), r"there is no .*8\.jpg, which .* lists"),
        (lambda d: d["images"][0].update(file_name="../7.jpg"), "has an image '../7.jpg', which is no name of a file"),
        (lambda d: d["images"][0].update(width=0), "image 7, says that its image has 20×0 pixels"),
        (lambda d: d["images"][0].update(id=3), "two entries of images have one id"),
        (lambda d: d.pop("categories"), "it has no list of categories"),
    ],
)
def test_what_is_wrong_with_cocos_file_is_said_in_one_line(tmp_path, change, message):
    data = annotations()
    change(data)
    with pytest.raises(UserError, match=message) as error:
        make_source(coco(tmp_path, data), "val")
    assert "instances_val2017.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_two_classes_of_one_name_and_a_split_without_images_are_refused(tmp_path):
    data = annotations()
    data["categories"][1]["name"] = "dog"
    with pytest.raises(UserError, match="split 'val', has two classes called 'dog'"):
        make_source(coco(tmp_path, data), "val")
    with pytest.raises(UserError, match="split 'val', lists no images"):
        make_source(coco(tmp_path, annotations() | {"images": [], "annotations": []}), "val")


def test_a_folder_without_cocos_annotations_is_none(tmp_path):
    with pytest.raises(UserError, match=r"has no annotations/instances_SPLIT\.json.*write coco:DIR"):
        make_source(f"coco:{tmp_path}", "val")
    name = coco(tmp_path, annotations())
    with pytest.raises(UserError, match="has no split 'train': its splits are val"):
        make_source(name, "train")
    (tmp_path / "annotations/instances_train2017.json").write_text("[")
    with pytest.raises(UserError, match=r"cannot read the annotations .*instances_train2017\.json"):
        make_source(name, "train")
