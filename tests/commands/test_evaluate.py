"""`jaxcnn evaluate`: all examples, the checkpoint asked for, the same scores however they are computed."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxcnn
from jaxcnn import cli
from jaxcnn.commands.evaluate import _scales
from jaxcnn.data.sources import make_source
from jaxcnn.safe_files import only_trainer
from jaxcnn.training.trained import open_run


@pytest.fixture
def evaluate(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`evaluate(*words)`: the object on the last line of stdout."""

    def run(*words: str) -> dict[str, Any]:
        assert cli.main(["evaluate", "--workdir", str(workdir), *words]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """`refused(workdir, *words)`: the one line on stderr."""

    def refuse(folder: Path, *words: str) -> str:
        assert cli.main(["evaluate", "--workdir", str(folder), *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line

    return refuse


def logged(workdir: Path) -> dict[int, dict[str, float]]:
    """Step -> scores, as training wrote them."""
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {k: v for k, v in line.items() if k[:5] == "eval/"} for line in lines if "eval/top1" in line}


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in found.items() if k.startswith("eval/")}


def test_each_checkpoint_scores_what_training_logged_for_it_over_all_examples(workdir, evaluate):
    expected = logged(workdir)
    assert sorted(expected) == [10, 20, 30, 40]
    assert len({values["eval/loss"] for values in expected.values()}) == 4
    for step in (10, 40):
        found = evaluate("--checkpoint", str(step))
        assert (found["checkpoint"], found["eval/examples"]) == (step, 355)
        assert scores(found) == expected[step]
        assert {k: found[k] for k in ("workdir", "model", "data", "split")} == {
            "workdir": str(workdir), "model": "tiny", "data": "digits", "split": "test",
        }  # fmt: skip


def test_last_is_the_default_and_best_has_the_highest_score(workdir, evaluate):
    expected = logged(workdir)
    top = max(values["eval/top1"] for values in expected.values())
    best = evaluate("--checkpoint=best")
    assert best["eval/top1"] == expected[best["checkpoint"]]["eval/top1"] == top
    assert evaluate() == evaluate("--checkpoint", "last")
    assert evaluate()["checkpoint"] == 40


@pytest.mark.parametrize(
    "overrides",
    [
        ["global_batch_size=7", "mesh.data=1"],
        ["global_batch_size=7"],  # on 8 devices
        ["mesh.data=3"],
        ["mesh.data=1"],
        ["global_batch_size=1440", "mesh.data=4"],  # more than there are to evaluate on
    ],
)
def test_batch_and_devices_do_not_change_the_scores(overrides, workdir, evaluate):
    found = scores(evaluate("--checkpoint", "40", *(f"--config.{o}" for o in overrides)))
    expected = logged(workdir)[40]
    assert found == pytest.approx(expected, rel=1e-6)
    assert {k: v for k, v in found.items() if k != "eval/loss"} == {
        k: v for k, v in expected.items() if k != "eval/loss"
    }


def test_python_finds_what_the_command_prints(workdir, evaluate):
    assert jaxcnn.open_run(workdir, 20).evaluate() == evaluate("--checkpoint=20")
    words = ["--protocol=dense", "--scales=8,12", "--checkpoint=best"]
    found = jaxcnn.open_run(workdir, "best").evaluate(protocol="dense", scales=[8, 12])
    assert json.loads(json.dumps(found)) == evaluate(*words)


def test_another_split_has_its_own_number_of_examples(evaluate):
    found = evaluate("--config.data.eval_split=train")
    assert (found["split"], found["eval/examples"]) == ("train", 1442)


def test_it_reads_beside_a_trainer_and_changes_no_file(workdir, evaluate):
    def files() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in workdir.rglob("*") if p.name != ".lock"}

    before = files()
    with only_trainer(workdir):
        evaluate()
    assert files() == before


def test_the_most_confident_mistakes_of_all_classes_are_drawn_first(evaluate, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("jaxcnn.commands.evaluate.save", lambda figure, out: drawn.append(figure))
    evaluate("--save", str(tmp_path / "grid.png"), "--predictions", str(tmp_path / "all.csv"))
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    wrong = sorted((row for row in rows if row["correct"] == "0"), key=lambda row: -float(row["probability"]))
    right = sorted((row for row in rows if row["correct"] == "1"), key=lambda row: float(row["probability"]))
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert len(titles) == 36
    for title, row in zip(titles, wrong + right, strict=False):
        truth = f"\nis {row['class']}" if row["correct"] == "0" else ""
        assert title == f"{row['predicted']} {float(row['probability']):.0%}{truth}"
    assert f"{len(wrong):,} of {len(rows):,} are wrong" in drawn[0].get_suptitle()


@pytest.mark.parametrize("name", ["nonsense", "11", "Best", "-1"])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(name, workdir, refused):
    message = refused(workdir, f"--checkpoint={name}")
    assert f"there is no checkpoint '{name}'" in message
    assert message.endswith("there are best, last, [10, 20, 30, 40]")


def test_a_folder_that_is_no_run_is_refused(refused, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert f"{folder}/config.json does not exist" in refused(folder)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_without_a_checkpoint_is_refused(workdir, refused, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    assert "holds no checkpoints" in refused(tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.name=resnet20", "another model"),
        ("evaluate=1", "config has no key 'evaluate'"),
        ("data.eval_split=validation", "its splits are train, test"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_in_one_line(override, words, workdir, refused):
    assert words in refused(workdir, f"--config.{override}")


@pytest.mark.parametrize("batch", [7, 1440])
@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["1crop"], {"protocol": "1crop", "views": 1, "scales": [9]}),
        (["10crop"], {"protocol": "10crop", "views": 10, "scales": [9]}),
        (["dense", "--scales", "8,12"], {"protocol": "dense", "views": 4, "scales": [8, 12]}),
    ],
)
def test_a_protocol_scores_every_example_once_at_any_batch(words, about, batch, evaluate):
    found = evaluate("--protocol", *words, "--checkpoint=40", f"--config.global_batch_size={batch}")
    expected = evaluate("--protocol", *words, "--checkpoint=40", "--config.mesh.data=1")
    assert {k: found[k] for k in about} == about
    assert found["eval/examples"] == 355
    assert scores(found) == pytest.approx(scores(expected), rel=1e-5)
    assert found["eval/loss"] != evaluate("--checkpoint=40")["eval/loss"]


def test_144_crops_of_small_images(evaluate):
    found = evaluate("--protocol=144crop", "--config.data.eval_split=test")
    assert (found["views"], found["scales"], found["eval/examples"]) == (144, [9, 10, 11, 13], 355)
    assert 0.1 < found["eval/top1"] <= found["eval/top5"] <= 1


def test_dense_at_the_size_of_training_is_the_average_with_the_mirror_image(workdir, evaluate):
    """Computed by the library from the pixels alone."""
    run, source = open_run(workdir, "last", []), make_source("digits", "test")
    images, labels = (np.stack([source[i][key] for i in range(len(source))]) for key in ("image", "label"))
    mean = np.mean([run.outputs(x)["probabilities"] for x in (images, images[:, :, ::-1])], axis=0)
    found = evaluate("--protocol=dense", "--scales=8")
    assert found["views"] == 2
    assert found["eval/loss"] == pytest.approx(-np.log(mean[np.arange(355), labels]).mean(), rel=1e-5)
    assert found["eval/top1"] == pytest.approx((mean.argmax(-1) == labels).mean(), abs=1e-9)


def test_it_says_how_many_shapes_there_are(workdir, capsys):
    words = ["evaluate", "--workdir", str(workdir), "--protocol", "dense"]
    assert cli.main(words) == 0
    assert capsys.readouterr().err == "dense: 6 views an image, 1 shape of images to compile for\n"


def test_a_run_whose_weights_were_made_for_the_centre_is_scored_on_it(workdir, evaluate, monkeypatch):
    def resized(*arguments: Any) -> Any:
        run = open_run(*arguments)
        return replace(run, input={**run.input, "resize": 12})

    own = evaluate("--protocol=1crop")
    monkeypatch.setattr("jaxcnn.training.trained.open_run", resized)
    found = evaluate()
    assert (found["protocol"], found["scales"]) == ("1crop", [12])
    assert found == evaluate("--protocol=1crop")
    assert scores(found) != scores(own)
    assert evaluate("--protocol=10crop")["scales"] == [12]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--protocol=12crop"], "argument --protocol: invalid choice: '12crop' (choose from "),
        (["--protocol=dense", "--scales=8,7"], "--protocol dense at scale 7: the network sees 8×8 pixels, take scales"),
        (["--scales=8"], "--scales goes with --protocol dense"),
        (["--protocol=10crop", "--scales=8"], "--scales goes with --protocol dense"),
        *(
            (["--protocol=dense", f"--scales={text}"], f"argument --scales: {text!r}: write positive numbers")
            for text in ("8,twelve", "8,8", "0", "-8", "", "8,", "nan", "inf")
        ),
        *(
            (["--protocol=dense", f"--scales={text}"], "--scales of --protocol dense: write whole numbers of pixels")
            for text in ("8.5", "4097")
        ),
        (["--scales=9"], "--scales 9: of segmentation they are factors, 8 at most"),
        (["--flip"], "--flip goes with segmentation: classification mirrors by --protocol"),
    ],
)
def test_what_does_not_go_with_a_protocol_is_refused_in_one_line(words, told, workdir, refused):
    assert told in refused(workdir, *words)


def test_scales_are_from_1_to_4096_pixels():
    assert _scales("4096,1") == [4096, 1]
