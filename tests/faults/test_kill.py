"""SIGKILL at random moments, many of them within a checkpoint's write."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from campaign import UNFINISHED, assert_same_run, assert_whole, ends, reached, run, start, unfinished, wait_until

pytestmark = pytest.mark.faults


def wait_for_moment(kind: str, process: subprocess.Popen[str], workdir: Path, rng: random.Random) -> None:
    """Some way into the run, or a few milliseconds into one of its saves; sometimes before its first step."""
    goal = reached(workdir) + rng.randrange(5, 35)
    if kind == "start":
        time.sleep(rng.uniform(0, 4))
    elif wait_until(process, lambda: reached(workdir) >= goal) and kind == "save":
        wait_until(process, lambda: any(workdir.glob(UNFINISHED)))
        time.sleep(rng.uniform(0, 0.1))
    time.sleep(rng.uniform(0, 0.05))


@pytest.mark.parametrize("part", range(4))
def test_killed_again_and_again_it_is_the_run_never_killed(part, experiment, whole, tmp_path, rng, row):
    kills, inside, workdir = 0, 0, tmp_path / "0"
    while kills < 10:
        before = unfinished(workdir)
        with start(experiment, workdir) as process:
            wait_for_moment(("save", "run", "save", "start")[kills % 4], process, workdir, rng)
            process.kill()
        if process.returncode == 0:  # it was faster: the next one begins anew
            assert_same_run(workdir, whole)
            workdir = tmp_path / str(int(workdir.name) + 1)
            continue
        assert process.returncode == -signal.SIGKILL
        kills, inside = kills + 1, inside + bool(unfinished(workdir) - before)
        assert_whole(workdir)
    assert inside > 0
    code, err = run(experiment, workdir)
    assert code == 0, err
    assert_same_run(workdir, whole)
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    row(
        f"SIGKILL, part {part + 1} of 4", kills,
        f"{inside} within a save; each restart went on; state and metrics to the bit those of the run never killed",
        "the steps since the last save, made again",
    )  # fmt: skip


def children(parent: int) -> list[int]:
    text = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return [int(word) for word in text.split()]


def kill_one_of(launcher: subprocess.Popen[str], rng: random.Random) -> None:
    """SIGKILL to one of its processes; where it has just ended, to none."""
    if there := children(launcher.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(there), signal.SIGKILL)


def test_one_of_four_killed_all_end_and_the_next_start_goes_on(experiment, tmp_path, rng, row):
    code, err = run(experiment, alone := tmp_path / "alone", processes=4)
    assert code == 0, err
    kills, inside, longest, workdir = 0, 0, 0.0, tmp_path / "0"
    while kills < 12:
        before = unfinished(workdir)
        with start(experiment, workdir, processes=4) as launcher:
            goal = reached(workdir) + rng.randrange(5, 25)
            if wait_until(launcher, lambda workdir=workdir, goal=goal: reached(workdir) >= goal):
                wait_until(launcher, lambda workdir=workdir: any(workdir.glob(UNFINISHED)))
                time.sleep(rng.uniform(0, 0.1))
                kill_one_of(launcher, rng)
            code, err, seconds = ends(launcher)
        if code == 0:  # it was faster: the next one begins anew
            assert_same_run(workdir, alone)
            workdir = tmp_path / str(int(workdir.name) + 1)
            continue
        assert code != 2, err
        assert "of 4 on " in err
        kills, inside = kills + 1, inside + bool(unfinished(workdir) - before)
        longest = max(longest, seconds)
        assert_whole(workdir)
    assert inside > 0
    code, err = run(experiment, workdir, processes=4)
    assert code == 0, err
    assert_same_run(workdir, alone)
    shutil.rmtree(tmp_path)
    row(
        "SIGKILL of one of four processes", kills,
        f"{inside} within a save; the others ended within {longest:.1f} s and named it; restarts went on, to the bit",
        "the steps since the last save, made again",
    )  # fmt: skip
