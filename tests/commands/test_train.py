"""`jaxcnn train` as its users meet it: signals, exit codes, messages, and a run that goes on where it was."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_experiment import experiment_text

from jaxcnn import cli, models
from jaxcnn.safe_files import only_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # by Orbax, in `state`
EXPERIMENT = experiment_text(
    steps=400, global_batch_size=32, log_every=20, eval_every=180, checkpoint_every=70, mesh__data=1,
    model__overrides__dropout=0.1, data__augment="pad_crop", optimizer__schedule="constant",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _registry() -> Iterator[None]:
    with mock.patch.dict(models._REGISTRY):
        yield


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


def words(experiment: Path, workdir: Path, *overrides: str) -> list[str]:
    return ["train", "--config", str(experiment), "--workdir", str(workdir), *(f"--config.{o}" for o in overrides)]


@pytest.fixture(scope="module")
def whole(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the experiment that nothing cut. Not to be written to."""
    workdir = tmp_path_factory.mktemp("whole")
    assert cli.main(words(experiment, workdir)) == 0
    return workdir


@pytest.fixture
def refused(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`refused(*overrides)`: the one line on stderr with which training is refused; `workdir` is new unless given."""

    def refuse(*overrides: str, workdir: Path = tmp_path / "run", config: Path = experiment) -> str:
        assert cli.main(words(config, workdir, *overrides)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        *plan, message = err.splitlines()
        assert message.startswith("jaxcnn: ")
        assert "Traceback" not in err
        assert not plan or plan[0].startswith("model ")
        return message

    return refuse


def start(experiment: Path, workdir: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcnn.cli", *words(experiment, workdir, *overrides)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], begin: str) -> str:
    """Read its stderr up to a line that starts so; the lines before it."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        if line.startswith(begin):
            return "".join(lines)
        lines.append(line)
    raise AssertionError(f"it ended without a line '{begin}…': {''.join(lines)}")


def log(workdir: Path) -> list[dict[str, float]]:
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("train/images_per_sec", "train/data_wait_frac")} for line in lines
    ]


def state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read by Orbax alone."""
    tree = ocp.PyTreeCheckpointer().restore(workdir.resolve() / "checkpoints" / str(step) / "state")
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_run(workdir: Path, whole: Path) -> None:
    assert log(workdir) == log(whole)
    left, right = state(workdir, 400), state(whole, 400)
    assert left.keys() == right.keys()
    assert [path for path in left if left[path].tobytes() != right[path].tobytes()] == []


def test_ctrl_c_and_sigterm_end_it_with_their_codes_and_the_same_command_finishes_the_very_same_run(
    experiment, whole, tmp_path
):
    workdir, reached = tmp_path / "run", 0
    for number, code, line in ((signal.SIGINT, 130, 100), (signal.SIGTERM, 143, 200)):
        with start(experiment, workdir) as process:
            before = wait_for(process, f"step {line}/400")
            process.send_signal(number)
            out, err = process.communicate(timeout=300)
        assert process.returncode == code
        assert out == ""
        last = err.splitlines()[-1]
        assert last.startswith(f"jaxcnn: {number.name}: stopped at step ")
        assert last.endswith(f"of 400, saved in {workdir}/checkpoints; run the same command again to go on")
        assert ("resuming   from the checkpoint of step" in before) == (reached > 0)
        stopped = int(last.split(" step ")[1].split()[0])
        assert max(reached, line) <= stopped < 400
        assert (workdir / "checkpoints" / str(stopped)).is_dir()
        reached = stopped
    with start(experiment, workdir) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(out)["step"] == 400
    assert f"resuming   from the checkpoint of step {reached}" in err
    assert all(c == "\n" or c.isprintable() for c in err)  # no terminal: plain lines
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_killed_at_any_moment_it_finishes_the_very_same_run(experiment, whole, tmp_path):
    workdir = tmp_path / "run"
    for line, pause in ((0, 0.0), (20, 0.0), (80, 0.02), (100, 0.0), (140, 0.01), (220, 0.05)):
        with start(experiment, workdir) as process:
            wait_for(process, f"step {line}/400" if line else "compiled")
            time.sleep(pause)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    with start(experiment, workdir) as process:
        process.communicate(timeout=300)
    assert process.returncode == 0
    assert_same_run(workdir, whole)
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_resnet20_killed_and_stopped_is_resnet20_left_alone(experiment, tmp_path):
    path = tmp_path / "resnet20.py"
    path.write_text(EXPERIMENT.replace("config.model.overrides.dropout = 0.1", ""))
    overrides = ["model.name=resnet20", "steps=60", "checkpoint_every=25"]
    for name in ("alone", "cut"):
        if name == "cut":
            for number, line in ((signal.SIGKILL, 40), (signal.SIGTERM, 20)):
                with start(path, tmp_path / name, *overrides) as process:
                    wait_for(process, f"step {line}/60")
                    process.send_signal(number)
        with start(path, tmp_path / name, *overrides) as process:
            process.communicate(timeout=300)
        assert process.returncode == 0
    assert log(tmp_path / "cut") == log(tmp_path / "alone")
    left, right = state(tmp_path / "cut", 60), state(tmp_path / "alone", 60)
    assert [path for path in right if left[path].tobytes() != right[path].tobytes()] == []


def test_a_complete_run_run_again_says_the_same_and_changes_no_file(experiment, whole, capsys):
    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}

    before = files()
    assert cli.main(words(experiment, whole)) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads((whole / "result.json").read_text())
    assert json.loads(line).items() <= result.items()
    assert files() == before


def test_what_is_left_in_the_folder_is_what_the_design_names(whole):
    names = {p.name for p in whole.iterdir()}
    assert names == {".lock", "config.json", "metrics.jsonl", "checkpoints", "tensorboard", "result.json"}
    assert json.loads((whole / "config.json").read_text())["optimizer.name"] == "adam"
    found = log(whole)
    assert [line["step"] for line in found if "train/loss" in line] == list(range(20, 401, 20))
    assert [(line["step"], line["eval/examples"]) for line in found if "eval/loss" in line] == [
        (180, 355), (360, 355), (400, 355),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed was 0, is 1"),
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate was 0.001, is 0.5"),
        ("global_batch_size=16", "global_batch_size was 32, is 16"),
        ("model.overrides.dropout=0.2", "model.overrides.dropout was 0.1, is 0.2"),
        ("ema.decay=0", "ema.decay was 0.9, is 0.0"),
    ],
)
def test_another_config_in_the_same_folder_is_refused_by_its_key(override, words, whole, refused):
    before = (whole / "config.json").read_text()
    assert words in refused(override, workdir=whole)
    assert (whole / "config.json").read_text() == before


def test_a_complete_run_can_be_made_longer(experiment, tmp_path, capsys):
    for steps in (20, 30):
        assert cli.main(words(experiment, tmp_path, f"steps={steps}")) == 0
        assert json.loads(capsys.readouterr().out)["step"] == steps
    assert [line["step"] for line in log(tmp_path) if "train/loss" in line] == [20, 30]


def test_a_reader_that_leaves_and_a_closed_stdout_end_no_run(experiment, tmp_path):
    command = [sys.executable, "-m", "jaxcnn.cli", *words(experiment, tmp_path / "left", "steps=60")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for(process, "model ")
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(timeout=300) == 0
    assert log(tmp_path / "left")[-1]["step"] == 60
    closed = [sys.executable, "-m", "jaxcnn.cli", *words(experiment, tmp_path / "closed", "steps=20")]
    shell = f"{shlex.join(closed)} <&- >&-"
    ended = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)


@pytest.mark.parametrize("damage", ['{"step": 2', "[1]", ""])
def test_a_damaged_result_is_written_again(damage, experiment, tmp_path, capsys):
    assert cli.main(words(experiment, tmp_path, "steps=20")) == 0
    result = tmp_path / "result.json"
    before = json.loads(result.read_text())
    result.write_text(damage)
    assert cli.main(words(experiment, tmp_path, "steps=20")) == 0
    assert json.loads(result.read_text())["eval/loss"] == before["eval/loss"]


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(refused, tmp_path):
    with only_trainer(tmp_path / "run"):
        assert f"in use by process {os.getpid()} on " in refused()
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["global_batch_size=2000"], "config.global_batch_size=2000 is more than the 1442 training examples"),
        (["optimizer.accumulate=5"], "config.optimizer.accumulate=5 does not divide config.global_batch_size=32"),
        (["mesh.data=5"], "global_batch_size=32 does not divide by 5"),
        (["mesh.data=8", "optimizer.accumulate=8"], "the nearest that does is 64"),
        (["mesh.data=9"], "there are 8"),
        (["epochs=1"], "config.steps and config.epochs: set exactly one"),
        (["steps=0"], "config.steps and config.epochs: set exactly one"),
        (["steps=-5"], "config.steps=-5: it must be at least 0"),
        (["log_every=0"], "config.log_every=0: it must be 1 or more"),
        (["step=5"], "did you mean 'steps'?"),
        (["model.name=resnet21"], "resnet20"),
        (["model.overrides.depth=3"], "override"),
        (["data.name=digitz"], "did you mean digits?"),
        (["data.eval_split=validation"], "its splits are train, test"),
        (["model.num_classes=3"], "less than the 10 classes of digits"),
        (["init_from=/nowhere"], "holds no checkpoints"),
        (["optimizer.warmup_steps=5", "optimizer.warmup_epochs=1"], "set one of the two"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line_and_leaves_no_checkpoint(overrides, words, refused, tmp_path):
    assert words in refused(*overrides)
    assert not list(tmp_path.rglob("checkpoints/*"))


def test_a_folder_that_is_a_file_is_refused(refused, experiment):
    assert "cannot be written" in refused(workdir=experiment)


def test_a_loss_that_is_not_finite_ends_it_with_the_step_and_the_last_good_checkpoint(refused, tmp_path):
    rate = ["optimizer.name=sgd", "optimizer.learning_rate=1e38", "checkpoint_every=1"]
    message = refused(*rate)
    assert "stopped at step " in message
    assert "the loss is " in message
    assert "Last good checkpoint: " in message
    for folder in (tmp_path / "run" / "checkpoints").glob("[0-9]*"):
        assert all(np.isfinite(x).all() for x in state(tmp_path / "run", int(folder.name)).values())
    assert not (tmp_path / "run" / "result.json").exists()


def test_training_can_start_from_the_weights_of_a_run(experiment, whole, tmp_path):
    assert cli.main(words(experiment, tmp_path, f"init_from={whole}", "steps=20")) == 0
    assert log(tmp_path)[0]["train/loss"] < log(whole)[0]["train/loss"]


def test_weights_of_another_network_are_refused_by_the_arrays_that_differ(whole, refused):
    message = refused(f"init_from={whole}/checkpoints/400", "model.overrides.norm=False")
    assert "batch_stats/norm/mean is (4,) where the config needs none" in message
