"""Masks in batches: cells of each box, which follow crop and mirror as the boxes do; data without masks is refused."""

from typing import Any

import numpy as np
import pytest
from box_files import write_voc_boxes
from tiny_masks import disc, text_of, write_coco

from jaxcnn import UserError
from jaxcnn.config import base_config
from jaxcnn.data.dataset import Dataset
from jaxcnn.models.mask_targets import CELLS
from jaxcnn.tasks import create_task

SIZE = (60, 80)


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> str:
    """Images whose disc is white and of which the left half is the object: mirrored, it is the right one."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(4):
        middle = (float(rng.integers(20, 40)), float(rng.integers(20, 60)))
        whole = disc(SIZE, middle, 15)
        half = whole & (np.arange(SIZE[1]) < middle[1])
        pixels = np.full((*SIZE, 3), 40, np.uint8)
        pixels[half] = 220
        rows, columns = np.flatnonzero(half.any(1)), np.flatnonzero(half.any(0))
        box = np.array([columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]], float)
        pictures.append((pixels, [(1, box, text_of(half))]))
    root = tmp_path_factory.mktemp("discs") / "coco"
    return write_coco(root, {"train": pictures, "val": pictures}, ("half",))


def data_of(name: str, **values: Any) -> Dataset:
    config = base_config("detection")
    config.model.name, config.data.name, config.global_batch_size = "mask_rcnn_resnet50_fpn_tv", name, 4
    config.data.min_size, config.steps, config.task.max_boxes = 90, 1, 3
    for key, value in values.items():
        config.data[key] = value
    return Dataset(config, targets=create_task(config).targets)


@pytest.mark.parametrize("augment", ["none", "flip", "rescale(0.5,1.5),flip"])
def test_cells_cover_what_the_image_shows_of_the_object(discs, augment):
    data, seen, left = data_of(discs, augment=augment), 0, set()
    (reader,) = data.train_readers
    for epoch in range(4):
        for example in range(4):
            row = reader.train(epoch, example)
            assert row["masks"].shape == (3, CELLS, CELLS)
            assert not row["masks"][~row["valid"]].any()
            for box, cells in zip(row["boxes"][row["valid"]], row["masks"], strict=False):
                low, high = box[:2] - 1, box[2:] + 1
                if (shorter := (box[2:] - box[:2]).min()) < 8:
                    continue
                place = (np.arange(CELLS) + 0.5) / CELLS
                x, y = (low[axis] + place * (high - low)[axis] for axis in (0, 1))
                height, width = row["sizes"]
                at = tuple(np.clip(np.floor(p + 0.5).astype(int), 0, side - 1) for p, side in ((y, height), (x, width)))
                white = row["image"][at[0][:, None], at[1], 0] > 130
                assert ((cells > 127) != white).mean() < 2.5 / shorter, "a pixel at its edge at most"
                centre = (cells.sum(0) * place).sum() / cells.sum()
                left.add(bool(centre < 0.5))
                seen += 1
    assert seen >= 8
    assert left == ({True, False} if "flip" in augment else {False})


def test_a_batch_has_masks_and_evaluation_has_them_by_the_source(discs):
    data = data_of(discs)
    (batch,) = data.train_batches(0, 1)
    assert (batch["masks"].shape, batch["masks"].dtype) == ((4, 3, CELLS, CELLS), np.uint8)
    source: Any = data.eval
    assert [mask["size"] for mask in source.masks(0)] == [[*SIZE]]


def test_data_without_masks_is_refused(tmp_path):
    name = write_voc_boxes(tmp_path / "voc", {"train": [((20, 30), [])], "val": [((20, 30), [])]}, ("a",))
    with pytest.raises(UserError, match=r"needs 'masks', which voc:.* lacks: .*take another data set"):
        data_of(name)
