"""Disks that are full or cannot be written."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from campaign import UNFINISHED, assert_same_run, assert_whole, ends, run, start, steps, tree, wait_until

pytestmark = pytest.mark.faults


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


class Disk(NamedTuple):
    """A folder on a disk that can be made full; where no file system can be mounted, files cannot grow instead."""

    folder: Path
    mounted: bool

    def fill(self) -> Any:
        """What `start` needs so that the disk is full some way into the run."""
        if self.mounted:
            used = int(subprocess.check_output(["du", "-s", "--block-size=1k", self.folder]).split()[0])
            assert mount("-o", f"remount,size={used + 120}k", str(self.folder))
            return None
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (7000, 7000))

    def free(self) -> None:
        assert not self.mounted or mount("-o", "remount,size=64m", str(self.folder))


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    (folder := tmp_path / "disk").mkdir()
    mounted = mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder))
    yield Disk(folder, mounted)
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def stop_at(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    assert wait_until(process, condition)
    process.terminate()
    assert ends(process)[0] == 143


def test_a_full_disk_is_one_line_and_the_next_start_goes_on(disk, experiment, whole, row):
    workdir = disk.folder / "run"
    with start(experiment, workdir) as process:
        stop_at(process, lambda: len(steps(workdir)) > 2)
    before = steps(workdir)
    limit = disk.fill()
    for _ in range(2):  # the second start finds the disk as full
        code, err = run(experiment, workdir, before=limit)
        assert code == 2
        assert "No space left on device" in err or "File too large" in err
        (message,) = [line for line in err.splitlines() if line.startswith("jaxcnn: ")]
        assert "cannot be written" in message or "failed, earlier checkpoints are intact" in message
        assert_whole(workdir)
        assert steps(workdir)[-1] >= before[-1]
    disk.free()
    code, err = run(experiment, workdir)
    assert code == 0, err
    assert_same_run(workdir, whole)
    assert not list(workdir.glob(UNFINISHED))
    kind = "a tmpfs" if disk.mounted else "RLIMIT_FSIZE"
    happened = "exit 2, one line; older checkpoints intact; with room again it went on, to the bit"
    row(f"disk full ({kind})", 2, happened, "the steps since the last save, made again")


def test_a_disk_that_is_full_at_the_start_is_one_line(disk, experiment, row):
    if disk.mounted:
        assert mount("-o", "remount,size=8k", str(disk.folder))
    code, err = run(experiment, disk.folder / "run", before=None if disk.mounted else disk.fill())
    assert code == 2
    assert err.splitlines()[-1].startswith("jaxcnn: ")
    row("disk full at the start", 1, "exit 2, one line", "nothing")


def test_a_folder_that_cannot_be_written_is_refused(disk, experiment, row):
    workdir = disk.folder / "run"
    code, err = run(experiment, workdir, "steps=20")
    assert code == 0, err
    before = tree(disk.folder)
    if disk.mounted:
        assert mount("-o", "remount,ro", str(disk.folder))
    elif os.geteuid():
        workdir.chmod(0o555)
    else:
        workdir = Path("/proc/run")  # where root cannot write either
    code, err = run(experiment, workdir)
    assert code == 2
    assert f"--workdir {workdir} cannot be written: " in err.splitlines()[-1]
    assert tree(disk.folder) == before
    row("workdir read-only", 1, "exit 2, one line, nothing changed", "nothing")
    if disk.mounted:
        mount("-o", "remount,rw", str(disk.folder))
    workdir.chmod(0o755) if workdir.exists() else None


def test_checkpoints_that_are_a_file_are_named(experiment, tmp_path, row):
    (tmp_path / "checkpoints").touch()
    code, err = run(experiment, tmp_path)
    assert code == 2
    assert f"{tmp_path.resolve()}/checkpoints is a file" in err.splitlines()[-1]
    row("checkpoints/ is a file", 1, "exit 2, one line", "nothing")
