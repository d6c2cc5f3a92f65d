"""`train`, `evaluate`, `predict` and `data` on label maps: a tiny network and a folder of masks, at native size."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from label_files import scene, write_masks
from tiny_experiment import experiment_text, train_tiny

from jaxcnn import cli, models
from jaxcnn.data.images.decode import decode, size_of
from jaxcnn.data.images.label_maps import read_index_png
from jaxcnn.training.trained import open_run

SHAPES = {"train": [(12, 16), (16, 12)] * 6, "val": [(12, 16), (15, 11), (20, 9), (12, 16), (13, 13)]}
NAMES = ["ground", "cat", "dog"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, its data in masks/, and its network, which is in the registry for each test alone."""
    folder = tmp_path_factory.mktemp("segmented")
    text = experiment_text(
        "segmentation", "tiny_dense:TinyDense", data__name=write_masks(folder / "masks", SHAPES), steps=60,
        global_batch_size=8, eval_every=30, checkpoint_every=30, optimizer__learning_rate=0.05, data__augment="flip",
        task__class_weights="median_frequency",
    )  # fmt: skip
    return folder, train_tiny(folder, text)


@pytest.fixture
def folder(trained):
    with mock.patch.dict(models._REGISTRY, tiny=trained[1]):
        yield trained[0]


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run/result.json").read_text())


def test_a_run_learns_in_canvases_and_its_result_has_the_scores_of_each_class(folder):
    found = result(folder)
    assert found["eval/examples"] == 5
    assert found["eval/miou"] > 0.6
    assert {f"eval/iou/{name}" for name in NAMES} <= found.keys()
    assert found["best/eval/miou"] >= found["eval/miou"]


def test_evaluate_scores_every_image_once_whatever_the_canvases_and_the_batch(folder, capsys):
    assert run("evaluate", "--workdir", folder / "run", "--checkpoint", "last") == 0
    plain = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plain["eval/examples"] == 5
    for change in ("data.buckets=((12,16),(20,16))", "data.eval_size=(32,24)", "global_batch_size=1"):
        assert run("evaluate", "--workdir", folder / "run", "--config." + change) == 0
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert scores["eval/loss"] == pytest.approx(plain["eval/loss"], rel=1e-5)
        assert {k: v for k, v in scores.items() if k != "eval/loss"} == {
            k: v for k, v in plain.items() if k != "eval/loss"
        }


def test_evaluate_draws_and_writes_a_row_for_each_image_and_class(folder, tmp_path, capsys):
    words = ("--per-class", tmp_path / "c.csv", "--predictions", tmp_path / "p.csv", "--save", tmp_path / "e.png")
    assert run("evaluate", "--workdir", folder / "run", *words) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    with (tmp_path / "c.csv").open(newline="") as file:
        ious = {row["class"]: float(row["iou"]) for row in csv.DictReader(file)}
    assert ious == pytest.approx({name: scores[f"eval/iou/{name}"] for name in NAMES})
    rows = (tmp_path / "p.csv").read_text().splitlines()
    assert len(rows) == 1 + 5
    assert "images/val/03.bmp" in rows[4]
    assert size_of((tmp_path / "e.png").read_bytes())[1] > 500


def test_predict_gives_pixels_a_class_and_masks_of_the_images_own_sizes(folder, tmp_path, capsys):
    images = sorted((folder / "masks/images/val").glob("*.bmp"))
    words = ("--json", "--masks", tmp_path / "masks", "--save", tmp_path / "p.png")
    assert run("predict", "--workdir", folder / "run", *images, *words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    network = open_run(folder / "run")
    for line, image, size in zip(lines, images, SHAPES["val"], strict=True):
        labels = read_index_png((tmp_path / "masks" / f"{image.stem}.png").read_bytes())
        assert line["image"] == str(image)
        assert tuple(line["size"]) == labels.shape == size
        assert line["pixels"] == {NAMES[n]: int((labels == n).sum()) for n in np.argsort(-np.bincount(labels.ravel()))}
        assert 1 / 3 < line["confidence"] <= 1
        # One image alone, in a canvas of its own size, is told the same.
        np.testing.assert_array_equal(network.predict(image).outputs["label_map"], labels)
    assert (tmp_path / "p.png").is_file()


def test_predictions_are_as_good_as_the_scores_say(folder):
    images, maps = zip(*(scene(i, *size) for i, size in enumerate(SHAPES["val"])), strict=True)
    predictions = open_run(folder / "run").predict(list(images))
    right = [found.outputs["label_map"] == labels for found, labels in zip(predictions, maps, strict=True)]
    assert np.concatenate([x.ravel() for x in right]).mean() == pytest.approx(result(folder)["eval/pixel_accuracy"])


def test_predict_refuses_in_one_line_what_it_cannot_do(folder, tmp_path, capsys):
    images = sorted((folder / "masks/images/val").glob("*.bmp"))[:2]
    (tmp_path / "bad.png").write_text("no image")
    assert run("predict", "--workdir", folder / "run", images[0], tmp_path / "bad.png") == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{images[0]}: ground ")
    assert "bad.png" in err
    for words, message in (
        (("--features", "conv", "--out", tmp_path / "x.npz"), "features are those of networks that classify"),
        (("--explain", tmp_path / "x.png"), "--explain draws what speaks for a class"),
        (("--masks", images[0]), "is a file: name a folder"),
        ((folder / "masks/images/train/00.bmp", "--masks", tmp_path), "would both be written to"),
    ):
        assert run("predict", "--workdir", folder / "run", *images, *words) == 2
        assert message in capsys.readouterr().err


def test_the_frequencies_of_classes_are_counted_once_and_kept(folder, tmp_path, capsys):
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/60")
    (tmp_path / "run/result.json").unlink()
    assert run("train", "--config", folder / "tiny.py", "--workdir", tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert "resuming   from the checkpoint of step 30" in err
    assert "counting" not in err
    resumed = json.loads((tmp_path / "run/result.json").read_text())
    assert resumed["eval/loss"] == result(folder)["eval/loss"]
    maps = [scene(i, *size)[1] for i, size in enumerate(SHAPES["train"])]
    own = np.array([[(labels == n).sum() for labels in maps] for n in range(3)])
    around = np.array([sum(labels.size for labels in maps if (labels == n).any()) for n in range(3)])
    kept = open_run(folder / "run").input["class_frequencies"]
    assert kept == pytest.approx(own.sum(1) / around)


def test_data_check_counts_pixels_and_draws_label_maps(folder, tmp_path, capsys):
    assert run("data", "check", f"masks:{folder / 'masks'}", "--out", tmp_path / "c.png") == 0
    lines = capsys.readouterr().out.splitlines()
    counts = np.bincount(np.concatenate([scene(i, *size)[1].ravel() for i, size in enumerate(SHAPES["train"])]))
    place = next(i for i, line in enumerate(lines) if "train: 12 examples" in line)
    pixels = [line.split() for line in lines[place + 3 : place + 7]]
    assert [int(line[0].replace(",", "")) for line in pixels] == [*counts, 0]
    assert [line[-1] for line in pixels] == [*NAMES, "void"]
    assert size_of((tmp_path / "c.png").read_bytes())[1] > 500


def test_data_show_draws_what_training_sees_with_its_label_maps(folder, tmp_path, capsys):
    words = ("--out", tmp_path / "s.png", "--examples", 3, "--epochs", 2)
    change = ("--config.data.augment=rescale(0.5,2),flip,photometric", "--config.data.image_size=16")
    assert run("data", "show", folder / "tiny.py", *words, *change) == 0
    pixels = decode((tmp_path / "s.png").read_bytes(), 3)
    assert pixels.shape[0] == 22 + 3 * 116  # the heads of the columns, and a row for each example
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_flip_and_scales_average_views_and_one_view_is_ordinary_evaluation(folder, capsys):
    def scores(*words: str) -> dict[str, Any]:
        assert run("evaluate", "--workdir", folder / "run", *words) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    plain, once = scores(), scores("--scales=1")
    assert once["eval/loss"] == pytest.approx(plain["eval/loss"], rel=1e-5)
    assert once["eval/miou"] == plain["eval/miou"]
    several = scores("--flip", "--scales=0.5,1,1.5")
    assert (several["views"], several["scales"], several["flip"]) == (6, [0.5, 1, 1.5], True)
    assert several["eval/loss"] != plain["eval/loss"]
    assert run("evaluate", "--workdir", folder / "run", "--protocol", "10crop") == 2
    assert "segmentation has --flip and --scales" in capsys.readouterr().err
