"""Images within canvases: all of each, with its label map, its size, and void around it; and joint augmentation."""

from typing import Any

import numpy as np
import pytest
from label_files import save, write_masks

from jaxcnn import UserError
from jaxcnn.config import VOID, base_config, validate
from jaxcnn.configfile import set_key
from jaxcnn.data.dataset import Dataset
from jaxcnn.tasks import create_task

SHAPES = {"train": [(12, 16), (16, 12), (9, 20), (12, 16), (11, 11)], "val": [(8, 20), (20, 8), (8, 19), (15, 15)]}


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """`masks:DIR` of images in which row and column are written: red and the label are the row, green the column."""
    root = tmp_path_factory.mktemp("padded")
    name = write_masks(root, SHAPES)
    (root / "classes.txt").write_text("".join(f"row {row}\n" for row in range(20)))
    for split, shapes in SHAPES.items():
        for i, (height, width) in enumerate(shapes):
            rows, columns = np.mgrid[:height, :width].astype(np.uint8)
            save(root / f"images/{split}/{i:02}.bmp", np.stack([10 * rows, 10 * columns, 0 * rows + 9], -1))
            save(root / f"masks/{split}/{i:02}.png", rows)
    return name


def dataset(name: str, training: bool = True, **values: Any) -> Dataset:
    config = base_config("segmentation")
    settings = {"data.name": name, "global_batch_size": "2", "steps": "1"}
    for key, value in (settings | {k.replace("__", "."): v for k, v in values.items()}).items():
        set_key(config, key, value)
    validate(config)
    return Dataset(config, training=training, targets=create_task(config).targets)


def rows_of(batches: Any) -> list[dict[str, np.ndarray]]:
    """The rows of batches that count."""
    rows = [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(len(batch["mask"]))]
    return [row for row in rows if row["mask"]]


@pytest.mark.parametrize("buckets", ["()", "((8, 20), (20, 20))"])
def test_evaluation_has_every_image_once_unchanged_within_the_smallest_canvas(masks, buckets):
    data = dataset(masks, training=False, data__buckets=buckets)
    rows = rows_of(data.eval_batches())
    assert sorted(int(row["example"]) for row in rows) == [0, 1, 2, 3]
    for row in rows:
        height, width = SHAPES["val"][row["example"]]
        expected = data.eval[int(row["example"])]["image"]
        assert row["sizes"].tolist() == [height, width]
        np.testing.assert_array_equal(row["image"][:height, :width], expected)
        np.testing.assert_array_equal(row["label_map"][:height, :width], expected[..., 0] // 10)
        assert (row["label_map"][height:] == VOID).all()
        assert (row["label_map"][:, width:] == VOID).all()
        assert row["image"].sum(dtype=int) == expected.sum(dtype=int), "black around"
    shapes = {row["image"].shape[:2] for row in rows}
    assert shapes == ({*SHAPES["val"]} if buckets == "()" else {(8, 20), (20, 20)})


def test_training_at_the_images_own_sizes_resumes_and_evaluates_in_canvases_of_its_own(masks):
    data = dataset(masks, data__augment="flip")
    assert {*data.buckets} == {*SHAPES["train"]}
    assert {*data.eval_buckets} == {*SHAPES["val"]}
    batches = list(data.train_batches(0, 8))
    np.testing.assert_array_equal(batches[5]["image"], next(data.train_batches(5, 6))["image"])
    for row in rows_of(batches):
        assert row["sizes"].tolist() == list(row["image"].shape[:2])
        assert (row["label_map"] == row["image"][..., 0] // 10).all()


def test_images_can_be_brought_to_a_shorter_side(masks):
    data = dataset(masks, training=False, data__min_size="16")
    assert {*data.eval_buckets} == {(16, 40), (40, 16), (16, 38), (16, 16)}
    assert data.input["min_size"] == 16
    for row in rows_of(data.eval_batches()):
        height, width = row["sizes"]
        assert min(height, width) == 16
        labels = row["label_map"][:height, :width].astype(int)
        assert np.abs(labels - row["image"][:height, :width, 0] / 10).max() <= 1
        assert set(np.unique(labels)) == set(range(SHAPES["val"][row["example"]][0])), "nearest: no label between two"


@pytest.mark.parametrize("interpolation", ["bilinear", "antialias"])
def test_scale_crop_and_flip_move_image_and_label_map_alike(masks, interpolation):
    data = dataset(
        masks, data__image_size="14,18", data__augment="rescale(0.5,2),flip", data__interpolation=interpolation,
    )  # fmt: skip
    mirrored, sizes, steps = set(), set(), set()
    for row in rows_of(data.train_batches(0, 40)):
        assert row["image"].shape == (14, 18, 3)
        height, width = row["sizes"].tolist()
        image, labels = row["image"][:height, :width].astype(float), row["label_map"].astype(int)
        assert (labels[height:] == VOID).all()
        assert (labels[:, width:] == VOID).all()
        assert (row["image"][height:] == 0).all()
        # Red is ten times the row that was seen; interpolation and rounding to whole pixels move it by less than one.
        assert np.abs(labels[1 : height - 1, :width] - image[1:-1, :, 0] / 10).max() <= 1.01
        step = np.diff(image[height // 2, :, 1])
        mirrored.add(bool(step.sum() < 0))
        assert (step <= 0).all() or (step >= 0).all()
        sizes.add((height, width))
        steps.add(round(abs(step.mean())))
    assert mirrored == {True, False}
    assert (14, 18) in sizes
    assert min(height for height, _ in sizes) < 8, "a small image is padded"
    assert min(steps) < 8 < 12 < max(steps), "scales of more and of less than 1"


def test_colours_change_the_image_alone_and_draws_are_a_function_of_seed_epoch_and_example(masks):
    plain, coloured = (
        dataset(masks, data__image_size="20", data__augment=augment).train_readers[0]
        for augment in ("rescale(1,1)", "rescale(1,1),photometric")
    )
    for example in range(5):
        one, other = plain.train(3, example), coloured.train(3, example)
        np.testing.assert_array_equal(one["label_map"], other["label_map"])
        assert (one["image"] != other["image"]).any()
        np.testing.assert_array_equal(coloured.train(3, example)["image"], other["image"])
        assert (coloured.train(4, example)["image"] != other["image"]).any()


def test_what_does_not_fit_is_refused_in_one_line(masks):
    for values, words in (
        (
            {"data__buckets": "((8, 20), (20, 10))"},
            r"example 3 .*03\.bmp\) needs 15×15 pixels, more than each canvas of ",
        ),
        ({"data__resize": "20"}, r"config\.data\.resize=20: this task sees all of an image"),
        ({"data__augment": "randaugment(2,9)"}, "randaugment moves pixels, and label_map would not follow"),
        ({"data__augment": "pad_crop"}, "pad_crop works on the device, where label_map"),
        (
            {"data__augment": "flip", "data__image_size": "20", "data__eval_size": "20", "data__resident": "true"},
            "host",
        ),
    ):
        with pytest.raises(UserError, match=words):
            dataset(masks, training="augment" in str(values), **values)
    small = dataset(masks, data__image_size="12", data__eval_size="20")
    with pytest.raises(UserError, match=r"example 2 .*its 9×20 pixels are more than the 12×12 of a row"):
        small.train_readers[0].train(0, 2)


def test_a_broken_mask_is_skipped_and_its_row_is_padding_of_a_full_size(tmp_path):
    name = write_masks(tmp_path, {"train": [(12, 16)] * 3, "val": [(12, 16)] * 3})
    (tmp_path / "masks/val/01.png").write_bytes(b"")
    data = dataset(name, training=False, data__on_error="skip")
    (first, second) = data.eval_batches()
    assert [*first["mask"], *second["mask"]] == [1, 0, 1, 0]
    assert first["sizes"].tolist() == [[12, 16]] * 2
    assert data.eval_broken == 1
    (words,) = data.complaints(0)
    assert "01.png" in words
