"""SIGKILL at random moments, many of them within a checkpoint's write."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from campaign import BOUND, UNFINISHED, assert_same_run, assert_whole, ends, reached, run, start, wait_until

pytestmark = pytest.mark.faults


def wait_for_moment(process: subprocess.Popen[str], workdir: Path, rng: random.Random) -> None:
    """Some way into the run, or a few milliseconds into one of its saves; sometimes before its first step."""
    kind, goal = rng.choice(["start", "run", "save", "save"]), reached(workdir) + rng.randrange(5, 35)
    if kind == "start":
        time.sleep(rng.uniform(0, 4))
    elif wait_until(process, lambda: reached(workdir) >= goal) and kind == "save":
        wait_until(process, lambda: any(workdir.glob(UNFINISHED)))
        time.sleep(rng.uniform(0, 0.1))
    time.sleep(rng.uniform(0, 0.05))


@pytest.mark.parametrize("part", range(4))
def test_killed_again_and_again_it_is_the_run_never_killed(part, experiment, whole, tmp_path, rng, row):
    kills, inside, left = 0, 0, 10
    workdir = tmp_path / "0"
    while kills < left:
        with start(experiment, workdir) as process:
            wait_for_moment(process, workdir, rng)
            process.kill()
        if process.returncode == 0:  # it was faster: the next one begins anew
            assert_same_run(workdir, whole)
            workdir = tmp_path / str(int(workdir.name) + 1)
            continue
        assert process.returncode == -signal.SIGKILL
        kills, inside = kills + 1, inside + any(workdir.glob(UNFINISHED))
        assert_whole(workdir)
    code, err = run(experiment, workdir)
    assert code == 0, err
    assert_same_run(workdir, whole)
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    row(
        f"SIGKILL, part {part + 1} of 4", kills,
        f"{inside} within a save; each restart went on; state and metrics to the bit those of the run never killed",
    )  # fmt: skip


def children(parent: int) -> list[int]:
    text = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return [int(word) for word in text.split()]


def test_one_of_four_killed_all_end_and_the_next_start_goes_on(experiment, tmp_path, rng, row):
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    code, err = run(experiment, alone, processes=4)
    assert code == 0, err
    inside, longest, kills = 0, 0.0, 12
    for _ in range(kills):
        with start(experiment, workdir, processes=4) as launcher:
            goal = reached(workdir) + rng.randrange(5, 25)
            if not wait_until(launcher, lambda goal=goal: reached(workdir) >= goal):
                break
            wait_until(launcher, lambda: any(workdir.glob(UNFINISHED)))
            time.sleep(rng.uniform(0, 0.1))
            victim = rng.choice(children(launcher.pid))
            subprocess.run(["kill", "-KILL", str(victim)], check=True)
            code, err, seconds = ends(launcher, BOUND)
        assert code not in (0, 2), err
        assert "of 4 on " in err
        longest, inside = max(longest, seconds), inside + any(workdir.glob(UNFINISHED))
        assert_whole(workdir)
    code, err = run(experiment, workdir, processes=4)
    assert code == 0, err
    assert_same_run(workdir, alone)
    shutil.rmtree(tmp_path)
    row(
        "SIGKILL of one of four processes", kills,
        f"{inside} within a save; the others ended within {longest:.1f} s and named it; restarts went on, to the bit",
    )  # fmt: skip
