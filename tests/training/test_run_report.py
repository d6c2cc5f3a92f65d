"""What a run says of itself, and its clock."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny import Blobs, Tiny, build, tiny_config

import jaxcnn
from jaxcnn.training import run_log


class Time:
    """Passes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        monkeypatch.setattr(run_log.time, "monotonic", lambda: self.now)


@pytest.fixture
def time(monkeypatch) -> Time:
    return Time(monkeypatch)


def test_training_time_is_what_passes_between_start_and_stop(time):
    clock = run_log.Clock({}, time.now)
    time.now += 5  # compiling, say
    clock.start()
    time.now += 2
    clock.stop(())
    time.now += 30  # evaluating
    clock.start()
    time.now += 3
    clock.stop(())
    assert clock.totals() == {"wall_time_s": 40, "train_time_s": 5, "data_wait_s": 0, "compile_time_s": 0}
    assert clock.lap(100) == {"train/images_per_sec": 20, "train/data_wait_frac": 0}


def test_a_lap_is_of_what_came_since_the_one_before(time):
    clock = run_log.Clock({}, time.now)
    rates = []
    for seconds in (4, 8):
        clock.start()
        time.now += seconds
        clock.stop(())
        rates.append(clock.lap(64)["train/images_per_sec"])
    assert rates == [16, 8]


def test_a_resumed_clock_goes_on_but_its_first_lap_is_its_own(time):
    clock = run_log.Clock(
        {"wall_time_s": 1000.0, "train_time_s": 800.0, "data_wait_s": 300.0, "compile_time_s": 9.0}, time.now
    )
    clock.start()
    time.now += 2
    clock.stop(())
    assert clock.lap(50) == {"train/images_per_sec": 25, "train/data_wait_frac": 0}
    assert clock.totals() == {"wall_time_s": 1002, "train_time_s": 802, "data_wait_s": 300, "compile_time_s": 9}


class Flying:
    def __init__(self, ready: bool):
        self.ready = ready

    def is_ready(self) -> bool:
        return self.ready


@pytest.mark.parametrize(
    ("flying", "counted"), [([], 3), ([Flying(True)], 3), ([Flying(False)], 0), ([Flying(True), Flying(False)], 0)]
)
def test_waiting_for_data_counts_where_the_device_had_nothing_left_to_do(flying, counted, time):
    clock = run_log.Clock({}, time.now)
    clock.start()
    with clock.waiting_for_data(flying):
        time.now += 3
    time.now += 1
    clock.stop(())
    assert clock.totals()["data_wait_s"] == counted
    assert clock.lap(8)["train/data_wait_frac"] == counted / 4


def test_compiling_is_measured(time):
    clock = run_log.Clock({"compile_time_s": 1.0}, time.now)
    with clock.measuring("compile_time_s"):
        time.now += 7
    assert clock.totals()["compile_time_s"] == 8


def test_a_lap_without_time_divides_by_no_zero(time):
    assert run_log.Clock({}, time.now).lap(8)["train/images_per_sec"] > 0


@pytest.mark.parametrize(("dtype", "start"), [("float32", 0), ("bfloat16", 1234)])
def test_the_plan_tells_model_types_devices_data_and_length(dtype, start):
    config = tiny_config(dtype=dtype, mesh__data=4, steps=5000, optimizer__name="sgd")
    text = run_log.start_lines(config, build(config), Blobs(), start)
    for fact in (
        "146 parameters", "6 classes", "5×4×3", f"{dtype} compute", "float32", "4 × cpu", "80 to train on",
        "37 to evaluate on", "5,000 steps of 16", "5 an epoch", "sgd, rate 0.01, constant",
    ):  # fmt: skip
        assert fact in text, fact
    assert ("resuming   from the checkpoint of step 1,234" in text) == (start > 0)


def notes(config: Any, model: Any = None, data: Any = None) -> list[str]:
    data = data or Blobs()
    lines = run_log.start_lines(config, build(config, model, data), data, 0).splitlines()
    return [line for line in lines if line.startswith("note")]


def test_what_surprises_is_noted():
    assert notes(tiny_config()) == []
    (line,) = notes(tiny_config(optimizer__warmup_steps=12))
    assert "warmup_steps" in line
    (line,) = notes(tiny_config(optimizer__freeze="norm"))
    assert "frozen_norm" in line
    assert notes(tiny_config(optimizer__freeze="conv")) == []
    assert notes(tiny_config(optimizer__freeze="conv"), Tiny(frozen=True)) == []
    (line,) = notes(tiny_config(), Tiny(1), Blobs(num_classes=1))
    assert "one class" in line


def test_the_compiled_step_tells_its_memory():
    program = build(tiny_config())
    executable = program.compile_training()
    assert re.fullmatch(
        r"compiled   in 1\.5 s; each device holds [\d.]+ kB of state and batch, [\d.]+ k?B of temporaries",
        run_log.compiled_line(executable, 1.5),
    )


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True).stdout


def test_the_commit_is_that_of_the_code_and_marked_where_files_have_changed(tmp_path, monkeypatch):
    code = tmp_path / "jaxcnn" / "__init__.py"
    code.parent.mkdir()
    code.write_text("")
    monkeypatch.setattr(jaxcnn, "__file__", str(code))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # A checkout around it is none of the code's.
    assert run_log.commit() == ""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "jaxcnn")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    git(tmp_path, "tag", "--annotate", "v1", "--message", "A name is not what is recorded.")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert run_log.commit() == commit
    code.write_text("changed")
    assert run_log.commit() == f"{commit}+"


def test_without_git_there_is_no_commit(monkeypatch):
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert run_log.commit() == ""


def test_stopping_waits_for_the_device_before_it_reads_the_clock(time):
    class Computing:
        def block_until_ready(self) -> None:
            time.now += 3

    clock = run_log.Clock({}, time.now)
    clock.start()
    clock.stop({"params": Computing(), "step": Computing()})
    time.now += 1
    assert clock.totals()["train_time_s"] == 6
