"""Files that several processes use: replaced in one move, and a folder that one process at a time trains in."""

import csv
import errno
import fcntl
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jaxcnn import UserError
from jaxcnn.safe_files import csv_text, make_writable, only_trainer, read_bytes, write_atomically

HOLDS = "import sys, time, pathlib; from jaxcnn.safe_files import only_trainer\n"
HOLDS += "with only_trainer(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"result\.json .*No space left"):
        write_atomically(path, "newer")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_just_the_bound_is_read_and_one_of_more_is_not(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    assert read_bytes(path, 4) == b"1234"
    with pytest.raises(ValueError, match="more than 3"):
        read_bytes(path, 3)


def test_a_pipe_that_nobody_writes_to_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read_bytes, path, 9)
        try:
            assert isinstance(reading.exception(timeout=60), ValueError)
        finally:
            os.close(os.open(path, os.O_RDWR))  # lets go of a reader that waits


def test_a_second_trainer_is_refused_with_the_process_that_is_there_and_death_lets_go_of_the_folder(tmp_path):
    workdir = tmp_path / "new" / "run"
    with child(HOLDS, workdir) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(UserError, match=rf"process {holder.pid} on \S+"),
                only_trainer(workdir),
            ):
                pass
        finally:
            holder.kill()  # SIGKILL: nothing of its own tidies up
    with only_trainer(workdir):
        assert (workdir / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_the_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_trainer(tmp_path):
        raise ZeroDivisionError
    with only_trainer(tmp_path):
        pass


@pytest.mark.parametrize("blocked", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_an_error(blocked, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: "), only_trainer(tmp_path / blocked):
        pass


def test_the_lock_holds_on_a_disk_without_room_for_its_owners_name(tmp_path, monkeypatch):
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with only_trainer(tmp_path):
        other = os.open(tmp_path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_a_warning_and_no_lock(code, tmp_path, monkeypatch, capsys):
    def missing(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", missing)
    with only_trainer(tmp_path), only_trainer(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        assert os.listdir(tmp_path) == [".lock"]
    first, second = capsys.readouterr().err.splitlines()
    assert first == second
    assert str(tmp_path) in first


def test_a_lock_of_the_same_process_counts_too(tmp_path: Path):
    with only_trainer(tmp_path), pytest.raises(UserError, match="in use by process"), only_trainer(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file is a file"):
        make_writable(tmp_path / "file", "--out")
    with pytest.raises(UserError, match=r"--out .*below: "):
        make_writable(tmp_path / "file" / "below", "--out")
    make_writable(tmp_path / "new" / "folder", "--out")
    assert list(tmp_path.rglob("*/*")) == [tmp_path / "new" / "folder"]


def test_a_table_is_read_back_and_no_text_in_it_is_a_formula():
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "a,b", 'a "b"', "two\nlines", "é ✓", ""]
    rows = [{"text": text, "number": -number} for number, text in enumerate(texts)]
    found = list(csv.DictReader(io.StringIO(csv_text([*rows, {"other": 0.1}]), newline="")))
    assert [row["text"] for row in found] == [*(f"'{text}" for text in texts[:6]), *texts[6:], ""]
    assert [row["number"] for row in found[:-1]] == [str(-number) for number in range(len(texts))]
    assert found[-1]["other"] == "0.1"
    assert csv_text([{"name": "\udc80"}]) == '"name"\n"\\udc80"\n'
