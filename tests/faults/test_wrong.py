"""Clocks that jump, configs and checkpoints that do not fit, losses that are lost, and two trainers on one folder."""

import shutil
import signal

import pytest
from campaign import TOTAL, assert_same_run, assert_whole, ends, log, reached, run, start, steps, tree, wait_until

pytestmark = pytest.mark.faults
MINUTE, DAY = 60.0, 86400.0


def test_clocks_that_jump(experiment, whole, tmp_path, row):
    """Within a run they stay below the five minutes after which Orbax, which goes by the clock, gives up a save."""
    within = 2 * MINUTE
    for goal, jumps in ((60, f"{within} 0 {-within}"), (150, f"{-30 * DAY}"), (TOTAL, f"{DAY} {DAY - within}")):
        with start(experiment, tmp_path, env={"FAULTS_CLOCK": jumps}) as process:
            wait_until(process, lambda goal=goal: reached(tmp_path) >= goal)
            process.send_signal(signal.SIGTERM if goal < TOTAL else 0)
            code, err, _ = ends(process, 120)
        assert code == (143 if goal < TOTAL else 0), err
        assert_whole(tmp_path)
    assert_same_run(tmp_path, whole)
    names = [path.name.split(".")[3] for path in (tmp_path / "tensorboard").iterdir()]
    assert len(set(names)) == 3  # in the order of the runs, though the clock was set back by a month
    row(
        "the clock jumps by minutes within a run, by days between two",
        3,
        "nothing depends on it: to the bit",
        "nothing",
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed was 0, is 1"),
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate was 0.001, is 0.5"),
        ("model.name=resnet20", "model.name was 'tiny', is 'resnet20'"),
    ],
)
def test_a_config_that_cannot_resume_is_refused_by_its_key(override, words, experiment, whole, tmp_path, row):
    shutil.copytree(whole, tmp_path / "run")
    code, err = run(experiment, tmp_path / "run", override)
    assert code == 2
    assert words in err.splitlines()[-1]
    assert tree(tmp_path / "run") == tree(whole)
    row(f"config changed: {override}", 1, "exit 2, the key named with both values, nothing changed", "nothing")


def test_a_checkpoint_of_another_model_is_refused_by_its_arrays(experiment, whole, tmp_path, row):
    code, err = run(experiment, tmp_path / "other", "model.overrides.norm=False", "steps=20")
    assert code == 0, err
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    code, err = run(experiment, tmp_path / "run")
    assert code == 2
    assert "is of another model or optimizer: " in err.splitlines()[-1]
    row("a checkpoint of another model", 1, "exit 2, the arrays that differ named", "nothing")


def test_a_loss_that_is_lost_just_before_an_evaluation(experiment, tmp_path, row):
    """The evaluation of step 90 comes before the next line of the log, which is of step 91."""
    code, err = run(experiment, alone := tmp_path / "alone", "log_every=7")
    assert code == 0, err
    code, err = run(experiment, workdir := tmp_path / "run", "log_every=7", env={"FAULTS_NAN": "89"})
    assert code == 2
    assert "stopped at step 90: the loss is nan" in err.splitlines()[-1]
    assert f"Last good checkpoint: {workdir.resolve()}/checkpoints/80." in err
    assert steps(workdir)[-1] == 80
    assert_whole(workdir)
    assert reached(workdir) == 84  # nothing was evaluated
    assert "NaN" not in (workdir / "metrics.jsonl").read_text()
    code, err = run(experiment, workdir, "log_every=7")  # without what made it so
    assert code == 0, err
    assert_same_run(workdir, alone)
    row(
        "NaN at a step", 1, "exit 2, step and last good checkpoint named; without its cause it went on, to the bit",
        "the steps since the last save, made again",
    )  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2])
def test_two_trainers_at_the_same_instant(processes, experiment, tmp_path, row):
    times = 3 if processes == 1 else 1
    for number in range(times):
        workdir = tmp_path / str(number)
        overrides = ["steps=150", "checkpoint_every=50"]
        with (
            start(experiment, workdir, *overrides, processes=processes) as one,
            start(experiment, workdir, *overrides, processes=processes) as two,
        ):
            found = sorted([ends(one, 120)[:2], ends(two, 120)[:2]])
        assert [code for code, _ in found] == [0, 2], found
        assert "is in use by process " in found[1][1]
        assert [line["step"] for line in log(workdir) if "train/loss" in line] == list(range(5, 151, 5))
        assert_whole(workdir)
    how = "two trainers" if processes == 1 else "two launches of two processes"
    row(f"{how} on one workdir at once", times, "one trains, the other exits 2 and names its process", "nothing")
