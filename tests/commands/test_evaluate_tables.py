"""`jaxcnn evaluate` of several runs and checkpoints, their mean, and what it writes of examples and classes."""

import csv
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import Tiny

import jaxcnn
from jaxcnn import UserError, cli
from jaxcnn.config import base_config
from jaxcnn.data.sources import make_source
from jaxcnn.distributed.processes import Team
from jaxcnn.tasks.base import Task
from jaxcnn.training.sharding import make_mesh
from jaxcnn.training.trained import _mean, open_run


@pytest.fixture
def evaluate(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`evaluate(*words)`: the objects on the lines of stdout."""

    def run(*words: Any) -> list[dict[str, Any]]:
        assert cli.main(["evaluate", "--workdir", str(workdir), *map(str, words)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_hand(run: Any, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """The probabilities (N, classes) and labels of the digits, one example after the other."""
    source = make_source("digits", split)
    images, labels = (np.stack([source[i][key] for i in range(len(source))]) for key in ("image", "label"))
    return run.outputs(images)["probabilities"], labels


# Several


def test_several_checkpoints_have_a_line_each_and_the_last_line_has_all(workdir, evaluate):
    *lines, last = evaluate("--checkpoint", "40,10", "--checkpoint=last")
    assert [line["checkpoint"] for line in lines] == [40, 10]  # the last one is the first one
    assert last == {"runs": lines}
    assert lines == [evaluate("--checkpoint", step)[0] for step in (40, 10)]


def test_several_runs_are_told_apart_and_one_named_twice_is_scored_once(workdir, evaluate, tmp_path):
    (tmp_path / "other").symlink_to(workdir)
    (tmp_path / "copy").mkdir()
    for name in ("config.json", "checkpoints"):
        (tmp_path / "copy" / name).symlink_to(workdir / name)
    *lines, last = evaluate("--workdir", tmp_path / "other", tmp_path / "copy", "--config.mesh.data", "1")
    assert [line["workdir"] for line in lines] == [str(workdir), str(tmp_path / "copy")]
    assert last["runs"] == lines


def test_a_folder_that_is_no_run_is_refused_before_another_is_scored(workdir, capsys, tmp_path):
    assert cli.main(["evaluate", "--workdir", str(workdir), "--workdir", str(tmp_path)]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("option", ["--predictions", "--per-class", "--confusion", "--save"])
@pytest.mark.parametrize("name", ["file/x.png", "folder.png"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_scored(option, name, workdir, capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    assert cli.main(["evaluate", "--workdir", str(workdir), option, str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert option in err
    assert str(tmp_path / name.partition("/")[0]) in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--checkpoint=10,20", "--confusion=a.png"], "--confusion"),
        (["--checkpoint=10,20", "--save=a.png"], "--save"),
        (["--average"], "--average"),
        (["--checkpoint=10,11"], "11"),
        (["--checkpoint=10,,20"], "''"),
        (["--checkpoint=10,20", "--checkpoint=best,11", "--average"], "11"),
        (["--confusion=a.txt"], "a.txt"),
    ],
)
def test_what_does_not_go_together_is_refused(words, named, workdir, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--workdir", str(workdir), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""  # nothing was scored before
    assert named in err
    assert not list(tmp_path.iterdir())


def test_one_of_several_processes_does_not_draw(workdir, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("jaxcnn.commands.evaluate.team_of", lambda _: nullcontext(Team(0, 2)))
    assert cli.main(["evaluate", "--workdir", str(workdir), "--save", str(tmp_path / "a.png")]) == 2
    assert "--save" in capsys.readouterr().err


# The mean


def test_the_mean_of_checkpoints_is_that_of_their_weights_and_statistics(workdir, evaluate):
    steps = (10, 20, 40)
    trees = [jax.device_get(open_run(workdir, step).variables) for step in steps]
    expected = jax.tree.map(lambda *x: np.mean(np.stack(x).astype(np.float64), 0).astype(np.float32), *trees)
    assert expected["batch_stats"]
    run = open_run(workdir, [40, "20", 10, "last"])
    assert (run.step, run.averaged) == (40, steps)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.variables), expected)
    assert {x.dtype for x in jax.tree.leaves(run.variables)} == {np.dtype(np.float32)}
    (found,) = evaluate("--checkpoint", "10,20,last", "--average")
    assert found["checkpoint"] == list(steps)
    assert found["eval/loss"] not in [evaluate("--checkpoint", step)[0]["eval/loss"] for step in steps]
    assert found == run.evaluate() == replace(run, variables=expected).evaluate()


def test_integers_have_no_mean_and_keep_their_type():
    trees = [{"count": np.array([1, 2]), "w": np.array([x], np.float16)} for x in (1.0, 2.0)]
    mean = _mean(trees, make_mesh(1))
    assert mean["count"].tolist() == [1, 2]
    assert (mean["w"].item(), mean["w"].dtype) == (1.5, np.float16)
    with pytest.raises(UserError, match="integers"):
        _mean([trees[0], trees[1] | {"count": np.array([1, 3])}], make_mesh(1))


# Examples and classes


@pytest.mark.parametrize("words", [[], ["--config.global_batch_size=7", "--config.mesh.data=3"]])
def test_each_example_has_a_row_in_order_with_what_was_predicted(words, workdir, evaluate, tmp_path):
    (found,) = evaluate("--predictions", tmp_path / "new" / "p.csv", *words)
    rows = read(tmp_path / "new" / "p.csv")
    probabilities, labels = by_hand(open_run(workdir))
    assert [int(row["example"]) for row in rows] == list(range(355))
    assert {row["workdir"] for row in rows} == {str(workdir)}
    assert [int(row["class"]) for row in rows] == labels.tolist()
    assert [int(row["predicted"]) for row in rows] == probabilities.argmax(-1).tolist()
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probabilities.max(-1), rtol=1e-5)
    truth = probabilities[np.arange(355), labels]
    np.testing.assert_allclose([float(row["class_probability"]) for row in rows], truth, rtol=1e-4)
    assert [int(row["correct"]) for row in rows] == (probabilities.argmax(-1) == labels).tolist()
    assert np.mean([int(row["correct"]) for row in rows]) == pytest.approx(found["eval/top1"], abs=1e-12)
    assert found == evaluate(*words)[0]


def test_each_class_has_a_row_with_its_share_of_right_predictions(workdir, evaluate, tmp_path):
    evaluate("--per-class", tmp_path / "c.csv", "--checkpoint=10,40", "--predictions", tmp_path / "p.csv")
    rows = read(tmp_path / "c.csv")
    assert [(row["checkpoint"], row["class"]) for row in rows] == [(k, str(c)) for k in ("10", "40") for c in range(10)]
    probabilities, labels = by_hand(open_run(workdir, 40))
    guesses = probabilities.argmax(-1)
    for c, row in enumerate(rows[10:]):
        right, size, guessed = ((guesses == labels) & (labels == c)).sum(), (labels == c).sum(), (guesses == c).sum()
        assert (int(row["correct"]), int(row["examples"]), int(row["predicted"])) == (right, size, guessed)
        assert float(row["accuracy"]) == right / size
        assert row["precision"] == (str(right / guessed) if guessed else "")
    assert len(read(tmp_path / "p.csv")) == 2 * 355


def test_a_protocol_is_written_too(workdir, evaluate, tmp_path):
    (found,) = evaluate("--protocol=dense", "--scales=8", "--predictions", tmp_path / "p.csv")
    rows = read(tmp_path / "p.csv")
    assert [int(row["example"]) for row in rows] == list(range(355))
    assert np.mean([int(row["correct"]) for row in rows]) == pytest.approx(found["eval/top1"], abs=1e-12)


def test_the_mistakes_are_drawn(evaluate, tmp_path):
    evaluate("--confusion", tmp_path / "c.png", "--checkpoint=10")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two classes, one with a dangerous name; of four images to evaluate on the second is broken."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("=a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    (tmp_path / "val" / "=a" / "1.png").write_bytes(b"broken")
    return tmp_path


def test_a_broken_image_has_no_row_and_moves_no_other(folder, tmp_path):
    config = base_config()
    config.steps, config.global_batch_size, config.mesh.data = 1, 4, 1
    config.data.name, config.data.image_size, config.data.on_error = f"folder:{folder}", 8, "skip"
    model = Tiny(2)
    jaxcnn.train(config, tmp_path / "run", model=model)
    evaluation = open_run(tmp_path / "run", model=model).evaluation()
    assert (evaluation.scores["eval/examples"], evaluation.scores["eval/broken"]) == (3, 1)
    table = evaluation.example_table()
    assert table["example"] == [0, 2, 3]
    assert table["file"] == ["=a/0.png", "b/0.png", "b/1.png"]
    assert table["class"] == ["=a", "b", "b"]
    assert evaluation.class_table()["examples"] == [1, 2]
    assert evaluation.draw_mistakes() is not None


def test_nothing_readable_has_no_score(folder, tmp_path):
    config = base_config()
    config.steps, config.global_batch_size, config.mesh.data = 1, 4, 1
    config.data.name, config.data.image_size, config.data.on_error = f"folder:{folder}", 8, "skip"
    jaxcnn.train(config, tmp_path / "run", model=Tiny(2))
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match=str(folder)):
        open_run(tmp_path / "run", model=Tiny(2)).evaluate()
    with pytest.raises(UserError, match=str(folder)):
        jaxcnn.train(config, tmp_path / "other", model=Tiny(2))


@pytest.mark.parametrize("option", ["--predictions=p.csv", "--per-class=c.csv", "--confusion=m.png"])
def test_a_task_without_tables_says_so_by_the_option(option, workdir, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxcnn.tasks.classification.Classification.per_example", Task.per_example)
    assert cli.main(["evaluate", "--workdir", str(workdir), option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
