"""`jaxcnn data check` and `show` of images with boxes: what is counted, and what is drawn where."""

import numpy as np
import pytest
from box_files import Thing, write_voc_boxes
from PIL import Image

from jaxcnn import cli
from jaxcnn.figures.overlays import class_colours

EXPERIMENT = """
from jaxcnn.config import base_config

def get_config():
    config = base_config("detection")
    config.steps = 1
    config.global_batch_size = 2
    config.data.name = {name!r}
    config.data.augment = {augment!r}
    return config
"""


@pytest.fixture
def voc(tmp_path):
    things = [Thing("a", (10, 20, 60, 50), True), Thing("b", (0, 5, 90, 12)), Thing("b", (3, 3, 4, 4))]
    splits = {"train": [((60, 100), things), ((96, 90), []), ((60, 100), things[:1])], "test": [((60, 100), [])]}
    return write_voc_boxes(tmp_path / "VOC", splits, ("a", "b", "c"))


def test_check_counts_boxes_of_each_class_and_draws_them(voc, tmp_path, capsys):
    assert cli.main(["data", "check", voc, "--out", str(tmp_path / "sheet.png")]) == 0
    printed = capsys.readouterr().out
    for line in (
        "  boxes  3, 2 difficult, 0 crowd; 1 without area are left out\n",
        "         2 at most, in JPEGImages/train0.jpg; 1 images have none\n",
        "         √area 25 … 39 pixels, median 39; 1 below 32, 2 below 96, 0 larger\n",
        "          2 boxes in       2 images  1 a\n",
        "          1 boxes in       1 images  2 b\n",
        "          0 boxes in       0 images  3 c\n",
        "  boxes  0, 0 difficult, 0 crowd; 0 without area are left out\n",
    ):
        assert line in printed
    assert "examples of test are drawn in" in printed
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape[-1] >= 3


def drawn(name, tmp_path, augment) -> np.ndarray:
    """The sheet of three examples: as stored, and in two epochs."""
    path, out = tmp_path / "boxes.py", tmp_path / "show.png"
    path.write_text(EXPERIMENT.format(name=name, augment=augment))
    assert cli.main(["data", "show", str(path), "--out", str(out), "--examples", "3", "--epochs", "2"]) == 0
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def test_show_draws_the_boxes_of_changed_images(voc, tmp_path):
    sheet = drawn(voc, tmp_path, "rescale(0.5,2),flip")
    columns = np.split(sheet[:, -3 * 228 :], 3, axis=1)
    coloured = [np.abs(column - class_colours()[1].astype(int)).max(-1) < 60 for column in columns]
    first = coloured[0][:228]
    rows, found = np.flatnonzero(first.sum(1) > 60), np.flatnonzero(first.sum(0) > 40)
    # 100×60 pixels are drawn as 224×134: the box of "a" is 112 pixels wide and 67 high.
    assert abs((found[-1] - found[0]) - 112) <= 3
    assert abs((rows[-1] - rows[0]) - 67) <= 12, "its name is written above it"
    assert all(column[:228].any() for column in coloured), "a changed image has its box"
    assert (coloured[0][:228] != coloured[1][:228]).any()
    assert not any(column[228:456].any() for column in coloured), "the second image has none"
