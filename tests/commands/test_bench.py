"""`jaxcnn bench`: what it counts and how its numbers hang together, never how fast anything is."""

import json
import re
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest
from tiny_experiment import experiment_text

from jaxcnn import cli, models
from jaxcnn.commands import bench as command
from jaxcnn.data import usable_cores
from jaxcnn.training import loop, profile, throughput
from jaxcnn.training.trained import TrainedModel

EXPERIMENT = experiment_text(steps=9, global_batch_size=32, data__augment="pad_crop", optimizer__schedule="constant")
THROUGHPUT = Path(__file__).parents[2] / "experiments" / "throughput"
LENGTHS = ["--steps", "3", "--warmup", "2", "--repeats", "2"]


@pytest.fixture(scope="module", autouse=True)
def _registry() -> Iterator[None]:
    with mock.patch.dict(models._REGISTRY):
        yield


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`run(*arguments) -> (exit code, stdout, stderr)` of a folder that holds the experiment and nothing else."""
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)

    def bench(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["bench", "--config", "tiny.py", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    yield bench
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["tiny.py"]


def rates(result: dict[str, Any], name: str) -> list[float]:
    row = result[name]
    assert row["median"] == statistics.median(row["all"])
    assert [row["min"], row["max"]] == [min(row["all"]), max(row["all"])]
    return row["all"]


def test_the_numbers_are_those_of_the_repeats_and_the_table_tells_them_in_80_columns(run):
    code, out, err = run(*LENGTHS, "--json", "--config.mesh.data=4")
    assert code == 0
    assert err.startswith("model ")
    result = json.loads(out)
    assert result["images"] == 3 * 32
    assert [result[key] for key in ("steps", "warmup", "repeats", "device_count")] == [3, 2, 2, 4]
    assert result["cores"] == usable_cores()
    data, device, both = (rates(result, name) for name in ("data_only", "device_only", "end_to_end"))
    assert len(data) == len(device) == len(both) == 2
    assert rates(result, "ratio") == [r / min(d, s) for r, d, s in zip(both, data, device, strict=True)]
    sums = [r * (1 / d + 1 / s) for r, d, s in zip(both, data, device, strict=True)]
    assert rates(result, "of_shared") == pytest.approx(sums)
    assert all(0 <= share <= 1 for share in rates(result, "data_wait_frac"))
    assert {"config_hash", "commit", "versions", "device_kind"} <= result.keys()
    table = command._table(result)
    assert max(map(len, table.splitlines())) <= 80
    assert "2 × 3 steps, after 2 that do not count" in table
    assert all(f"{result[name]['median']:,.0f}" in table for name in ("data_only", "device_only", "end_to_end"))
    assert "reading and the step share its cores" in table


def test_resident_data_is_not_read(run):
    code, out, _ = run(*LENGTHS, "--config.mesh.data=4", "--config.data.resident=true")
    assert code == 0
    assert "data only" not in out
    assert all(title in out for title in ("device only", "end to end", "none is read in training"))


def test_a_profile_is_taken_after_all_that_is_measured(run, tmp_path_factory, monkeypatch):
    order, folder = [], tmp_path_factory.mktemp("profile") / "new"

    def noted(name: str, work: Any) -> Any:
        return lambda *args, **kwargs: order.append(name) or work(*args, **kwargs)

    monkeypatch.setattr(throughput, "measure", noted("measure", throughput.measure))
    monkeypatch.setattr(profile, "record", noted("record", profile.record))
    code, out, _ = run(*LENGTHS, "--profile", str(folder), "--config.mesh.data=2")
    assert (code, order) == (0, ["measure", "record"])
    table = out[out.index("5 steps on 2 devices") :].splitlines()
    assert any(line.startswith("all-reduce ") for line in table)
    assert table[-1] == f"More in {folder}: summary.md, and the trace, plugins/profile."
    assert sorted(path.name for path in folder.iterdir()) == ["plugins", "summary.json", "summary.md"]


def test_the_profile_of_resident_data_counts_the_steps_of_a_call(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    several = ["--config.data.resident=true", "--config.data.steps_per_call=3", "--config.mesh.data=2"]
    code, out, _ = run(*LENGTHS, "--json", "--profile", str(folder), *several)
    assert code == 0
    found = json.loads(out)["profile"]
    assert json.loads((folder / "summary.json").read_text()) | {"folder": str(folder)} == found
    assert found["steps"] == 6  # two calls
    products = [row for row in found["operations"] if row["kind"] == "convolution"]
    assert products
    assert {row["count"] for row in products} == {1}


@pytest.mark.parametrize(("where", "words"), [("tiny.py", "is a file"), ("tiny.py/below", "can be written to")])
def test_a_profile_that_cannot_be_written_is_refused_before_anything_is_measured(run, monkeypatch, where, words):
    monkeypatch.setattr(command, "_measure", None)
    code, out, err = run("--profile", where)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "'0': write a whole number, 1 or more"),
        (["--repeats", "two"], "'two': write a whole number"),
        (["--warmup", "-1"], "--warmup"),
        (["--config.data.nmae=x"], "data.name"),
        (["--config.data.name=folder:nowhere"], "nowhere"),
        (["--config.mesh.data=3"], "32 does not divide by 3"),
        (["--workdir", "run"], "unknown argument --workdir"),
    ],
)
def test_wrong_use_is_one_line(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_each_part_is_measured_without_the_other(monkeypatch):
    """Batches that come, and steps that are taken, while a clock of seconds goes on as told."""
    now, counts = [0.0], {"reads": 0, "steps": 0}

    def spend(seconds: float, what: str) -> None:
        now[0] += seconds
        counts[what] += 1

    class Data:
        def train_batches(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
            for _ in range(start, stop):
                spend(2, "reads")
                yield {}

    def step(state: int, batch: Any) -> tuple[int, Any]:
        spend(3, "steps")
        return state + 1, mock.Mock(is_ready=lambda: True)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loop, "on_devices", lambda batches, mesh: batches)
    monkeypatch.setattr(jax, "device_get", lambda value: value)
    config, data = mock.Mock(global_batch_size=12, data=mock.Mock(resident=False)), Data()
    measured = throughput.measure(config, data, mock.Mock(), 0, step, steps=4, warmup=2, repeats=2)  # type: ignore[arg-type]
    expected = {"data_only": 6.0, "device_only": 4.0, "end_to_end": 2.4, "data_wait_frac": 0.4}
    assert measured == {name: [value] * 2 for name, value in expected.items()}
    assert counts == {"reads": 2 * 6 * 2, "steps": 2 * 6 * 2}
    assert throughput.summary(measured, shared=True)["of_shared"]["median"] == pytest.approx(1)


def test_the_photographs_of_the_throughput_study_are_the_same_on_every_run(tmp_path):
    make = runpy.run_path(str(THROUGHPUT / "photographs.py"))["make"]
    one, two, other = (make(tmp_path / name, 4, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert [path.relative_to(tmp_path / "a") for path in one] == [path.relative_to(tmp_path / "b") for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert not {path.read_bytes() for path in one} & {path.read_bytes() for path in other}


def test_the_throughput_study_measures_our_pipeline():
    words = [sys.executable, str(THROUGHPUT / "input.py"), "--quick"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    row = next(line for line in done.stdout.splitlines() if line.startswith("| jaxcnn |"))
    assert re.fullmatch(r"\| jaxcnn \| \d+ \| \d+ … \d+ \| \d+ \| 1\.00 \(1\.00 … 1\.00\) \|", row)


def infer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["bench", "--infer", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inference_needs_no_config_and_its_numbers_are_those_of_the_calls(capsys):
    words = ["--model", "resnet20", "--batches", "1,3", "--steps", "4", "--warmup", "1"]
    result = infer(capsys, *words, "--config.dtype=float32")
    assert (result["model"], result["image_shape"], result["dtype"]) == ("resnet20", [32, 32, 3], "float32")
    assert [row["batch"] for row in result["batches"]] == [1, 3]
    for row in result["batches"]:
        assert len(row["ms"]) == 4
        assert row["images_per_sec"] == pytest.approx(1e3 * row["batch"] * 4 / sum(row["ms"]))
        assert (row["p50_ms"], row["p99_ms"]) == (sorted(row["ms"])[1], max(row["ms"]))
    assert cli.main(["bench", "--infer", *words]) == 0
    first, head, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("resnet20, float32, images of 32×32×3, on one ")
    assert head.split() == ["batch", "images/s", "p50", "ms", "p99", "ms"]


def test_inference_times_what_predict_runs(capsys, monkeypatch):
    seen = []
    outputs = TrainedModel.outputs
    monkeypatch.setattr(TrainedModel, "outputs", lambda *a: seen.append(a[1].shape) or outputs(*a))
    infer(
        capsys, "--model", "resnet20", "--batches", "2", "--steps", "2", "--warmup", "1", "--config.data.image_size=16"
    )
    assert seen == [(2, 16, 16, 3)] * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--infer"], "--model is required"),
        (["--model", "resnet20"], "go with --infer"),
        (["--infer", "--model", "resnet2O"], "resnet20"),
        (["--infer", "--model", "resnet20", "--batches", "0"], "1 or more"),
        (["--infer", "--model", "resnet20", "--profile", "x"], "--profile"),
    ],
)
def test_what_inference_refuses(arguments, words, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err
