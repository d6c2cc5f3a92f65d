"""Boxes follow their image: resized, cropped, mirrored and padded; and what is said of them before training."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from box_files import Thing, write_voc_boxes

from jaxcnn import UserError
from jaxcnn.config import base_config, validate
from jaxcnn.configfile import set_key
from jaxcnn.data.batches import Slice
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.expected import Network
from jaxcnn.data.images.canvases import scaled
from jaxcnn.data.images.decode import Box, Crop

NAMES = ("a", "b", "c")  # a class has one box in an image, so that a label names it
BOXES = {1: (10, 20, 60, 50), 2: (0, 5, 90, 12), 3: (70, 40, 78, 58)}
THINGS = [Thing("a", BOXES[1]), Thing("b", BOXES[2], difficult=True), Thing("c", BOXES[3])]
SPLITS = {
    "train": [((60, 100), THINGS), ((100, 90), THINGS[:2]), ((60, 100), []), ((64, 97), THINGS)],
    "test": [((60, 100), THINGS), ((120, 80), []), ((61, 99), THINGS[2:])],
}
ROOM = 5


class Spec(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any


def targets(_: Any) -> dict[str, Spec]:
    flags = {name: Spec((ROOM,), bool) for name in ("valid", "difficult", "crowd")}
    sizes = {name: Spec((2,), np.int32) for name in ("sizes", "original_sizes")}
    return {"boxes": Spec((ROOM, 4), np.float32), "labels": Spec((ROOM,), np.int32), **flags, **sizes}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return write_voc_boxes(tmp_path_factory.mktemp("boxes") / "VOC", SPLITS, NAMES)


def dataset(name: str, training: bool = True, part: Slice | None = None, network: Any = None, **values: Any) -> Any:
    config = base_config()
    settings = {"data.name": name, "global_batch_size": "2", "steps": "1"}
    for key, value in (settings | {k.replace("__", "."): v for k, v in values.items()}).items():
        set_key(config, key, value)
    validate(config)
    return Dataset(config, part or Slice(), training=training, targets=targets, network=network)


def rows_of(batches: Any) -> list[dict[str, np.ndarray]]:
    """The rows of batches that count."""
    rows = [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(len(batch["mask"]))]
    return [row for row in rows if row["mask"]]


def origin(row: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (scale, start), of x and y each: where a point of the row lies in the original, as its pixels say."""
    height, width = row["sizes"]
    image, found = row["image"][:height, :width].astype(float), []
    for line, count in ((image[height // 2, :, 0], width), (image[:, width // 2, 1], height)):
        inner = np.arange(count)[2:-2]  # at an edge, interpolation leans on what is inside
        slope, start = np.polyfit(inner + 0.5, line[inner] + 0.5, 1)
        found.append((slope, start))
    scale, start = np.array(found).T
    return scale, start


AUGMENTED = [
    {"data__augment": "none"},
    {"data__augment": "flip", "data__min_size": "40,56,64", "data__max_size": "90"},
    {"data__augment": "rescale(0.4,2),flip", "data__image_size": "48,72"},
    {"data__augment": "rescale(0.4,2),flip", "data__min_size": "72", "data__max_size": "72", "data__image_size": "72"},
    {"data__augment": "random_area(0.2,1),flip", "data__image_size": "64"},
]


@pytest.mark.parametrize("values", AUGMENTED, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "antialias"])
def test_boxes_are_where_the_pixels_of_their_objects_are(voc, values, interpolation):
    data = dataset(voc, data__interpolation=interpolation, **values)
    mirrored, lost = set(), 0
    for row in rows_of(data.train_batches(0, 30)):
        shape, things = SPLITS["train"][row["example"]]
        height, width = row["sizes"]
        assert not row["image"][height:].any()
        assert not row["image"][:, width:].any()
        assert row["original_sizes"].tolist() == list(shape)
        (scale, start), far = origin(row), np.array([width, height])
        ends = np.sort([start, start + scale * far], axis=0)  # what is seen of the original, in x and y
        count = int(row["valid"].sum())
        assert row["valid"][:count].all()
        assert not row["boxes"][count:].any()
        assert not row["labels"][count:].any()
        for box, label, difficult in zip(*(row[k][:count] for k in ("boxes", "labels", "difficult")), strict=True):
            assert (box[2:] > box[:2]).all()
            assert (box[:2] >= 0).all()
            assert (box[2:] <= far).all()
            corners = np.sort(start + scale * box.reshape(2, 2), axis=0)
            wanted = np.clip(np.reshape(BOXES[label], (2, 2)), *ends)
            assert np.abs(corners - wanted).max() < 1, "less than a pixel of the original"
            assert difficult == (label == 2)
        hidden = len(things) - count
        assert count > 0 or hidden == len(things)
        lost += hidden
        mirrored.add(bool(scale[0] < 0))
    assert mirrored == ({False} if values["data__augment"] == "none" else {True, False})
    assert lost if "(" in values["data__augment"] else not lost


def test_evaluation_has_every_image_once_and_the_truth_as_annotated(voc):
    data = dataset(voc, data__min_size="90", data__max_size="140")
    rows = {int(row["example"]): row for row in rows_of(data.eval_batches())}
    assert [rows[i]["sizes"].tolist() for i in range(3)] == [[84, 140], [135, 90], [86, 140]]
    assert (
        [rows[i]["original_sizes"].tolist() for i in range(3)]
        == data.eval.pixels.tolist()
        == [[60, 100], [120, 80], [61, 99]]
    )
    for i, row in rows.items():
        truth, count = data.eval.truth(i), int(row["valid"].sum())
        assert row["original_sizes"].tolist() == data.eval.pixels[i].tolist()
        assert count == len(SPLITS["test"][i][1]) == len(truth["boxes"])
        ratio = np.tile((row["sizes"] / row["original_sizes"])[::-1], 2)
        np.testing.assert_allclose(row["boxes"][:count], truth["boxes"] * ratio, rtol=1e-6)
        np.testing.assert_array_equal(row["labels"][:count], truth["labels"])
    assert data.eval.truth(0)["boxes"].tolist() == [list(box) for box in BOXES.values()]
    assert data.eval.truth(0)["difficult"].tolist() == [False, True, False]
    assert data.eval.class_names == ("background", *NAMES)
    assert data.input["max_size"] == 140


# Computed by torchvision 0.29.1's GeneralizedRCNNTransform(64, 100): size, its box, and what they become.
TRANSFORMED = [
    ((51, 65), (13.685, 22.731, 42.278, 36.145), (64, 81), (17.0536, 28.5252, 52.6849, 45.3584)),
    ((112, 86), (15.939, 43.125, 20.837, 90.279), (83, 64), (11.8616, 31.9587, 15.5066, 66.9032)),
]  # fmt: skip


@pytest.mark.parametrize(("image", "box", "size", "moved"), TRANSFORMED)
def test_image_and_boxes_are_brought_to_the_size_that_torchvisions_detection_gives_them(image, box, size, moved):
    assert scaled(image, 64, 100) == size
    boxes, seen = Crop(Box(0, 0, *image), size).boxes(np.array([box]))
    np.testing.assert_allclose(boxes[0], moved, atol=1e-3)
    assert seen.all()


def test_of_several_sides_one_is_drawn_for_each_example_and_epoch_and_evaluation_has_the_largest(voc):
    data = dataset(voc, data__min_size="32,48,64")
    reader = data.train_readers[0]
    example = int(reader.members[0])
    sides = [min(reader.train(epoch, example)["sizes"]) for epoch in range(30)]
    assert {*sides} == {32, 48, 64}
    assert sides == [min(reader.train(epoch, example)["sizes"]) for epoch in range(30)]
    assert {min(row["sizes"]) for row in rows_of(data.eval_batches())} == {64}
    assert data.input["min_size"] == 64


def test_canvases_are_few_multiples_of_32_that_hold_the_largest_side(voc):
    data = dataset(voc, data__min_size="32,72", data__max_size="110")
    assert 1 <= len(data.buckets) <= 4
    assert {*data.buckets} == {(96, 128), (96, 96)}
    assert {*data.eval_buckets} == {(96, 128), (128, 96)}
    assert data.input["canvas_multiple"] == 32


def test_large_scale_jitter_crops_and_pads_to_one_canvas(voc):
    sides: dict[str, Any] = {"data__min_size": "96", "data__max_size": "96", "data__image_size": "96"}
    data = dataset(voc, data__augment="rescale(0.1,2),flip", **sides)
    rows = [data.train_readers[0].train(epoch, 0) for epoch in range(60)]
    assert {row["image"].shape for row in rows} == {(96, 96, 3)}
    longest = np.array([max(row["sizes"]) for row in rows])
    assert longest.min() < 20, "a tenth of 96 at least"
    assert (longest == 96).mean() > 0.3, "half of the factors are more than 1"
    scales = np.array([abs(origin(row)[0]).mean() for row in rows if max(row["sizes"]) > 30])
    assert 0.5 < scales.min() * 96 / 100 < 0.6, "twice the size in which the longer side is 96"


def test_more_boxes_than_there_is_room_for_are_refused_with_the_image_that_has_them(tmp_path):
    many = [Thing("a", (i, i, i + 5, i + 5)) for i in range(ROOM + 1)]
    splits = {"train": [((60, 100), THINGS), ((60, 100), many)], "test": [((60, 100), THINGS)]}
    name = write_voc_boxes(tmp_path / "VOC", splits, NAMES)
    words = r"train1\.jpg\) has 6 boxes, more than config\.task\.max_boxes=5: set it to 6 or more"
    with pytest.raises(UserError, match=words):
        dataset(name)
    assert dataset(name, training=False).eval.most == 3


def test_an_image_that_no_canvas_holds_is_refused_before_it_is_read(voc):
    with pytest.raises(
        UserError, match=r"test1\.jpg\) needs 120×80 pixels, more than each canvas of \(100, 100\): give"
    ):
        dataset(voc, data__eval_size="100")
    with pytest.raises(UserError, match=r"train0\.jpg\) needs 60×100 pixels"):
        dataset(voc, data__image_size="96", data__eval_size="128")
    assert dataset(voc, data__image_size="96", data__eval_size="128", data__augment="rescale(1,1)").buckets == (
        (96, 96),
    )


def test_a_broken_image_is_skipped_and_its_row_has_the_sizes_of_its_canvas(tmp_path):
    name = write_voc_boxes(tmp_path / "VOC", SPLITS, NAMES)
    (tmp_path / "VOC/JPEGImages/test1.jpg").write_bytes(b"")
    data = dataset(name, training=False, data__on_error="skip")
    batches = list(data.eval_batches())
    assert sum(batch["mask"].sum() for batch in batches) == 2
    assert all((batch["original_sizes"] > 0).all() for batch in batches)
    assert data.eval_broken == 1


def test_boxes_without_an_area_are_counted_in_one_line(tmp_path, capsys):
    flat = Thing("b", (3, 3, 4, 4))  # one pixel, whose corners lie in one row
    name = write_voc_boxes(
        tmp_path / "VOC", {"train": [((60, 100), [*THINGS, flat])] * 2, "test": SPLITS["test"]}, NAMES
    )
    dataset(name)
    words = f"boxes      2 of 8 boxes of {name}, split 'train', have no area and are left out\n"
    assert capsys.readouterr().err == words
    dataset(name, part=Slice(1, 2))
    assert capsys.readouterr().err == "", "one process says it"


def test_a_box_that_rounds_to_no_area_is_not_valid():
    crop = Crop(Box(0, 0, 100, 1e6), (100, 1_000_000))
    _, seen = crop.boxes(np.array([[999_999.99, 0, 1e6, 100], [999_999, 0, 1e6, 100]]))
    assert seen.tolist() == [False, True]


def test_labels_become_those_of_a_network_and_categories_stay_the_data_sets_own(voc):
    network = Network("net", 3, ("background", "c", "n/a", "b", "a"))
    data = dataset(voc, network=network)
    assert data.eval.class_names == network.classes
    assert data.eval.truth(0)["labels"].tolist() == [4, 3, 1]
    assert list(data.eval.category_ids) == [0, 3, -1, 2, 1]
    (row,) = (row for row in rows_of(data.eval_batches()) if row["example"] == 0)
    assert row["labels"].tolist() == [4, 3, 1, 0, 0]
