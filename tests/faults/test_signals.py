"""SIGTERM in every phase of a run: it ends within the bound, with what was done saved."""

import threading
import time
from pathlib import Path

import pytest
from campaign import UNFINISHED, assert_same_run, assert_whole, ends, log, reached, run, start, steps, wait_until

pytestmark = pytest.mark.faults


def goes_on(experiment: Path, workdir: Path, whole: Path) -> None:
    assert_whole(workdir)
    code, err = run(experiment, workdir)
    assert code == 0, err
    assert_same_run(workdir, whole)


def test_at_the_start(experiment, whole, tmp_path, rng, row):
    longest = 0.0
    for _ in range(5):
        with start(experiment, tmp_path) as process:
            time.sleep(rng.uniform(0, 3))
            process.terminate()
            code, _, seconds = ends(process)
        assert code in (143, -15)  # before there is a handler, the system ends it
        longest = max(longest, seconds)
    goes_on(experiment, tmp_path, whole)
    row("SIGTERM while starting", 5, f"ended within {longest:.1f} s", "nothing")


def test_while_compiling(experiment, tmp_path, row):
    config = tmp_path / "big.py"
    config.write_text(experiment.read_text().replace("config.model.overrides.dropout = 0.1", ""))
    with start(
        config, tmp_path / "run", "model.name=resnet56", env={"JAX_ENABLE_COMPILATION_CACHE": "false"}
    ) as process:
        assert process.stderr is not None
        limit = threading.Timer(120, process.kill)  # a line is waited for without limit
        limit.daemon = True
        limit.start()
        while not process.stderr.readline().startswith("training "):
            assert process.poll() is None
        limit.cancel()
        time.sleep(1)  # it has told its plan, and compiles for much longer
        process.terminate()
        code, err, seconds = ends(process)
    assert code == 143
    assert "there is nothing to save" in err
    assert "compiled" not in err
    row("SIGTERM while compiling", 1, f"ended within {seconds:.1f} s; nothing to save", "nothing")


def test_while_saving(experiment, whole, tmp_path, rng, row):
    longest, hits = 0.0, 0
    for _ in range(4):
        with start(experiment, tmp_path) as process:
            goal = reached(tmp_path) + rng.randrange(5, 25)
            assert wait_until(process, lambda goal=goal: reached(tmp_path) >= goal)
            hits += wait_until(process, lambda: any(tmp_path.glob(UNFINISHED)))
            process.terminate()
            code, err, seconds = ends(process)
        assert code == 143
        assert f"saved in {tmp_path.resolve()}/checkpoints" in err
        assert not any(tmp_path.glob(UNFINISHED))
        longest = max(longest, seconds)
    assert hits > 0
    goes_on(experiment, tmp_path, whole)
    row(
        "SIGTERM in a step or a save",
        4,
        f"{hits} in a save; saved, ended within {longest:.1f} s, went on, to the bit",
        "nothing",
    )


def test_while_evaluating(experiment, whole, tmp_path, row):
    with start(experiment, tmp_path, env={"FAULTS_SLOW_EVALUATION": "0.2"}) as process:
        assert wait_until(process, lambda: reached(tmp_path) == 90)
        time.sleep(1)
        process.terminate()
        code, err, seconds = ends(process)
    assert code == 143
    assert "stopped at step 90 of" in err
    assert not [line for line in log(tmp_path) if "eval/loss" in line]
    assert steps(tmp_path)[-1] == 90
    goes_on(experiment, tmp_path, whole)
    row(
        "SIGTERM while evaluating",
        1,
        f"saved, ended within {seconds:.1f} s; it evaluates first when run again, to the bit",
        "nothing",
    )


def test_while_waiting_for_data(experiment, whole, tmp_path, row):
    with start(experiment, tmp_path, env={"FAULTS_HANG": "1"}) as process:
        assert wait_until(process, lambda: reached(tmp_path) >= 120)
        time.sleep(5)
        process.terminate()
        code, err, seconds = ends(process)
    assert code == 143
    assert "saved in " in err
    goes_on(experiment, tmp_path, whole)
    row("SIGTERM while reading hangs", 1, f"saved, ended within {seconds:.1f} s, went on, to the bit", "nothing")
