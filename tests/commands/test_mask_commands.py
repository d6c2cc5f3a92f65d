"""`train`, `evaluate` and `predict` with masks: a tiny detector and a folder in COCO's layout."""

import json
from typing import Any
from unittest import mock

import numpy as np
import pytest
from pycocotools import mask as coco
from tiny_boxes import NAMES
from tiny_experiment import experiment_text, train_tiny
from tiny_masks import write_blocks_with_masks

from jaxcnn import cli, models
from jaxcnn.data.images.decode import size_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, its data in coco/, and its network, which is in the registry for each test alone."""
    folder = tmp_path_factory.mktemp("masked")
    data = write_blocks_with_masks(folder / "coco", {"train": (24, 2), "val": (7, 1)})
    text = experiment_text(
        "detection", "tiny_masks:TinyMasks", data__name=data,
        steps=120, global_batch_size=8, eval_every=120, checkpoint_every=120, optimizer__learning_rate=0.03,
        data__augment="flip", task__max_boxes=4, task__metric="coco",
    )  # fmt: skip
    return folder, train_tiny(folder, text)


@pytest.fixture
def folder(trained):
    with mock.patch.dict(models._REGISTRY, tiny=trained[1]):
        yield trained[0]


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_a_run_has_the_loss_and_the_scores_of_masks(folder):
    found = json.loads((folder / "run/result.json").read_text())
    assert found["eval/coco/mask_ap50"] > 0.5
    assert {"eval/mask_map", "train/mask", "eval/map"} <= found.keys()
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/mask"] for line in lines if "train/mask" in line]
    assert losses[-1] < 0.3 < np.log(2)


def test_evaluate_writes_run_lengths_and_draws_masks(folder, tmp_path, capsys):
    words = ("--detections", tmp_path / "d.json", "--save", tmp_path / "s.png", "--per-class", tmp_path / "c.csv")
    assert run("evaluate", "--workdir", folder / "run", *words) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["eval/mask_map"] == json.loads((folder / "run/result.json").read_text())["eval/mask_map"]
    rows = json.loads((tmp_path / "d.json").read_text())
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert "coco_mask_ap" in (tmp_path / "c.csv").read_text()
    assert size_of((tmp_path / "s.png").read_bytes())[1] > 500


def test_predict_lists_run_lengths_at_the_size_of_the_image(folder, tmp_path, capsys):
    images = sorted((folder / "coco/val2017").glob("*.png"))
    assert run("predict", "--workdir", folder / "run", *images, "--json", "--save", tmp_path / "p.png") == 0
    seen = 0
    for line, image in zip(capsys.readouterr().out.splitlines(), images, strict=True):
        for row in json.loads(line)["boxes"]:
            inside = coco.decode(row["segmentation"])
            assert inside.shape == size_of(image.read_bytes())
            assert row["class"] in NAMES
            if row["score"] > 0.5:
                x1, y1, x2, y2 = row["box"]
                assert inside.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.4)
                seen += 1
    assert seen > 3
    assert (tmp_path / "p.png").is_file()
