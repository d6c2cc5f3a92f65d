"""`jaxcnn sweep`: each run in a process of its own, what is done is skipped, faults of one leave the others alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tiny_experiment import experiment_text

from jaxcnn import cli, models
from jaxcnn.data.dataset import Dataset

# The run of seed 2 waits for the batch that SWEEP_WAITS names: what is done to it meanwhile is no matter of luck.
WAITS = """
from jaxcnn.data import dataset
import os, time

_batches = dataset.Dataset.train_batches


def batches(self, start, stop):
    for step, batch in enumerate(_batches(self, start, stop), start):
        if self.config.seed == 2 and str(step) == os.environ.get("SWEEP_WAITS"):
            time.sleep(1e6)
        yield batch


dataset.Dataset.train_batches = batches
"""
# These tests have loaded JAX, which warns of every fork; the command has not.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SETTINGS = {"steps": 20, "global_batch_size": 32, "log_every": 2, "checkpoint_every": 2, "eval_every": 20}
SEEDS = '[[run]]\nconfig = "tiny.py"\nseeds = [1, 2, 3]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with an experiment and a sweep of three seeds."""
    (tmp_path / "tiny.py").write_text(WAITS + experiment_text(**SETTINGS))
    (tmp_path / "sweep.toml").write_text(SEEDS)
    # A sweep reads the experiment in this process, too: what it registers and replaces ends with the test.
    batches = mock.patch.object(Dataset, "train_batches", Dataset.train_batches)
    with mock.patch.dict(models._REGISTRY), batches:
        yield tmp_path


@contextlib.contextmanager
def started(folder: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """`jaxcnn sweep` as a process; none of it outlives the block."""
    words = [sys.executable, "-m", "jaxcnn.cli", "sweep", str(folder / "sweep.toml"), "--out", str(folder / "out")]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=os.environ | env, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def sweep(folder: Path, *words: str, file: str = "sweep.toml") -> int:
    return cli.main(["sweep", str(folder / file), "--out", str(folder / "out"), *words])


def wait_for(process: subprocess.Popen[str], path: Path, text: str) -> None:
    """Return once the file holds the text."""
    until = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_stopped_and_started_again_it_is_finished(folder, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    (folder / "sweep.toml").write_text(SEEDS.replace("1, 2, 3", "1, 2"))
    out, second = folder / "out", folder / "out" / "tiny,seed=2"
    with started(folder, SWEEP_WAITS="8") as process:
        wait_for(process, second / "train.log", "step 6/20")
        process.kill()
        process.communicate()
    first = (out / "tiny,seed=1" / "result.json").read_bytes()
    assert not (second / "result.json").exists()
    with started(folder, SWEEP_WAITS="16") as process:
        wait_for(process, second / "train.log", "step 14/20")  # the killed one let go of its folder
        process.send_signal(signal.SIGTERM)
        printed, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "again to go on" in said.splitlines()[-1]
    assert "tiny,seed=1: has a result" in said
    assert [line.split(" | ")[-1].split()[0] for line in printed.splitlines()[2:4]] == ["done", "stopped"]
    assert sweep(folder) == 0
    assert (out / "tiny,seed=1" / "result.json").read_bytes() == first
    table = capsys.readouterr().out
    assert "2 of 2 seeds" in table
    assert table in (out / "table.md").read_text()
    log = (second / "train.log").read_text()
    assert "the checkpoint of step 14" in log  # saved when it was asked to stop, and resumed
    lines = [json.loads(text) for text in (second / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(2, 21, 2))


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_and_the_exit_code_says_so(folder, capsys):
    (folder / "sweep.toml").write_text(
        '[[run]]\nconfig = "tiny.py"\nset = { steps = 2 }\nsweep = { "data.name" = ["synthetic:1:0", "digits"] }\n'
    )
    assert sweep(folder) == 2
    printed, said = capsys.readouterr()
    bad, good = printed.splitlines()[2:4]
    assert "failed: " in bad
    assert "synthetic" in bad.rpartition("failed: ")[2]
    assert " done " in good
    assert "tiny,data" not in said.splitlines()[-1]
    assert said.splitlines()[-1].startswith("jaxcnn: tiny,name=synthetic_1_0: ")
    # What is done is skipped: the folder's files are as they were, and one run alone can be asked for.
    result = folder / "out" / "tiny,name=digits" / "result.json"
    before = result.stat().st_mtime_ns
    assert sweep(folder, "--task", "1") == 0
    assert "name=digits: has a result" in capsys.readouterr().err
    assert result.stat().st_mtime_ns == before


def test_the_runs_are_listed_with_their_numbers_and_nothing_is_written(folder, capsys):
    assert sweep(folder, "--list") == 0
    assert capsys.readouterr().out.splitlines() == [f"{i}  tiny,seed={i + 1}  not begun" for i in range(3)]
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "index", "named"),
    [
        (["--task", "3"], "", "0 to 2"),
        (["--task=-1"], "", "--task"),
        (["--array"], "", "SLURM_ARRAY_TASK_ID"),
        (["--array"], "3", "0 to 2"),
        (["--array", "--task", "1"], "1", "--task"),
        (["--config.steps=3"], "", "--config.steps=3"),
    ],
)
def test_a_number_that_is_none_of_a_run_is_refused(words, index, named, folder, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", index)
    assert sweep(folder, *words) == 2
    assert named in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_an_array_task_trains_the_run_of_its_number(folder, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    asked = []
    monkeypatch.setattr("jaxcnn.commands.sweep._train_all", lambda runs, out: (asked.extend(runs), ({}, None))[1])
    assert sweep(folder, "--array") == 0
    assert [run.name for run in asked] == ["tiny,seed=3"]


def test_a_folder_of_another_config_is_refused_before_anything_is_trained(folder, capsys):
    text = '[[run]]\nconfig = "tiny.py"\nset = { steps = 2, dtype = "bfloat16" }\n'
    (folder / "sweep.toml").write_text(text)
    begun = folder / "out" / "tiny"
    assert sweep(folder) == 0
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    (folder / "sweep.toml").write_text(text.replace("bfloat16", "float32"))
    capsys.readouterr()
    assert sweep(folder) == 2
    assert "dtype was 'bfloat16'" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == before


def test_the_array_script_trains_one_run_and_is_queued_again_when_it_was_stopped(folder):
    for name, text in (
        ("srun", '#!/bin/bash\nprintf "%s\\n" "$@"\nexit 143\n'),
        ("scontrol", '#!/bin/bash\necho "$@"\n'),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    script = Path(__file__).parents[2] / "experiments" / "launch" / "sweep.sbatch"
    done = subprocess.run([script, "a b.toml", "out"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stdout.splitlines()[1:] == ["jaxcnn", "sweep", "a b.toml", "--out", "out", "--array", "requeue 7_2"]
