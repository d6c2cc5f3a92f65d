"""`train`, `evaluate` and `predict` on boxes: a tiny detector and a folder in VOC's layout, at native size."""

import csv
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from box_files import Thing, write_voc_boxes
from PIL import Image
from tiny_boxes import NAMES, Blocks
from tiny_experiment import experiment_text, train_tiny

from jaxcnn import cli, models
from jaxcnn.data.images.decode import size_of
from jaxcnn.training.trained import open_run

SPLITS = {"train": (24, 2), "val": (7, 1)}  # how many images, and their seed


def write_blocks(root: Path) -> str:
    """Write `voc:ROOT` of the images of `Blocks`, each of its own size; return its name."""
    splits, images = {}, {}
    for split, (count, seed) in SPLITS.items():
        rows = Blocks().rows(seed, count)
        sizes = [tuple(size) for size in rows["sizes"].tolist()]
        splits[split] = [
            (sizes[i], [Thing(NAMES[rows["labels"][i, k]], rows["boxes"][i, k].tolist(), bool(rows["difficult"][i, k]))
                        for k in np.flatnonzero(rows["valid"][i])])
            for i in range(count)
        ]  # fmt: skip
        images |= {f"{split}{i}": rows["image"][i, :h, :w] for i, (h, w) in enumerate(sizes)}
    name = write_voc_boxes(root, splits, NAMES[1:])
    for file, image in images.items():
        Image.fromarray(image).save(root / f"JPEGImages/{file}.jpg", "PNG")
    return name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, its data in blocks/, and its network, which is in the registry for each test alone."""
    folder = tmp_path_factory.mktemp("detected")
    text = experiment_text(
        "detection", "tiny_boxes:TinyBoxes", data__name=write_blocks(folder / "blocks"), steps=160,
        global_batch_size=8, eval_every=80, checkpoint_every=80, optimizer__learning_rate=0.03, data__eval_split="val",
        data__augment="flip",
    )  # fmt: skip
    return folder, train_tiny(folder, text)


@pytest.fixture
def folder(trained):
    with mock.patch.dict(models._REGISTRY, tiny=trained[1]):
        yield trained[0]


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_a_run_learns_and_its_result_has_the_scores_of_each_class(folder):
    found = json.loads((folder / "run/result.json").read_text())
    assert found["eval/examples"] == SPLITS["val"][0]
    assert found["eval/map50"] > 0.6
    assert {"eval/map", "eval/ap/red", "eval/coco/ap75", "best/eval/map50"} <= found.keys()
    assert "eval/ap/never" not in found


def test_evaluate_writes_the_boxes_that_it_scores_tables_and_pictures(folder, tmp_path, capsys):
    files = {"detections": "d.json", "curves": "c.png", "save": "s.png", "per-class": "c.csv", "predictions": "p.csv"}
    words = [word for option, file in files.items() for word in (f"--{option}", tmp_path / file)]
    assert run("evaluate", "--workdir", folder / "run", *words) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    boxes = json.loads((tmp_path / "d.json").read_text())
    assert {row["image_id"] for row in boxes} <= set(range(SPLITS["val"][0]))
    assert {row["category_id"] for row in boxes} <= {1, 2, 3, 4}
    assert set(boxes[0]) == {"image_id", "category_id", "bbox", "score"}
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = {row["class"]: row["ap50"] for row in csv.DictReader(file)}
    assert {name: float(ap) for name, ap in rows.items() if ap} == pytest.approx(
        {name: scores[f"eval/ap/{name}"] for name in NAMES[1:4]}
    )
    assert rows["never"] == ""
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0].endswith('"example","file","objects","boxes","hits"')
    assert len(lines) == 1 + SPLITS["val"][0]
    assert size_of((tmp_path / "s.png").read_bytes())[1] > 500
    assert size_of((tmp_path / "c.png").read_bytes())[1] > 500


def test_evaluate_scores_every_image_once_whatever_the_canvases_and_the_batch(folder, capsys):
    found = []
    for change in ("global_batch_size=8", "data.eval_size=(64,32)", "global_batch_size=1"):
        assert run("evaluate", "--workdir", folder / "run", "--config." + change) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert found[1] == found[0] == found[2]


def test_predict_lists_boxes_in_pixels_of_the_image(folder, tmp_path, capsys):
    images = sorted((folder / "blocks/JPEGImages").glob("val*.jpg"))
    words = ("--json", "--save", tmp_path / "p.png")
    assert run("predict", "--workdir", folder / "run", *images, *words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows, right = Blocks().rows(SPLITS["val"][1], SPLITS["val"][0]), 0
    for line, image, valid, labels in zip(lines, images, rows["valid"], rows["labels"], strict=True):
        height, width = size_of(image.read_bytes())
        assert line["image"] == str(image)
        for row in line["boxes"]:
            x1, y1, x2, y2 = row["box"]
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert NAMES[row["index"]] == row["class"]
        likely = [row["index"] for row in line["boxes"] if row["score"] >= 0.5]
        right += sorted(likely) == sorted(labels[valid].tolist())
    assert right >= 4
    assert (tmp_path / "p.png").is_file()
    everything = sum(len(line["boxes"]) for line in lines)
    assert run("predict", "--workdir", folder / "run", *images, "--json", "--threshold", "0.9") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["score"] >= 0.9 for line in lines for row in line["boxes"])
    assert sum(len(line["boxes"]) for line in lines) < everything
    assert run("predict", "--workdir", folder / "run", images[0], "--threshold", "1") == 0
    assert capsys.readouterr().out == f"{images[0]}: nothing of a score of 1 or more\n"


def test_boxes_are_in_pixels_of_the_image_whatever_size_the_network_sees_it_at(folder):
    images = sorted((folder / "blocks/JPEGImages").glob("val*.jpg"))
    as_stored = open_run(folder / "run").predict(images)
    larger = open_run(folder / "run", overrides={"data.min_size": 40}).predict(images)
    compared = 0
    for one, other in zip(as_stored, larger, strict=True):
        for row in (row for row in one.summary["boxes"] if row["score"] > 0.7):
            same = [found["box"] for found in other.summary["boxes"] if found["class"] == row["class"]]
            assert min(np.abs(np.subtract(box, row["box"])).max() for box in same) < 1
            compared += 1
    assert compared > 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--flip",), "--flip and --scales average classes of pixels"),
        (("--scales", "0.5,1"), "--flip and --scales average classes of pixels"),
        (("--protocol", "10crop"), "--protocol 10crop cuts crops out of images: leave it out"),
    ],
)
def test_evaluate_refuses_the_tests_of_other_tasks(folder, words, message, capsys):
    assert run("evaluate", "--workdir", folder / "run", *words) == 2
    assert message in capsys.readouterr().err


def test_other_tasks_refuse_the_options_of_boxes(workdir, tmp_path, capsys):
    for option, file in (("--detections", "d.json"), ("--curves", "c.png")):
        assert run("evaluate", "--workdir", workdir, option, tmp_path / file) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert option in err
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    assert run("predict", "--workdir", workdir, tmp_path / "x.png", "--threshold", "0.3") == 2
    assert "task Classification has no scores of boxes: leave --threshold out" in capsys.readouterr().err
    assert run("predict", "--workdir", workdir, tmp_path / "x.png", "--threshold", "nan") == 2
    assert "--threshold: 'nan': write a score" in capsys.readouterr().err
