"""What reads the data dies, or hangs."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from campaign import assert_same_run, assert_whole, ends, reached, run, start, wait_until

pytestmark = pytest.mark.faults
WORKERS = ["data.workers=2", "data.timeout=5", "checkpoint_every=100"]


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Its processes that read; the others keep account of shared memory."""
    text = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True).stdout
    return [int(word) for word in text.split()]


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "was ended by SIGKILL"), (signal.SIGSTOP, "no batch of worker processes")]
)
def test_a_worker_that_dies_or_hangs(number, words, experiment, whole, tmp_path, rng, row):
    with start(experiment, tmp_path, *WORKERS) as process:
        assert wait_until(process, lambda: reached(tmp_path) >= 20)
        victim = rng.choice(workers(process))
        os.kill(victim, number)
        code, err, seconds = ends(process)
    assert code == 1
    assert words in err.splitlines()[-1]
    assert str(victim) in err.splitlines()[-1]
    assert not Path(f"/proc/{victim}").exists()
    assert_whole(tmp_path)
    code, err = run(experiment, tmp_path)
    assert code == 0, err
    assert "resuming   from the checkpoint" in err  # the state was saved, whatever the interval
    assert_same_run(tmp_path, whole)
    what = "killed" if number == signal.SIGKILL else "stopped, data.timeout 5 s"
    row(f"a data worker {what}", 1, f"named, state saved, exit 1 after {seconds:.0f} s, went on, to the bit", "nothing")


def test_a_worker_that_dies_before_its_first_batch(experiment, whole, tmp_path, row):
    with start(experiment, tmp_path, "data.workers=2", "data.timeout=3600") as process:
        assert wait_until(process, lambda: workers(process))
        (victim, *_) = workers(process)
        os.kill(victim, signal.SIGKILL)
        code, err, seconds = ends(process, 60)
    assert code == 1
    assert "was ended by SIGKILL" in err.splitlines()[-1]
    assert str(victim) in err.splitlines()[-1]
    code, err = run(experiment, tmp_path)
    assert code == 0, err
    assert_same_run(tmp_path, whole)
    row("a data worker killed before its first batch", 1, f"named, exit 1 after {seconds:.0f} s, went on", "nothing")


def test_a_source_that_hangs(experiment, whole, tmp_path, row):
    code, err = run(experiment, tmp_path, "data.timeout=10", env={"FAULTS_HANG": "1"})
    assert code == 1
    assert "waiting    no batch for 1 s" in err
    assert "no batch for 10 s, which is config.data.timeout" in err.splitlines()[-1]
    code, err = run(experiment, tmp_path)
    assert code == 0, err
    assert_same_run(tmp_path, whole)
    happened = "a line after 1 s, exit 1 after 10 s, state saved, went on, to the bit"
    row("reading hangs, data.timeout 10 s", 1, happened, "nothing")
