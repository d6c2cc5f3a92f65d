"""A sweep's file: which runs it means, how they are called, what is refused; and the table of their scores."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from jaxcnn import UserError
from jaxcnn.configfile import config_hash
from jaxcnn.training.sweep import read_sweep, tables

EXPERIMENT = """
from jaxcnn.config import base_config

ARGUMENTS = ("small", "large")


def get_config(size="small"):
    config = base_config()
    config.steps = {"small": 2, "large": 9}[size]
    return config
"""
FILE = """
[[run]]
config = ["mine.py", "mine.py:large"]
seeds = [3, 5]
set = { global_batch_size = 32, "data.augment" = "flip" }
sweep = { "optimizer.learning_rate" = [0.1, 0.02], dtype = ["float32"] }
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Any:
    """`sweep(text)`: the runs of a file of that text, beside the experiment that it names."""

    def read(text: str) -> Any:
        (tmp_path / "mine.py").write_text(EXPERIMENT)
        (tmp_path / "sweep.toml").write_text(text)
        return read_sweep(tmp_path / "sweep.toml")

    return read


def test_every_combination_is_a_run_whose_name_and_config_say_so(sweep, tmp_path):
    runs = sweep(FILE)
    assert [run.name for run in runs] == [
        f"{config},learning_rate={rate},dtype=float32,seed={seed}"
        for config in ("mine", "mine_large") for rate in ("0.1", "0.02") for seed in (3, 5)
    ]  # fmt: skip
    config = runs[-1].config
    assert (config.steps, config.optimizer.learning_rate, config.seed) == (9, 0.02, 5)
    assert (config.global_batch_size, config.data.augment, config.dtype) == (32, "flip", "float32")
    words = runs[0].command(tmp_path / "run")
    assert words[:5] == ["train", "--config", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "run")]
    assert {"--config.seed=3", "--config.optimizer.learning_rate=0.1", "--config.data.augment=flip"} <= {*words}


def test_a_value_or_a_seed_more_leaves_the_other_names(sweep):
    before = {run.name for run in sweep(FILE)}
    more = FILE.replace("[3, 5]", "[3, 5, 7]").replace('["float32"]', '["float32", "bfloat16"]')
    assert before < {run.name for run in sweep(more)}


def test_keys_of_one_last_name_are_written_in_full(sweep):
    text = '[[run]]\nconfig = "mine.py"\nsweep = { "model.name" = ["vgg11"], "optimizer.name" = ["sgd"] }'
    assert [run.name for run in sweep(text)] == ["mine,model.name=vgg11,optimizer.name=sgd"]


def test_seeds_of_one_config_may_come_from_two_tables_and_a_name_tells_others_apart(sweep):
    table = '[[run]]\nconfig = "mine.py"\nseeds = [{}]\n'
    assert {run.group for run in sweep(table.format(1) + table.format(2))} == {"mine"}
    named = table.format(1) + table.format(1) + 'name = "long"\nset = { steps = 5 }'
    assert [run.name for run in sweep(named)] == ["mine,seed=1", "long,seed=1"]


def test_a_value_cannot_leave_the_folder_and_a_long_one_still_fits_and_is_told_apart(sweep):
    values = ["../../x", *(f"{'y' * 300}{i}" for i in range(2))]
    runs = sweep(f'[[run]]\nconfig = "mine.py"\nname = "../.."\nsweep = {{ "data.name" = {json.dumps(values)} }}')
    names = {run.name for run in runs}
    assert len(names) == 3
    assert all(Path(name).name == name and not name.startswith(".") and len(name) <= 120 for name in names)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "'run'"),
        ("[[run]\n", "TOML"),
        ("[run]\nconfig = 'mine.py'", "'run'"),
        ("title = 1\n[[run]]\nconfig = 'mine.py'", "'title'"),
        ("[[run]]\nseeds = [1]", "'config'"),
        ("[[run]]\nconfig = []", "'config'"),
        ("[[run]]\nconfig = 'other.py'", "other.py"),
        ("[[run]]\nconfig = 'mine.py'\nsede = 1", "'sede'"),
        ("[[run]]\nconfig = 'mine.py'\nseeds = [1, 1]", "'seeds'"),
        ("[[run]]\nconfig = 'mine.py'\nseeds = [true]", "'seeds'"),
        ("[[run]]\nconfig = 'mine.py'\nseeds = []", "'seeds'"),
        ("[[run]]\nconfig = 'mine.py'\nseeds = [-1]", "seed"),
        ("[[run]]\nconfig = 'mine.py'\nset = { data.name = 'digits' }", "'set.data'"),
        ("[[run]]\nconfig = 'mine.py'\nset = { 'data.nmae' = 'digits' }", "data.name"),
        ("[[run]]\nconfig = 'mine.py'\nsweep = { steps = 4 }", "'sweep.steps'"),
        ("[[run]]\nconfig = 'mine.py'\nsweep = { seed = [4] }", "'sweep.seed'"),
        ("[[run]]\nconfig = 'mine.py'\nset = { steps = 4 }\nsweep = { steps = [4] }", "'set.steps'"),
        ("[[run]]\nconfig = 'mine.py'\nset = { seed = 4 }\nseeds = [4]", "'set.seed'"),
        ("[[run]]\nconfig = 'mine.py'\n[[run]]\nconfig = 'mine.py'\nset = { steps = 4 }", "'mine'"),
        (
            "[[run]]\nconfig = 'mine.py'\nseeds = [1]\n[[run]]\nconfig = 'mine.py'\nseeds = [2]\nset = { steps = 4 }",
            "'mine,seed=2'",
        ),
        (f"a = {'[' * 10**5}", "TOML"),
    ],
)
def test_a_file_that_means_no_runs_is_refused_by_what_is_wrong(text, named, sweep):
    with pytest.raises(UserError, match=named):
        sweep(text)


def finish(run: Any, out: Path, **values: Any) -> None:
    (out / run.name).mkdir(parents=True)
    result = {"config_hash": config_hash(run.config), "step": run.config.steps, "wall_time_s": 7.0, **values}
    (out / run.name / "result.json").write_text(json.dumps(result))


def test_a_result_counts_for_the_config_that_it_is_of_alone(sweep, tmp_path):
    text = "[[run]]\nconfig = 'mine.py'\nset = { steps = 2 }"
    (run,), (longer,) = sweep(text), sweep(text.replace("2", "3"))
    assert run.name == longer.name
    assert run.result(tmp_path) == {}
    finish(run, tmp_path)
    assert run.result(tmp_path)["step"] == 2
    assert longer.result(tmp_path) == {}
    (tmp_path / run.name / "result.json").write_text("{")
    assert run.result(tmp_path) == {}


def test_the_table_has_each_run_and_the_mean_and_deviation_over_seeds(sweep, tmp_path):
    runs = sweep(FILE.replace('"mine.py", ', "").replace("[3, 5]", "[3, 5, 7]"))
    for run, top1 in zip(runs[:4], (0.5, 0.6, 0.8, 0.25), strict=True):
        finish(run, tmp_path, **{"eval/top1": top1, "eval/loss": 2.0})
    states = {run.name: "done" for run in runs[:4]} | {runs[4].name: "failed: a | b", runs[5].name: "not begun"}
    markdown, text = tables(runs, tmp_path, states)
    lines = [[cell.strip() for cell in line.split(" | ")] for line in markdown.splitlines()]
    heading, _, *rows = lines
    top1 = heading.index("top1")
    assert [row[top1] for row in rows] == ["50.00%", "60.00%", "80.00%", "63.33% ± 15.28%", "25.00%", "", "", "25.00%"]
    assert "3 of 3 seeds" in rows[3][-1]
    assert "1 of 3 seeds" in rows[7][-1]
    assert r"failed: a \| b" in markdown
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["run"] for row in table] == [run.name for run in runs]
    assert [(row["seed"], row["optimizer.learning_rate"], row["eval/top1"]) for row in table[:4]] == [
        ("3", "0.1", "0.5"), ("5", "0.1", "0.6"), ("7", "0.1", "0.8"), ("3", "0.02", "0.25"),
    ]  # fmt: skip
    assert table[4]["eval/top1"] == ""


def test_the_shipped_sweeps_mean_runs():
    files = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.toml"))
    assert files
    for file in files:
        assert len(read_sweep(file)) > 1
