"""`jaxcnn compare`: columns and rows, means over seeds, runs that are still training, and bad folders."""

import csv
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxcnn import cli
from jaxcnn.commands import compare
from jaxcnn.config import TASK_KEYS, base_config
from jaxcnn.tasks import create_task


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """`make(name, top1s, result, **keys)`: the folder of a run with an evaluation at each step of `top1s`."""

    def folder(name: str, top1s: list[float], result: bool = True, **keys: Any) -> str:
        run = tmp_path / name
        run.mkdir()
        config = {"task.name": "classification", "epochs": float(len(top1s)), "seed": 0} | {
            key.replace("__", "."): value for key, value in keys.items()
        }
        (run / "config.json").write_text(json.dumps(config))
        lines = [
            {"step": 10 * n, "epoch": n, "train/images_per_sec": 50.0, "eval/top1": top1, "eval/loss": 1 - top1}
            for n, top1 in enumerate(top1s, start=1)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if result:
            final = {
                "best/eval/top1": max(top1s),
                "parameters": 1234,
                "wall_time_s": 90.0,
                "train_images_per_sec": 70.0,
            }
            (run / "result.json").write_text(json.dumps(lines[-1] | final))
        return str(run)

    return folder


def rows(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, str]]:
    assert cli.main(["compare", "--md", *argv]) == 0
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in capsys.readouterr().out.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_a_row_has_what_differs_and_what_came_out(make, capsys):
    first = make("first", [0.5, 0.75, 0.625], optimizer__learning_rate=0.1)
    second = make("second", [0.5], optimizer__learning_rate=0.2, model__overrides__width=2)
    one, two = rows(capsys, first, second)
    assert one == {
        "run": "first", "epochs": "3.0", "width": "–", "learning_rate": "0.1", "parameters": "1,234", "steps": "30",
        "loss": "0.375", "top1": "0.625", "best top1": "0.75", "minutes": "1.5", "images/s": "70", "state": "done",
    }  # fmt: skip
    assert (two["width"], two["learning_rate"], two["steps"]) == ("2", "0.2", "10")


def test_runs_that_differ_in_the_seed_alone_are_one_row(make, capsys):
    scores = [0.5, 0.6, 0.85]
    seeds = [make(f"seed{seed}", [score], seed=seed) for seed, score in enumerate(scores)]
    again, other = make("again", [0.5], seed=0), make("other", [0.9], dtype="float32", seed=1)
    group, repeated, alone = rows(capsys, *seeds, again, other)
    assert (group["run"], group["seed"], group["n"]) == ("seed0 (+2)", "0, 1, 2", "3")
    assert group["top1"] == f"{statistics.mean(scores):.5g} ± {statistics.stdev(scores):.2g}"
    assert group["parameters"] == "1,234"
    assert (repeated["run"], repeated["n"], repeated["top1"]) == ("again", "1", "0.5")
    assert (alone["n"], alone["top1"], alone["dtype"]) == ("1", "0.9", "float32")


def test_a_run_that_still_trains_is_a_row_of_its_own_with_what_its_log_has(make, capsys):
    done, training = make("done", [0.5, 0.6], seed=0), make("training", [0.7, 0.4], result=False, seed=1)
    config = json.loads(Path(training, "config.json").read_text()) | {"epochs": 9.0}
    Path(training, "config.json").write_text(json.dumps(config))
    _, row = rows(capsys, done, training)
    assert (row["state"], row["top1"], row["best top1"]) == ("training: epoch 2 of 9.0", "0.4", "0.7")
    assert (row["parameters"], row["minutes"], row["images/s"]) == ("–", "–", "50")


def test_a_result_that_is_older_than_the_log_is_that_of_a_run_made_longer(make, capsys):
    run = make("longer", [0.5], steps=20, epochs=0)
    with Path(run, "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "epoch": 1.2}\n{"step": 14, "ep')
    (row,) = rows(capsys, run)
    assert (row["state"], row["steps"]) == ("training: step 12 of 20", "12")


def test_as_csv_every_run_is_a_row_in_full_precision(make, capsys):
    runs = [make(f"seed{seed}", [score], seed=seed) for seed, score in enumerate([1 / 3, 2 / 3])]
    assert cli.main(["compare", "--csv", *runs]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["run"], row["seed"], float(row["eval/top1"])) for row in found] == [
        ("seed0", "0", 1 / 3), ("seed1", "1", 2 / 3),
    ]  # fmt: skip


def test_a_table_wider_than_the_terminal_is_turned_over(make, capsys, monkeypatch):
    runs = [make(name, [0.5], optimizer__learning_rate=rate) for name, rate in (("a", 0.1), ("b", 0.2))]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main(["compare", *runs]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "a", "b"]
    assert ["learning_rate", "0.1", "0.2"] in lines


def test_keys_that_an_older_config_lacks_are_at_their_default(make, capsys):
    row, _ = rows(capsys, make("old", [0.5]), make("new", [0.5], optimizer__name="adam", optimizer__power=2.0))
    assert (row["power"], "optimizer.name" in row) == ("1.0", False)


def test_a_result_of_wrong_types_is_no_crash(make, capsys):
    run = make("odd", [0.5], epochs="x")
    Path(run, "result.json").write_text('{"step": 10, "parameters": "x", "wall_time_s": [], "best/eval/top1": null}')
    (row,) = rows(capsys, run)
    assert (row["state"], row["best top1"]) == ("done", "0.5")


@pytest.mark.parametrize("task", TASK_KEYS)
def test_the_best_score_of_every_task_is_known(task):
    config = base_config(task)
    tasks = [create_task(config)]
    if task == "detection":
        config.task.metric = "coco"
        tasks.append(create_task(config))
    if task == "gan":
        config.task.features = "folder"
        tasks.append(create_task(config))
    for name, direction in (each.best for each in tasks):
        assert compare.BEST[name] is {"max": max, "min": min}[direction]


@pytest.mark.parametrize(("text", "words"), [(None, "no config.json"), ("{", "cannot be read"), ("[1]", "no config")])
def test_a_folder_that_is_no_run_is_refused_by_its_name(text, words, tmp_path, capsys):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert cli.main(["compare", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert words in error


def test_no_jax_is_loaded(make):
    probe = "import sys; from jaxcnn.cli import main; main(sys.argv[1:]); sys.exit('jax' in sys.modules)"
    argv = [sys.executable, "-c", probe, "compare", make("run", [0.5])]
    assert subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode == 0
