"""`jaxcnn data show`: what is on the sheet, and what is refused."""

import re
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from tiny_experiment import experiment_text

from jaxcnn import cli, models
from jaxcnn.commands import data_show
from jaxcnn.commands.data_common import contact_sheet

TILE, HEAD = 112 + 4, 22


def sheet(tmp_path, *arguments) -> tuple[int, Any]:
    path = tmp_path / "tiny.py"
    path.write_text(experiment_text(steps=1, global_batch_size=8, data__name="synthetic:4:40", data__image_size=16))
    out = tmp_path / "sheet.png"
    with mock.patch.dict(models._REGISTRY):  # the experiment brings its network along
        code = cli.main(["data", "show", str(path), "--out", str(out), "--examples", "4", "--epochs", "3", *arguments])
    return code, np.asarray(Image.open(out)).astype(int) if code == 0 else None


def tile(pixels, row, column):
    left = pixels.shape[1] - 4 * TILE
    return pixels[HEAD + row * TILE + 2 : HEAD + row * TILE + 114, left + column * TILE : left + column * TILE + 112]


def test_without_augmentation_every_column_is_the_image(tmp_path, capsys):
    code, pixels = sheet(tmp_path, "--config.data.augment=none")
    assert code == 0
    assert pixels.shape[0] == HEAD + 4 * TILE
    for row in range(4):
        # Training crops are resized by another interpolation, which fixed sizes do not need.
        assert all(np.abs(tile(pixels, row, 0) - tile(pixels, row, column)).max() <= 1 for column in (1, 2, 3))
    assert "drawn in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "augment", ["random_area(0.1,0.5)", "pca", "pad_crop(4)", "mixup(1)", "cutmix(1)", "inception"]
)
def test_augmentation_on_host_and_device_is_seen_and_differs_by_epoch(tmp_path, augment):
    _, pixels = sheet(tmp_path, f"--config.data.augment={augment}")
    columns = [pixels[:, -4 * TILE + c * TILE : -4 * TILE + c * TILE + 112] for c in range(4)]
    assert all(np.abs(columns[a] - columns[b]).mean() > 0.5 for a in range(4) for b in range(a))
    again = sheet(tmp_path, f"--config.data.augment={augment}")[1]
    assert (again == pixels).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.data.augment=invention"], "did you mean 'inception'"),
        (["--epochs", "0"], "write a whole number, 1 or more"),
        (["--out", "/nowhere/x.png"], "name a PNG file in a folder that exists"),
        (["--shiny"], "unknown argument --shiny"),
    ],
)
def test_refusals(tmp_path, capsys, arguments, words):
    assert sheet(tmp_path, *arguments)[0] == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("augment", ["mixup(1)", "cutmix(1)", "flip"])
def test_columns_have_heads_and_mixed_images_the_shares_of_both_classes(tmp_path, augment, monkeypatch):
    drawn = []
    monkeypatch.setattr(data_show, "contact_sheet", lambda *sheet: drawn.append(sheet) or contact_sheet(*sheet))
    code, _ = sheet(tmp_path, f"--config.data.augment={augment}")
    rows, _, heads, captions = drawn[0]
    assert (code, heads) == (0, ["evaluation", "epoch 1", "epoch 2", "epoch 3"])
    assert all(row[0] == "" for row in captions)  # as evaluation sees them they are whole
    for row, of_row in enumerate(captions):
        for caption in of_row[1:]:
            if augment == "flip":
                assert caption == ""
                continue
            found = re.fullmatch(r"(\d+)%, (\d+)% (.+)", caption)
            assert found
            own, other, neighbour = found.groups()
            assert abs(int(own) + int(other) - 100) <= 1
            assert neighbour == rows[row ^ 1][0]  # rows 2k and 2k + 1 are mixed with each other
